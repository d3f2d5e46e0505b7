"""Checkpoints that were cut or changed: never read, never a crash, and the one before serves. Bytes that hypothesis
makes: an answer or a CheckpointError, and nothing else."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import zipfile
from pathlib import Path
from typing import Any, List, Tuple

import pytest
import torch
from engine_tools import CPU, ROOT, save_epoch, tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from tpvformer.compat import CheckpointError, load_weights
from tpvformer.compat.checksum import sealed_step, write_sealed
from tpvformer.compat.tensors import read_archive
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


# ---- bytes that hypothesis makes


EXAMPLES = 20_000 if os.environ.get("TPVFORMER_SLOW") == "1" else 150
CONTENT = {"format": "tpvformer", "state_dict": {"a": torch.arange(5.0)}, "epoch": 1, "config": {"name": "x"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.data())
def test_damage_in_unsealed_archives(place: Path, more: st.DataObject) -> None:
    """Where no seal tells, PyTorch's own reader must refuse or read; it may not crash or raise anything else."""
    whole = place / "whole.pth"
    if not whole.exists():
        torch.save(CONTENT, whole)
    content = bytearray(whole.read_bytes())
    for _ in range(more.draw(st.integers(1, 4))):
        at = more.draw(st.integers(0, len(content) - 1))
        content[at : at + more.draw(st.integers(0, 3))] = more.draw(st.binary(max_size=4))
    file = place / "changed.pth"
    file.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        read_archive(file)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.data())
def test_damage_in_sealed_archives_is_always_found(place: Path, more: st.DataObject) -> None:
    whole = place / "sealed.pth"
    if not whole.exists():
        write_sealed(CONTENT, whole, 7)
    before = whole.read_bytes()
    content = bytearray(before)
    at = more.draw(st.integers(0, len(content) - 1))
    content[at : at + more.draw(st.integers(0, 9))] = more.draw(st.binary(max_size=9))
    file = place / "changed.pth"
    file.write_bytes(content)
    if bytes(content) == before:
        assert read_archive(file)["epoch"] == 1
    else:
        with pytest.raises(CheckpointError):
            read_archive(file)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"PK\x05\x06"]), st.binary(max_size=300))
def test_any_bytes(place: Path, beginning: bytes, rest: bytes) -> None:
    for name in ("any.pth", "any.safetensors"):
        (place / name).write_bytes(beginning + rest)
        with contextlib.suppress(CheckpointError):
            read_archive(place / name)


def around() -> List[bytes]:
    """Pickles of archives with objects and calls in them, to be mutated: a real one of mmengine, and one of our own."""
    real = ROOT / "tests/golden_data/foreign/mmengine_0.10.7_toy_epoch_2.pth"
    file = io.BytesIO()
    torch.save({**CONTENT, "args": argparse.Namespace(a=[1], b=Path("x")), "set": {1}, "part": print}, file)
    return [zipfile.ZipFile(real).read("archive/data.pkl"), zipfile.ZipFile(file).read("archive/data.pkl")]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, taken out, doubled, or exchanged for opcodes that call, build and name."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(content))
        how = rng.randrange(5)
        if how == 0:
            content[at] = rng.randrange(256)
        elif how == 1:
            del content[at : at + rng.randint(1, 8)]
        elif how == 2:
            content[at:at] = rng.choice(
                (b"R", b"b", b"\x81", b"cos\nsystem\n", b")", b"(", b"o", b"i", b"Q", b"\x93", b"h\x01")
            )
        elif how == 3:
            start = rng.randrange(len(content))
            content[at:at] = content[start : start + rng.randint(1, 40)]
        else:
            content[at : at + 1] = rng.choice((b"R", b"b", b"\x81", b"\x92", b"u", b"s", b"a", b"e", b"t", b"0", b"2"))
    return bytes(content)


def test_mutated_pickles_run_nothing(tmp_path: Path) -> None:
    """Python tells of every import, program and evaluation; while a checkpoint is read there is none."""
    heard: List[str] = []
    listening = False
    told = ("import", "exec", "compile", "os.", "subprocess.", "shutil.", "socket.", "ctypes.", "code.", "pickle.find")

    def hear(event: str, arguments: Any) -> None:
        if listening and event.startswith(told):
            heard.append(f"{event} {str(arguments)[:200]}")

    sys.addaudithook(hear)
    rng, read, refused = random.Random(3), 0, 0
    for encoding in ("cp437", "unicode_escape"):  # Python's own, loaded at first use: of archives' names, of messages
        str(b"a", encoding)
    read_archive(ROOT / "tests/golden_data/foreign/mmengine_0.10.7_toy_epoch_2.pth")
    file = tmp_path / "changed.pth"
    pickles = around()
    for _ in range(EXAMPLES * 4):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", mutated(rng.choice(pickles), rng))
            for number in range(17):
                archive.writestr(f"archive/data/{number}", bytes(20 if number == 0 else 16))
        listening = True
        try:
            read_archive(file)
            read += 1
        except CheckpointError:
            refused += 1
        finally:
            listening = False
    assert not heard, heard[:5]
    assert refused > EXAMPLES and read + refused == EXAMPLES * 4
