"""nuscenes-devkit itself takes the synthetic set.

The devkit pins numpy below 2, so it lives in an environment of its own; TPVFORMER_DEVKIT_PYTHON names its interpreter:

    python -m venv devkit
    devkit/bin/pip install numpy opencv-python-headless matplotlib scikit-learn pyquaternion tqdm cachetools
    devkit/bin/pip install --no-deps nuscenes-devkit==1.2.0
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tpvformer.data.street.write import write_dataset

PYTHON = os.environ.get("TPVFORMER_DEVKIT_PYTHON", sys.executable)


def has_devkit() -> bool:
    found = subprocess.run([PYTHON, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('nuscenes') is None)"])
    return found.returncode == 0


@pytest.mark.skipif(not has_devkit(), reason="no nuscenes-devkit: TPVFORMER_DEVKIT_PYTHON names no interpreter with it")
def test_devkit_loads_evaluates_and_agrees(tmp_path):
    write_dataset(tmp_path / "set", 10, (96, 54), 3, 2, workers=1)
    script = Path(__file__).with_name("devkit_check.py")
    done = subprocess.run(
        [PYTHON, str(script), str(tmp_path / "set")], capture_output=True, text=True, timeout=300, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") >= 12
