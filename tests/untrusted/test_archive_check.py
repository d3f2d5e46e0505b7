"""PyTorch archives that declare more than they hold: refused before PyTorch makes room for it."""

from __future__ import annotations

import argparse
import datetime
import io
import operator
import os
import pickle
import re
import resource
import subprocess
import uuid
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any, Callable, Dict, Optional

import numpy as np
import pytest
import torch

from tpvformer.compat import CheckpointError
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
    """Refused before room is made for it: it takes 64 MiB more at most here."""
    (tmp_path / "a.pth").write_bytes(ARCHIVES[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        read_archive(tmp_path / "a.pth")
    assert "a.pth: " in str(caught.value) and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


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


INERT = {
    "options": argparse.Namespace(lr=1e-4, parts=[argparse.Namespace(a=1)]),
    "place": Path("/somewhere/else.pth"),
    "pure": PureWindowsPath("C:/set"),
    "began": datetime.datetime(2024, 5, 6, 7, tzinfo=datetime.timezone.utc),
    "took": datetime.timedelta(seconds=3),
    "counts": Counter("abca"),
    "lists": defaultdict(list, {"a": [1]}),
    "queue": deque([1, 2]),
    "names": {"a", "b"},
    "frozen": frozenset({1}),
    "steps": range(3),
    "exact": Decimal("0.1"),
    "half": Fraction(1, 2),
    "id": uuid.UUID(int=5),
    "pattern": re.compile("a+"),
    "later": partial(torch.nn.LayerNorm, eps=1e-6),
    "function": torch.nn.functional.relu,
    "class": torch.nn.Linear,
    "method": "text".upper,
    "type": Dict[str, int],
    "getter": operator.attrgetter("a.b"),
    "space": SimpleNamespace(a=1),
    "score": np.float64(3.5),
    "curve": np.arange(3.0),
    "random": np.random.RandomState(3).get_state(),
    "generator": np.random.default_rng(3),
    "number": 3 + 4j,
    "device": torch.device("cpu"),
    "dtype": torch.float16,
    "part": zipfile.ZipInfo("x"),
    "network": torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)),
    "schedule": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1), 2),
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", INERT)
def test_what_lies_beside_weights_is_stepped_over(tmp_path: Path, kind: str, protocol: int, new: bool) -> None:
    """Whatever the object is, none of its class is looked for: the modules are not those of this process."""
    weights = torch.arange(6.0).view(2, 3)
    content = {"before": torch.ones(1), kind: INERT[kind], "state_dict": OrderedDict(a=weights), "n": 3}
    file = tmp_path / "a.pth"
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    found = read_archive(file)
    assert list(found) == list(content) and found["n"] == 3
    assert torch.equal(found["state_dict"]["a"], weights) and torch.equal(found["before"], torch.ones(1))


def test_an_object_that_holds_itself_and_its_owner_is_stepped_over(tmp_path: Path) -> None:
    """As OmegaConf's nodes do, which Lightning keeps beside the weights."""
    owner = argparse.Namespace(lr=1.0)
    owner.itself, owner.child = owner, argparse.Namespace(parent=owner)
    torch.save({"hyper_parameters": owner, "state_dict": {"a": torch.ones(2)}}, tmp_path / "a.ckpt")
    found = read_archive(tmp_path / "a.ckpt")
    assert repr(found["hyper_parameters"]) == "an object of argparse.Namespace"
    assert torch.equal(found["state_dict"]["a"], torch.ones(2))


class Settings(dict):
    """A dictionary with a class of its own, as EasyDict, ConfigDict and AttributeDict are."""


def test_a_dictionary_of_another_class_keeps_its_entries(tmp_path: Path) -> None:
    torch.save(Settings(state_dict=Settings(a=torch.ones(2)), lr=0.1), tmp_path / "a.pth")
    found = read_archive(tmp_path / "a.pth")
    assert torch.equal(found["state_dict"]["a"], torch.ones(2)) and found["lr"] == 0.1


