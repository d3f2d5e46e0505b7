"""The reader of checkpoints on bytes that hypothesis makes: an answer or a CheckpointError, and nothing else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpvformer.compat import CheckpointError
from tpvformer.compat.seal import write_sealed
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
