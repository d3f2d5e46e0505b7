"""Info pickles: what people have is read, and nothing a pickle may ask for is executed."""

from __future__ import annotations

import builtins
import gzip
import io
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import programs
import pytest

from tpvformer.config import DataConfig
from tpvformer.data.formats import load_infos
from tpvformer.data.nuscenes.occupancy import OccupancyLabels
from tpvformer.errors import DataError
from tpvformer.untrusted.pickle import load_pickle

PLAIN = {
    "infos": [{"token": "a", "n": 3, "f": 1.5, "none": None, "ok": True, "b": b"\x00\xff", "empty": b"", "t": (1, 2)}],
    "set": {1, 2},
    "frozen": frozenset({3}),
    "complex": 1 + 2j,
}


class Calls:
    """Pickles as a call of ``function`` with ``args``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_arrays_survive(tmp_path, protocol):
    arrays = {
        "matrix": np.arange(12.0).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "names": np.array(["car", "bus"]),
        "flags": np.array([True, False]),
        "scalar": np.float32(2.5),
        "count": np.int64(7),
        "empty": np.zeros((0, 3)),
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({**PLAIN, **arrays}, protocol=protocol))
    loaded = load_pickle(path)
    assert {k: loaded[k] for k in PLAIN} == PLAIN
    for name, array in arrays.items():
        assert np.array_equal(loaded[name], array), name
        assert loaded[name].dtype == array.dtype, name


@pytest.mark.parametrize("spelling", [b"numpy.core", b"numpy._core"])
def test_both_spellings_of_numpy(tmp_path, spelling):
    raw = pickle.dumps([np.arange(3.0), np.float64(2)], protocol=2)
    for present in (b"numpy._core", b"numpy.core"):
        raw = raw.replace(b"c" + present + b".", b"c" + spelling + b".")
    path = tmp_path / "x.pkl"
    path.write_bytes(raw)
    array, scalar = load_pickle(path)
    assert array.tolist() == [0, 1, 2]
    assert scalar == 2


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch ran",), "system"),
        (subprocess.check_output, (["touch", "ran"],), "check_output"),
        (builtins.eval, ("open('ran', 'w')",), "eval"),
        (builtins.exec, ("open('ran', 'w')",), "exec"),
        (builtins.getattr, (os, "system"), "getattr"),
        (builtins.open, ("ran", "w"), "open"),
        (builtins.__import__, ("antigravity",), "__import__"),
        (np.load, ("ran",), "load"),
        (np.fromfile, ("ran",), "fromfile"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_calls_are_refused_by_name(tmp_path, monkeypatch, function, args, name, protocol):
    monkeypatch.chdir(tmp_path)
    if any(arg is os for arg in args):  # a module cannot be pickled, its name can
        args = ("os", "system")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"infos": [Calls(function, *args)]}, protocol=protocol))
    with pytest.raises(DataError, match=r"refused, the pickle calls for \S*" + name):
        load_pickle(tmp_path / "x.pkl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pkl"]


@pytest.mark.parametrize(
    "raw",
    [
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"(S'touch ran'\nios\nsystem\n.",  # the INST opcode
        b"\x80\x04\x8c\x08builtins\x8c\x0cdict.__new__\x93.",  # a dotted name
        b"c_codecs\nencode\n(Vab\nVidna\ntR.",  # any codec but latin1 would import a module of that name
        b"\x80\x02U\x01aQ.",  # a persistent id
        b"ctpvformer.config\nConfig\n.",
        b"cnumpy\nfromfile\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
    ],
)
def test_hand_made_pickles_are_refused(tmp_path, monkeypatch, raw):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(raw)
    with pytest.raises(DataError, match="refused"):
        load_pickle("x.pkl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pkl"]


def test_refusal_imports_nothing(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"cthis\ns\n.")
    with pytest.raises(DataError, match=r"this\.s"):
        load_pickle(tmp_path / "x.pkl")
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "raw", [b"", b"no pickle", pickle.dumps(PLAIN)[:-20], b"\x80\x09.", b"\x80\x04Nr\xff\xff\xff\x7f\x00."]
)
def test_damaged_files(tmp_path, raw):
    (tmp_path / "x.pkl").write_bytes(raw)
    with pytest.raises(DataError, match="not a readable pickle"):
        load_pickle(tmp_path / "x.pkl")


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_pickle(tmp_path / "none.pkl")
    with pytest.raises(DataError, match="cannot be read"):
        load_pickle(tmp_path)


def test_a_few_bytes_cannot_take_all_memory(tmp_path):
    """LONG_BINPUT names a place in the unpickler's table, which grows to twice that number of pointers: 64 GB here."""
    path = tmp_path / "big.pkl"
    path.write_bytes(b"\x80\x02]r\xff\xff\xff\xff.")
    limit = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(DataError, match="big.pkl: not a readable pickle"):
        load_pickle(path)
    assert resource.getrlimit(resource.RLIMIT_AS) == limit


def test_an_archive_of_a_few_bytes_neither(tmp_path):
    with zipfile.ZipFile(tmp_path / "labels.npz", "w", zipfile.ZIP_DEFLATED) as whole:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**36,)})
        with whole.open("semantics.npy", "w", force_zip64=True) as entry:
            entry.write(header.getvalue() + bytes(2**20))
    labels = OccupancyLabels(DataConfig(occupancy="occ3d", occupancy_root=str(tmp_path)))
    with pytest.raises(DataError, match="is not a occ3d label file"):
        labels.read(tmp_path / "labels.npz", "t")


@pytest.mark.parametrize(("name", "inside"), [("infos.pkl.gz", "infos.pkl"), ("infos.pkl", "infos.unpacked.pkl")])
def test_a_compressed_pickle_is_called_so_and_the_remedy_works(tmp_path, name, inside):
    path = tmp_path / name
    path.write_bytes(gzip.compress(pickle.dumps(PLAIN)))
    for read in (load_pickle, load_infos):
        with pytest.raises(DataError, match=f"{name}: is compressed with gzip.*and name {inside}$") as refused:
            read(path)
        command = re.search(r"\((gunzip .*)\)", str(refused.value))
    programs.run(["sh", "-c", command[1]], cwd=tmp_path, check=True)
    assert load_pickle(tmp_path / inside) == PLAIN
