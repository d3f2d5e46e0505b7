"""Info pickles that aim at memory: dtypes that make bytes pointers, sizes that lie, shared and deep lists."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import programs
import pytest

from tpvformer.data.formats import load_infos
from tpvformer.errors import DataError
from tpvformer.untrusted import pickle_scan
from tpvformer.untrusted.pickle import load_pickle

# in a process of its own, because the reader before this one ended by SIGSEGV
READ = """
import sys
from tpvformer.untrusted.pickle import load_pickle
from tpvformer.errors import DataError
for path in sys.argv[1:]:
    try:
        print(repr(load_pickle(path))[:80])
    except DataError as err:
        print("refused:", err, flush=True)
"""


class Reduced:
    """Pickles as a call, and a state that is set on what it returns."""

    def __init__(self, function: Any, args: tuple, state: Any = None) -> None:
        self.made = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.made


def array(dtype: Any, shape: tuple, data: Any, fortran: bool = False) -> Reduced:
    rebuild = np.empty(0).__reduce__()[0]
    return Reduced(rebuild, (np.ndarray, (0,), b"b"), (1, shape, dtype, fortran, data))


def dtype(code: str, order: str = "<", *state: Any) -> Reduced:
    return Reduced(np.dtype, (code, False, True), (3, order, *(state or (None, None, None, -1, -1, 0))))


FAR = (0x4141414141414141).to_bytes(8, "little")
FIELD = {"a": (dtype("O8", "|", None, None, None, -1, -1, 63), 0)}
BEYOND = {"a": (dtype("U4", "<", None, None, None, 16, 4, 8), 1 << 20)}
POINTERS: Dict[str, Any] = {
    "a field of objects without flags": array(dtype("V8", "|", None, ("a",), FIELD, 8, 1, 0), (1,), FAR),
    "an offset outside of the record": array(dtype("V16", "|", None, ("a",), BEYOND, 16, 1, 0), (1,), bytes(16)),
    "a void scalar": Reduced(np.float64(0).__reduce__()[0], (dtype("V8", "|", None, ("a",), FIELD, 8, 1, 0), FAR)),
    "objects from bytes": array(dtype("O8", "|", None, None, None, -1, -1, 0), (1,), FAR),
    "objects": np.array(["car", None], object),
    "records": np.zeros(3, [("x", "<f4"), ("y", "<i8")]),
    "a sub-array": array(dtype("f8", "<", (dtype("f8"), (2,)), None, None, -1, -1, 0), (1,), bytes(8)),
    "times": np.zeros(2, "M8[s]"),
    "memory of nobody": Reduced(np.ndarray, ((1 << 20,), "u1")),
}


def read_all(folder: Path, contents: Dict[str, bytes]) -> Dict[str, str]:
    """What a process of its own says about each file."""
    for i, content in enumerate(contents.values()):
        (folder / f"{i}.pkl").write_bytes(content)
    paths = [str(folder / f"{i}.pkl") for i in range(len(contents))]
    done = programs.run([sys.executable, "-c", READ, *paths])
    said = dict(zip(contents, done.stdout.splitlines()))
    assert done.returncode == 0, (done.returncode, said, done.stderr)
    return said


LIES: Dict[str, Any] = {
    "fewer bytes than the shape": array(dtype("f8"), (4,), bytes(24)),
    "more bytes than the shape": array(dtype("f8"), (2,), bytes(24)),
    "a negative side": array(dtype("f8"), (-1,), b""),
    "sides that overflow": array(dtype("f8"), (2**62, 4), b""),
    "too many sides": array(dtype("u1"), (1,) * 65, b"a"),
    "a list for bytes": array(dtype("f8"), (1,), [1.0]),
    "a scalar of too few bytes": Reduced(np.float64(0).__reduce__()[0], (dtype("f8"), bytes(4))),
    "an unknown letter": array(dtype("x8"), (1,), bytes(8)),
    "a width that no number has": array(dtype("f3"), (1,), bytes(3)),
    "a comma": array(dtype("f8,f8"), (1,), bytes(16)),
    "bytes without end": Reduced(bytes, (10**12,)),
    "a buffer that is an array": Reduced(np.empty(1).__reduce_ex__(5)[0], (np.arange(3.0), dtype("f8"), (3,), "C")),
}


@pytest.mark.parametrize("kind", LIES)
def test_sizes_that_do_not_agree(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(LIES[kind], protocol=2))
    with pytest.raises(DataError, match="refused"):
        load_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=">i2").reshape(2, 3), np.array([1.5, np.nan], ">f4"), np.array(["\u00e9t", "x"], ">U3"),
        np.array([b"ab", b"c"]), np.zeros((2, 0, 3)), np.array(3), np.asfortranarray(np.eye(3)), np.array([1 + 2j]),
        np.array([], "U1"), np.str_("abc"), np.bytes_(b"a"), np.bool_(True), np.complex64(1j), np.float16(1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_arrays_and_scalars_come_back(tmp_path: Path, values: Any, protocol: int) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([values, values], protocol=protocol))
    first, second = load_pickle(tmp_path / "x.pkl")
    plain = pickle.loads(pickle.dumps(values, protocol=protocol))  # noqa: S301  # NumPy swaps some to native order
    for found in (first, second):
        assert np.asarray(found).dtype == plain.dtype and np.shape(found) == np.shape(values)
        assert np.array_equal(found, values) or np.isnan(np.asarray(found)).any()


def laughs(levels: int, times: int, leaf: Any) -> Any:
    value: Any = leaf
    for _ in range(levels):
        value = [value] * times
    return value


def filled_afterwards() -> bytes:
    """The outer lists first, the inner ones filled by reference: sizes that are added up on the way miss that."""
    made = b"\x80\x02(" + b"".join(b"]q" + bytes([i]) for i in range(12)) + b"lq\x0c"
    for i in range(11):
        made += b"h" + bytes([i]) + b"(" + (b"h" + bytes([i + 1])) * 10 + b"e"
    return made + b"."


def deep_tuples(levels: int) -> bytes:
    return b"\x80\x02}" + b"K\x01" + b"\x85" * levels + b"K\x01s."


BOMBS: Dict[str, bytes] = {
    "lists that share lists": pickle.dumps({"infos": laughs(9, 10, 1.0)}),
    "tuples that share tuples": pickle.dumps(laughs(30, 2, (1,))),
    "a list filled after it was shared": filled_afterwards(),
    "an array many times": pickle.dumps(laughs(6, 50, np.zeros(1000))),
    "a tuple that overflows the stack where it is hashed": deep_tuples(400_000),
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a duplicate": b"\x80\x02]2\x86.",
}

# keys with one hash: each is compared with all before it
ALIKE = [i * (2**61 - 1) for i in range(1, 7001)]
COMPARED: Dict[str, bytes] = {
    "whole numbers": pickle.dumps(dict.fromkeys(ALIKE), protocol=4),
    "whole numbers in digits": pickle.dumps(dict.fromkeys(ALIKE), protocol=0),
    "floats": pickle.dumps(dict.fromkeys(float(i) for i in range(7000))),
    "tuples": pickle.dumps({("", i): 0 for i in ALIKE}, protocol=4),
    "a few large tuples": pickle.dumps({(0,) * 1000 + (i,): 0 for i in ALIKE[:300]}, protocol=4),
    "many dicts": pickle.dumps([dict.fromkeys(ALIKE[:3000], 0) for _ in range(9)], protocol=4),
    "a set": pickle.dumps(set(ALIKE), protocol=4),
    "a frozen set": pickle.dumps(frozenset(ALIKE), protocol=4),
    "a set made of a list": pickle.dumps({"a": set(ALIKE[:100])}, protocol=2),
    "a dict filled in two goes": b"\x80\x02}("
    + b"".join(pickle.dumps(i, 2)[2:-1] + b"N" for i in ALIKE[:4000])
    + b"u("
    + b"".join(pickle.dumps(i, 2)[2:-1] + b"N" for i in ALIKE[4000:])
    + b"u.",
}


def test_no_file_chooses_an_address_or_endless_work(tmp_path: Path) -> None:
    contents = {kind: pickle.dumps({"infos": [{"t": value}]}, protocol=2) for kind, value in POINTERS.items()}
    said = read_all(tmp_path, {**contents, **BOMBS})
    for kind, line in said.items():
        assert line.startswith("refused: "), (kind, line)
        assert kind in BOMBS or "refused, the pickle calls for" in line, (kind, line)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kind", COMPARED)
def test_keys_that_may_have_one_hash(
    tmp_path: Path, kind: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle_scan, "COMPILED_FROM", 0 if compiled else 2**40)
    (tmp_path / "x.pkl").write_bytes(COMPARED[kind])
    with pytest.raises(DataError, match="keys that are neither text nor small whole numbers|have the same hash"):
        load_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_keys_that_people_have(tmp_path: Path, protocol: int) -> None:
    """Numbers of classes and parameters, times in microseconds, places in a grid, and long names."""
    content = {
        "times": {1_532_402_927_647_951 + 50_000 * i: i for i in range(20_000)},
        "classes": {i: str(i) for i in range(-20_000, 20_000)},
        "names": {f"{i:070d}": {f"{i:032x}".encode(): i} for i in range(5000)},
        "cells": {(i // 50, i % 50): float(i) for i in range(1000)},
        "set": {2**70 + i for i in range(1000)} | {"a", 0.5, None},
        "values": ALIKE,
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert load_pickle(tmp_path / "x.pkl") == content


def test_a_shared_calibration_is_no_bomb(tmp_path: Path) -> None:
    """nuScenes' converter stores one list of a calibrated sensor in every record of a scene."""
    shared: List[float] = [0.1, 0.2, 0.3, 0.4]
    content = [{"rotation": shared, "matrix": np.eye(3)} for _ in range(5000)]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=4))
    assert load_pickle(tmp_path / "x.pkl")[-1]["rotation"] == shared


def test_state_of_what_the_reader_is_made_of(tmp_path: Path) -> None:
    """BUILD sets attributes on whatever lies on the stack; also on the functions that a name stands for."""
    raw = b"\x80\x02c_codecs\nencode\n}X\x08\x00\x00\x00__name__X\x01\x00\x00\x00xsb."
    (tmp_path / "x.pkl").write_bytes(raw)
    with pytest.raises(DataError):
        load_pickle(tmp_path / "x.pkl")
    slots = b"\x80\x02c_codecs\nencode\nN}X\x08\x00\x00\x00__name__X\x01\x00\x00\x00xs\x86b."
    (tmp_path / "x.pkl").write_bytes(slots)
    with pytest.raises(DataError):
        load_pickle(tmp_path / "x.pkl")


def test_infos_with_a_bomb_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(BOMBS["lists that share lists"])
    with pytest.raises(DataError, match="refers to its own parts so often"):
        load_infos(tmp_path / "x.pkl")
