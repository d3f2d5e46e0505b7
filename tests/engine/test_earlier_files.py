"""Files of an earlier version: tests/golden_data/earlier holds what the package wrote before its modules were moved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import ROOT, write_config
from tiny_nuscenes import write_tiny

from tpvformer.cli import main
from tpvformer.compat.pretrained import config_of

EARLIER = ROOT / "tests" / "golden_data" / "earlier"
CHECKPOINT, ARCHIVE = EARLIER / "epoch_1.pth", EARLIER / "sample0.npz"
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    config = config_of(CHECKPOINT)
    data = dataclasses.replace(write_tiny(tmp_path / "set", (9, 8)), photometric=False, grid_mask=False)
    train = dataclasses.replace(config.train, epochs=2)
    return str(write_config(tmp_path / "tiny.py", dataclasses.replace(config, data=data, train=train)))


def test_a_checkpoint_predicts_what_it_did(config_file: str, tmp_path: Path) -> None:
    given = ["--py-config", config_file, "--ckpt-path", str(CHECKPOINT), "--index", "0", "--truth", "--device", "cpu"]
    assert main(["predict", *given, "--out", str(tmp_path / "out")]) == 0
    with np.load(ARCHIVE) as before, np.load(tmp_path / "out" / "sample0.npz") as now:
        assert set(before.files) <= set(now.files)
        for name in ("token", "voxels", "point_labels", "pc_range", "lidar2img", "class_names", "true_voxels"):
            assert np.array_equal(before[name], now[name]), name
        assert np.allclose(before["confidence"], now["confidence"], atol=1e-3)


def test_an_archive_is_shown(tmp_path: Path) -> None:
    assert main(["view", str(ARCHIVE), "--html", str(tmp_path / "page.html")]) == 0
    assert "sample0" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_run_goes_on(config_file: str, tmp_path: Path, capsys: Any) -> None:
    given = ["--py-config", config_file, "--resume-from", str(CHECKPOINT), "--work-dir", str(tmp_path / "run")]
    assert main(["train", *given, "--device", "cpu"]) == 0
    assert f"resumed {CHECKPOINT} at epoch 1" in capsys.readouterr().out
    assert (tmp_path / "run" / "epoch_2.pth").is_file()
