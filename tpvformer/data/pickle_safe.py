"""Reads pickles that hold containers, numbers, text and numpy arrays, and nothing else.

A pickle is a program: whoever opens it runs it. Info files come from strangers, so the only callables a file may name
are the handful below; the first other name stops the reading before anything of the file has been called with it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Dict, Tuple, Union

import numpy as np

from tpvformer.data.memory_budget import memory_budget
from tpvformer.data.storage import place
from tpvformer.data.types import DataError

_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    MemoryError,  # a damaged length asks for more than there is
)  # fmt: skip


class _Refused(Exception):
    """Carries the refused name out of the unpickler."""


def _latin1_bytes(text: str, encoding: str) -> bytes:
    # Protocols 0 to 2 write bytes as _codecs.encode(text, "latin1"). A codec name from the file would import a module.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"_codecs.encode with {encoding!r}")
    return text.encode("latin-1")


def _numpy_callables() -> Dict[Tuple[str, str], Any]:
    # numpy's own pickling names, taken from what it writes: they moved from numpy.core to numpy._core in 2.0.
    rebuild = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    from_buffer = np.empty(1).__reduce_ex__(5)[0]
    table: Dict[Tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for core in ("numpy.core", "numpy._core"):
        table[core + ".multiarray", "_reconstruct"] = rebuild
        table[core + ".multiarray", "scalar"] = scalar
        table[core + ".numeric", "_frombuffer"] = from_buffer
    return table


_ALLOWED: Dict[Tuple[str, str], Any] = {**_numpy_callables(), ("_codecs", "encode"): _latin1_bytes}
for _module in ("builtins", "__builtin__"):
    for _type in (set, frozenset, bytes, bytearray, complex):
        _ALLOWED[_module, _type.__name__] = _type


class _Restricted(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise _Refused(f"{module_name}.{global_name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a persistent id")


def _printable(err: BaseException) -> str:
    """What an error quotes of a damaged file, fit for one line."""
    return "".join(c if c.isprintable() else "?" for c in str(err))[:160]


def load_pickle(path: Union[str, Path]) -> Any:
    """The object stored in ``path``, made of dict, list, tuple, set, numbers, text, bytes and numpy values.

    Raises DataError where the file is missing, is no pickle, or names anything else (nothing of it is then executed).
    """
    try:
        file_path = place(path)
        with file_path.open("rb") as file, memory_budget(file_path.stat().st_size):
            return _Restricted(file).load()
    except _Refused as refusal:
        raise DataError(
            f"{path}: refused, the pickle calls for {_printable(refusal)}; only plain containers and numpy arrays are "
            "read. Use a file of a source you trust, saved again without that object"
        ) from None
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; data.train_infos and data.val_infos name the info files, which "
            "tpvformer data infos makes from nuScenes' tables"
        ) from None
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror}); expected an info pickle") from err
    except _BROKEN as err:
        what = _printable(err) or type(err).__name__
        raise DataError(f"{path}: not a readable pickle ({what}); make or copy the file again") from err
