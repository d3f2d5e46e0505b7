"""Checkpoints that were cut or changed: never read, never a crash, and the one before serves."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import List, Tuple

import pytest
import torch
from engine_tools import CPU, save_epoch, tiny_config, tiny_model

from tpvformer.compat import CheckpointError, load_weights
from tpvformer.compat.checksum import sealed_step
from tpvformer.config import DataConfig
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.checkpoint import resume
from tpvformer.engine.checkpoint.state import Progress
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.optim import Stepper

COUNT = 50
CONFIG = tiny_config(DataConfig())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A work dir of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    model = tiny_model()
    for epoch in (1, 2):
        save_epoch(
            folder, model, Stepper(model, CONFIG.optim, CPU), CONFIG, Progress(epoch=epoch, global_iter=7 * epoch)
        )
    return folder


def newest(folder: Path) -> Tuple[str, List[str]]:
    said: List[str] = []
    found = store.read_newest(folder, said.append)
    assert found is not None
    return found[0].name, said


def damaged(whole: bytes) -> List[bytes]:
    draw = random.Random(3)
    cut = [whole[: draw.randrange(len(whole))] for _ in range(COUNT)]
    flipped = []
    # everywhere, and where a zip file is most itself: in its end, which says what else is there
    for place in [draw.randrange(len(whole)) for _ in range(COUNT)] + [*range(len(whole) - 200, len(whole), 3)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        flipped.append(bytes(changed))
    return cut + flipped


def test_never_read_and_the_one_before_serves(folder: Path) -> None:
    assert newest(folder) == ("latest.pth", [])
    target = folder / "epoch_2.pth"
    whole = target.read_bytes()
    for content in damaged(whole):
        target.write_bytes(content)
        with pytest.raises(CheckpointError):
            store.read(target)
        name, said = newest(folder)
        assert name == "epoch_1.pth"
        assert len(said) == 1 and "latest.pth" in said[0] and "going on from epoch_1.pth instead" in said[0]
    with pytest.raises(CheckpointError, match=r"damaged.*the newest whole checkpoint there is .*epoch_1\.pth$"):
        resume.find_origin(folder, target, World(), RunLog(None, False))
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(tiny_model(), target)
    target.write_bytes(whole)
    assert newest(folder) == ("latest.pth", [])


def test_the_newest_is_found_without_a_sound_link(folder: Path) -> None:
    latest = folder / "latest.pth"
    for target in ("epoch_9.pth", None):
        latest.unlink()
        if target is not None:
            latest.symlink_to(target)
        assert newest(folder)[0] == "epoch_2.pth"
    latest.symlink_to("epoch_2.pth")


def test_nothing_whole_is_no_fresh_start(tmp_path: Path) -> None:
    assert store.read_newest(tmp_path, print) is None
    for name in ("epoch_1.pth", "step_9.pth", "latest.pth"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 half")
    with pytest.raises(CheckpointError, match="no other checkpoint in .* is whole"):
        store.read_newest(tmp_path, print)


def test_files_of_older_versions_have_no_seal_and_are_read(folder: Path, tmp_path: Path) -> None:
    content = store.read(folder / "epoch_1.pth")
    for name in ("samples", "evaluated"):
        del content[name]
    torch.save(content, tmp_path / "epoch_1.pth")
    assert sealed_step(tmp_path / "epoch_1.pth") is None and sealed_step(folder / "epoch_1.pth") == 7
    assert store.read(tmp_path / "epoch_1.pth")["global_iter"] == 7
    os.link(folder / "epoch_2.pth", tmp_path / "step_14.pth")
    assert [p.name for p in store.newest_first(tmp_path)] == ["step_14.pth", "epoch_1.pth"]
    assert (
        resume.keep_global_batch(
            resume.ResumePoint(tmp_path / "epoch_1.pth", content), CONFIG, World(0, 3), RunLog(None, False)
        )
        is CONFIG
    )


def test_a_sealed_file_is_an_ordinary_archive(folder: Path) -> None:
    content = torch.load(str(folder / "epoch_2.pth"), weights_only=True, mmap=True)[1]
    assert content["global_iter"] == 14 and content["samples"] == 0


def test_newest_ones_are_kept_and_epochs(tmp_path: Path) -> None:
    content = {"format": "tpvformer"}
    for step in (2, 4, 5, 6, 8, 9):
        name = {5: "epoch_1.pth"}.get(step, f"step_{step}.pth")
        store.write(tmp_path, name, {**content, "global_iter": step})
    store.prune(tmp_path, keep=3, step=8)  # 9 is of a run that was taken back
    left = sorted(p.name for p in tmp_path.glob("*_*.pth"))
    assert left == ["epoch_1.pth", "step_6.pth", "step_8.pth", "step_9.pth"]
    store.prune(tmp_path, keep=0)
    assert [p.name for p in tmp_path.glob("*_*.pth")] == ["epoch_1.pth"]
