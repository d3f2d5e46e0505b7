"""Files that are given as weights and hold none: each is named as what it is."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from engine_tools import tiny_model

from tpvformer.compat import CheckpointError, export_reference
from tpvformer.compat.checkpoints import load_content
from tpvformer.compat.pretrained import find_weights
from tpvformer.compat.tensors import read_archive
from tpvformer.compat.wrappers import find_tensors


def zipped(name: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(name, b"any")
    return held.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("w.pth", b"", "empty (0 bytes)"),
        ("w.safetensors", b"", "empty (0 bytes)"),
        ("w.pth", b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Sign in</title>", "web page"),
        ("w.safetensors", b"<html><body>404", "web page"),
        ("w.pth", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "server's answer"),
        ("w.pth", b'{"message": "Not Found"}', "server's answer"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        ("w.pth", b"some notes\n", "text and no weights"),
        ("w.pth", b"\x1f\x8b\x08" + bytes(50), "gzip; unpack it first"),
        ("w.tar", bytes(257) + b"ustar" + bytes(300), "tar archive; unpack it first"),
        ("w.zip", zipped("run/epoch_24.pth"), "holds 'run/epoch_24.pth'; unpack it first"),
        ("w.npz", zipped("a.npy"), "NumPy arrays"),
        ("w.pth", safetensors.torch.save({"a.b": torch.ones(2)}), "give it the ending .safetensors"),
        ("w.safetensors", zipped("archive/data.pkl"), "give it the ending .pth"),
    ],
)
def test_a_file_without_weights_is_named_as_what_it_is(
    name: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        read_archive(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "it is empty"),
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "an optimizer's state"),
        ({"optimizer": {"state": {}}, "epoch": 3}, "an optimizer's state"),
        ({"model": [1], "epoch": 3}, "it holds model, epoch and no tensors"),
    ],
)
def test_a_file_without_tensors_says_what_it_holds(content: Any, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        find_tensors(content, "w.pth")


def test_whole_numbers_are_no_weights() -> None:
    model = tiny_model()
    content = export_reference(model)
    content["tpv_head.level_embeds"] = content["tpv_head.level_embeds"].mul(100).to(torch.int8)
    before = model.encoder.level_embed.clone()
    with pytest.raises(CheckpointError, match=r"encoder\.level_embed \(torch.int8\)"):
        load_content(model, content, "w.pth")
    assert torch.equal(model.encoder.level_embed, before)


def test_a_folder_of_numbered_checkpoints_is_refused_with_the_newest_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"latest\.pth; expected a saved model or the work dir of a run$"):
        find_weights(tmp_path)
    for name in ("epoch_9.pth", "epoch_24.pth", "notes.txt"):
        (tmp_path / name).write_bytes(b"any")
    with pytest.raises(CheckpointError) as refused:
        find_weights(tmp_path)
    text = "holds none of model.safetensors, best.pth, latest.pth; expected a saved model or the work dir of a run"
    file = tmp_path / "epoch_24.pth"
    assert str(refused.value) == f"{tmp_path}: {text}; it holds epoch_24.pth: name that file, {file}"
    assert find_weights(file) == file
    (tmp_path / "best.pth").write_bytes(b"any")
    assert find_weights(tmp_path) == tmp_path / "best.pth"
