"""nuscenes-devkit itself takes the synthetic set.

The devkit pins numpy below 2, so it lives in an environment of its own; TPVFORMER_DEVKIT_PYTHON names its interpreter:

    python -m venv devkit
    devkit/bin/pip install numpy opencv-python-headless matplotlib scikit-learn pyquaternion tqdm cachetools
    devkit/bin/pip install --no-deps nuscenes-devkit==1.2.0
"""

from __future__ import annotations

from pathlib import Path

import programs
import pytest
from devkit import PYTHON, has_devkit

from tpvformer.data.street.write import write_dataset


@pytest.mark.skipif(not has_devkit(), reason="no nuscenes-devkit: TPVFORMER_DEVKIT_PYTHON names no interpreter with it")
def test_devkit_loads_evaluates_and_agrees(tmp_path):
    write_dataset(tmp_path / "set", 10, (96, 54), 3, 2, workers=1)
    script = Path(__file__).parents[2] / "support" / "devkit_check.py"
    done = programs.run([PYTHON, str(script), str(tmp_path / "set")], seconds=300)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") >= 12
