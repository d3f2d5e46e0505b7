"""Runs where nuscenes-devkit is installed: does the devkit take a submission, and what does it score?

    python tests/support/submission_devkit_check.py DATA_ROOT VERSION EVALUATION_SET SUBMISSION.zip

Prints one line of JSON: what the devkit's validator said and, for sets with labels, its mIoU and IoU by class. Needs
nuscenes-devkit 1.2.0, nothing of this package.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import zipfile

from nuscenes.eval.lidarseg.evaluate import LidarSegEval
from nuscenes.eval.lidarseg.validate_submission import validate_submission
from nuscenes.nuscenes import NuScenes


def main(root: str, version: str, name: str, path: str) -> int:
    log, found = io.StringIO(), {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        with zipfile.ZipFile(path) as file:
            file.extractall(folder)  # noqa: S202 - a file that this test suite has just written
        nusc = NuScenes(version, root, verbose=False)
        validate_submission(nusc, folder, name, verbose=True)
        found["validator"] = log.getvalue().strip().splitlines()[-1]
        if name != "test":
            scores = LidarSegEval(nusc, folder, name, verbose=False).evaluate()
            found["miou"], found["iou"] = scores["miou"], scores["iou_per_class"]
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