class Calls:
    """Is a call once it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Method:
    """As a bound method is stored, and then called."""

    def __reduce__(self) -> Any:
        return Calls(getattr, Settings, "popitem"), ()


def set_by(folder: Path) -> Dict[str, Any]:
    """What would leave a mark in ``folder``, by the name under which it is refused."""
    mark = str(folder / "ran")
    return {
        "os|posix|nt.mkdir": Calls(os.mkdir, mark),
        "os|posix|nt.system": Calls(os.system, f"touch {mark}"),
        "builtins.eval": Calls(eval, f"open({mark!r}, 'w')"),
        "builtins.exec": Calls(exec, f"open({mark!r}, 'w')"),
        "builtins.open|io.open|_io.open": Calls(open, mark, "w"),
        "builtins.__import__": Calls(__import__, "this"),
        "builtins.print": Calls(print, "ran"),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", mark]),
        "torch.load|torch.serialization.load": Calls(torch.load, mark),
        "pathlib.Path.mkdir|pathlib.PosixPath.mkdir": Calls(Path.mkdir, Path(mark)),
        "an object of operator.attrgetter": Calls(operator.attrgetter("upper"), "text"),
        "an object of functools.partial": Calls(partial(os.mkdir, mark)),
    }


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", set_by(Path()))
def test_a_call_is_named_and_not_made(tmp_path: Path, name: str, protocol: int, new: bool, capfd: Any) -> None:
    content = {"state_dict": {"a": torch.ones(2)}, "more": set_by(tmp_path)[name]}
    torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    names = "|".join(re.escape(part) for part in name.split("|"))
    names = r"(os|posix|nt)\." + name.split(".")[1] if name.startswith("os|") else names
    with pytest.raises(CheckpointError, match=f"refused, opening it would run ({names});") as caught:
        read_archive(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists() and "ran" not in capfd.readouterr().out


def hand_made(body: bytes) -> bytes:
    return with_pickle(FOUR, lambda _: b"\x80\x02" + body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b"c__builtin__\ngetattr\n(cargparse\nNamespace\nX\x03\0\0\0runtR.",
            "the class or function argparse.Namespace.run",
        ),
        (b"c__builtin__\ngetattr\n(cos\npath\nX\x03\0\0\0runtR)R.", "would run os.path.run"),
        (b"(ios\nabort\n.", "holds a whole object of os.abort"),
        (b"(X\x01\0\0\0xios\nsystem\n.", "would run os.system"),
        (b"(cos\nsystem\nX\x01\0\0\0xo.", "would run os.system"),
        (b"c__main__\nNet\n)\x81}X\x01\0\0\0aK\x01sb.", "holds a whole object of __main__.Net"),
        (b"ctorch\nFloatStorage\n}b.", "its stack is empty"),
        (b"}(X\x01\0\0\0acx\ny\nu.", None),
        (b"}" + b"".join(b"X\x05\0\0\0%05dcm\nf%05d\ns" % (i, i) for i in range(1001)) + b".", "more than 1000"),
        (b"c\x1b[31m\nf\n)R.", r"would run \\x1b\[31m.f"),
    ],
)
def test_pickles_that_nobody_s_trainer_writes(tmp_path: Path, body: bytes, expected: Optional[str]) -> None:
    (tmp_path / "a.pth").write_bytes(hand_made(body))
    if expected is None:
        assert list(read_archive(tmp_path / "a.pth")) == ["a"]
        return
    with pytest.raises(CheckpointError, match=expected):
        read_archive(tmp_path / "a.pth")


def test_a_tensor_is_not_changed_after_it_was_checked(tmp_path: Path) -> None:
    """PyTorch's own reader lets the state of a tensor set its storage anew."""
    change = lambda d: d.replace(b"tq\x0bRq", b"tq\x0bR)bq") if b"tq\x0bRq" in d else d[:-3] + b")bu."  # noqa: E731
    (tmp_path / "a.pth").write_bytes(with_pickle(FOUR, change))
    with pytest.raises(CheckpointError, match="refused, it changes a type, a function or a tensor|not a readable"):
        read_archive(tmp_path / "a.pth")


@pytest.mark.parametrize("new", [True, False])
def test_every_number_is_as_pytorch_reads_it(tmp_path: Path, new: bool) -> None:
    base = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    content = {str(kind): (base * 9).to(kind) for kind in (*kinds, torch.int8, torch.uint8, torch.bool)}
    content.update(part=base[1:3, 2:], turned=base.T, empty=base[:0], again=base, one=torch.tensor(4.5))
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    found, expected = read_archive(tmp_path / "a.pth"), torch.load(tmp_path / "a.pth", weights_only=True)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride()
        assert torch.equal(found[name], tensor), name
    assert found["part"].untyped_storage().data_ptr() == found["again"].untyped_storage().data_ptr()
    assert type(found) is dict and found["part"].is_contiguous() is False


def test_what_is_no_checkpoint_is_named_as_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(pickle.dumps({"model": {"conv1_w": np.zeros(3)}}, protocol=2))
    with pytest.raises(CheckpointError, match="a pickle that PyTorch did not write"):
        read_archive(file)
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(CheckpointError, match=r"holds a whole object of torch.nn.modules.linear.Linear, of which"):
        read_archive(file)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))
    with pytest.raises(CheckpointError, match="a TorchScript archive; expected a state dict"):
        read_archive(file)
