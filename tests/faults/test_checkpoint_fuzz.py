"""The reader of checkpoints on bytes that hypothesis makes: an answer or a CheckpointError, and nothing else."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import zipfile
from pathlib import Path
from typing import Any, List

import pytest
import torch
from engine_tools import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from tpvformer.compat import CheckpointError
from tpvformer.compat.checksum import write_sealed
from tpvformer.compat.tensors import read_archive

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
