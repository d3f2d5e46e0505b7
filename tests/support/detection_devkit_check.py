"""Runs where nuscenes-devkit is installed: what does the devkit's DetectionEval score?

    python tests/support/detection_devkit_check.py DATA_ROOT VERSION EVALUATION_SET RESULTS.json

Prints one line of JSON with the devkit's metrics. Needs nuscenes-devkit 1.2.0, nothing of this package.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes


def main(root: str, version: str, name: str, path: str) -> int:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        nusc = NuScenes(version, root, verbose=False)
        rules = config_factory("detection_cvpr_2019")
        metrics, _ = DetectionEval(nusc, rules, path, name, folder, verbose=False).evaluate()
        found = metrics.serialize()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
