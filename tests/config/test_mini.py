"""config/mini*.py: nuScenes-mini with the names that ``tpvformer data infos`` writes, as docs/train.md has it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from engine_tools import ROOT

from tpvformer.cli import main
from tpvformer.compat import load_config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.street.write import write_dataset

FULL = {
    "mini": "tpv_lidarseg_dim64",
    "mini_small": "tpv_small",
    "mini_occupancy": "tpv04_occupancy",
    "mini_occ3d": "tpv_occ3d",
    "mini_surroundocc": "tpv_surroundocc",
}


def test_every_mini_configuration_is_here() -> None:
    assert sorted(FULL) == sorted(file.stem for file in (ROOT / "config").glob("mini*.py"))


@pytest.mark.parametrize("name", FULL)
def test_the_model_is_that_of_the_full_set(name: str) -> None:
    """Weights go from one to the other; frames a step, too, on one device instead of eight."""
    mini, full = (load_config(str(ROOT / "config" / f"{one}.py")) for one in (name, FULL[name]))
    assert mini.name == name and mini.model == full.model and mini.loss == full.loss
    assert mini.train.accumulate * mini.data.batch_size == 8 * full.data.batch_size
    assert mini.train.load_from == full.train.load_from
    steps = mini.train.epochs * (323 // mini.train.accumulate)
    assert mini.optim.warmup_steps < steps / 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a set in mini's layout where nuScenes is expected, and the labels of others."""
    folder = tmp_path_factory.mktemp("work")
    write_dataset(folder / "data" / "nuscenes", 3, (64, 36), 25, 1, workers=1, occupancy=True)
    (folder / "data" / "occ3d").mkdir()
    (folder / "data" / "nuscenes" / "gts").rename(folder / "data" / "occ3d" / "gts")
    (folder / "data" / "nuscenes" / "surroundocc").rename(folder / "data" / "nuscenes_occ")
    return folder


def test_infos_lie_where_the_configurations_look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the command of their headers every frame of both splits is opened, labels included."""
    monkeypatch.chdir(folder)
    command = load_header("mini")
    assert main(command) == 0
    for name in FULL:
        assert load_header(name) == command
        config = load_config(str(ROOT / "config" / f"{name}.py"))
        data = dataclasses.replace(config.data, workers=0)
        for split, count in (("train", 1), ("val", 2)):
            dataset = FrameDataset(data, config.model.grid, split, 0)
            assert len(dataset) == count and dataset.has_labels, (name, split)
            labels = dataset[count - 1].voxel_labels
            assert ((labels > 0) & (labels < 17)).sum() > 1000, (name, split)


def load_header(name: str) -> list:
    """The words of the header's first command, without the program."""
    text = (ROOT / "config" / f"{name}.py").read_text(encoding="utf-8")
    words = text.split("command   tpvformer ")[1].partition("\n")[0].split()
    assert f"tpvformer train --py-config config/{name}.py\n" in text
    return words
