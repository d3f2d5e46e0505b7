"""PyTorch archives that declare more than they hold: refused before PyTorch makes room for it."""

from __future__ import annotations

import io
import pickle
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch

from tpvformer.compat import CheckpointError
from tpvformer.compat.archive_check import check_archive
from tpvformer.compat.tensors import read_archive

MiB = 2**20


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def rewritten(content: bytes, change: Callable[[str, bytes], bytes], compress: bool = False) -> bytes:
    """The archive with other parts."""
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out.getvalue()


def with_pickle(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    return rewritten(content, lambda name, data: change(data) if name.endswith("data.pkl") else data)


def twice(content: bytes) -> bytes:
    out = io.BytesIO(content)
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(next(n for n in archive.namelist() if n.endswith("data/0")), bytes(16))
    return out.getvalue()


def laughs() -> Any:
    value: Any = [1.0]
    for _ in range(12):
        value = [value] * 10
    return value


def other_shape(data: bytes) -> bytes:
    """The tensor of four elements said to have 0x4000 (the first length in the pickle after its offset 0)."""
    assert data.count(b"K\x00K\x04\x85") == 1
    return data.replace(b"K\x00K\x04\x85", b"K\x00M\x00\x40\x85")


def ordered_pairs(pairs: Any) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00accollections\nOrderedDict\n" + pickle.dumps(pairs, 2)[2:-1] + b"\x85Rs."


FOUR = saved({"a": torch.zeros(4)})
ARCHIVES: Dict[str, bytes] = {
    "compressed zeros": rewritten(saved({"a": torch.zeros(64 * MiB // 4)}), lambda _, data: data, compress=True),
    "a tensor beyond its storage": with_pickle(FOUR, other_shape),
    "an offset beyond its storage": with_pickle(FOUR, lambda d: d.replace(b"K\x00K\x04\x85", b"M\x00\x40K\x04\x85")),
    "a storage of more elements than bytes": rewritten(FOUR, lambda n, d: d[:8] if n.endswith("data/0") else d),
    "one number spread over everything": saved({"a": torch.zeros(1).expand(2**40)}),
    "a part that is there twice": twice(FOUR),
    "lists that share lists": saved({"a": laughs()}),
    "a deep tuple as a key": with_pickle(FOUR, lambda d: b"\x80\x02}K\x01" + b"\x85" * 300_000 + b"K\x01s."),
    "a sparse tensor": saved({"a": torch.eye(3).to_sparse()}),
    "a tensor without memory": saved({"a": torch.empty(3, device="meta")}),
    "keys with one hash": saved({"a": {i * (2**61 - 1): 0 for i in range(7000)}}),
    "old format, keys with one hash": saved(
        {i * (2**61 - 1): 0 for i in range(7000)}, _use_new_zipfile_serialization=False
    ),
    "a set of one hash": saved({"a": {i * (2**61 - 1) for i in range(1, 20)}}),
    "pairs of one hash": with_pickle(FOUR, lambda _: ordered_pairs([(i * (2**61 - 1), 0) for i in range(1, 20)])),
    "a huge bytearray": with_pickle(FOUR, lambda d: b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x08\x85R."),
    "old format, beyond its storage": saved({"a": torch.zeros(4)}, _use_new_zipfile_serialization=False).replace(
        b"K\x00K\x04\x85", b"K\x00K\x7f\x85"
    ),
    "old format, a storage without bytes": saved({"a": torch.zeros(4)}, _use_new_zipfile_serialization=False).replace(
        b"K\x04N", b"J\xff\xff\xff\x7fN"
    ),
    "old format, lists that share lists": saved({"a": laughs()}, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_more_declared_than_there_is(tmp_path: Path, kind: str) -> None:
    """The check comes before PyTorch, so nothing has been made; it takes 64 MiB more at most here."""
    (tmp_path / "a.pth").write_bytes(ARCHIVES[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        check_archive(tmp_path / "a.pth")
    assert "a.pth: " in str(caught.value) and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    with pytest.raises(CheckpointError):
        read_archive(tmp_path / "a.pth")


@pytest.mark.parametrize("new", [True, False])
def test_what_people_have_passes(tmp_path: Path, new: bool) -> None:
    shared, big = torch.arange(12.0), torch.zeros(3, 4, dtype=torch.bfloat16)
    state = OrderedDict(
        a=shared, view=shared[2:6], turned=shared.view(3, 4).T, empty=torch.zeros(0, 3), one=torch.ones(())
    )
    state["half"], state["weight"], state["flag"] = big, torch.nn.Parameter(big), torch.tensor([True])
    state._metadata = OrderedDict(version=1)  # ty: ignore[unresolved-attribute]
    content = {"state_dict": state, "meta": {"size": torch.Size([2]), "t": (1, None, "x" * 200)}, "n": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    found = read_archive(tmp_path / "a.pth")
    assert found["meta"]["t"] == (1, None, "x" * 200)
    for name, tensor in state.items():
        assert torch.equal(found["state_dict"][name], tensor), name


def test_a_foreign_object_is_still_named(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(with_pickle(FOUR, lambda _: pickle.dumps({"a": zipfile.ZipInfo("x")}, protocol=2)))
    with pytest.raises(CheckpointError, match=r"opening it would run zipfile\.ZipInfo|not a readable"):
        read_archive(tmp_path / "a.pth")
