"""Read pickles that hold containers, numbers, text and numpy arrays, and nothing else.

A pickle is a program: whoever opens it runs it. Info files come from strangers, so the only callables a file may name
are the handful below; the first other name stops the reading before anything of the file has been called with it.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, Dict, Tuple, Union

from tpvformer.errors import DataError
from tpvformer.files import to_path
from tpvformer.untrusted.memory_budget import memory_budget
from tpvformer.untrusted.pickle_arrays import Callables, Refused, numpy_names
from tpvformer.untrusted.pickle_scan import check_hashes, scan

_GZIP = b"\x1f\x8b"  # the first bytes of a file that gzip wrote
_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    MemoryError,  # a damaged length asks for more than there is
    RecursionError,
)  # fmt: skip


def _latin1_bytes(text: Any, encoding: Any = None) -> bytes:
    # Protocols 0 to 2 write bytes as _codecs.encode(text, "latin1"). A codec name from the file would import a module.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"_codecs.encode with {encoding!r}")
    return text.encode("latin-1")


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:  # a number would make as many
        raise Refused("bytes() with arguments")
    return b""


def _bytearray(data: Any = b"", encoding: Any = "latin-1") -> bytearray:
    return bytearray(data if isinstance(data, bytes) else _latin1_bytes(data, encoding))


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise Refused("a complex number of other parts than two numbers")
    return complex(real, imaginary)


def _of_list(kind: type) -> Callables:
    def make(values: Any = ()) -> Any:
        if not isinstance(values, (list, tuple)):
            raise Refused(f"a {kind.__name__} of something else than a list")
        check_hashes(values)
        return kind(values)

    return Callables(make)


_ALLOWED: Dict[Tuple[str, str], Any] = {**numpy_names(), ("_codecs", "encode"): Callables(_latin1_bytes)}
for _module in ("builtins", "__builtin__"):
    _ALLOWED[_module, "bytes"], _ALLOWED[_module, "bytearray"] = Callables(_no_bytes), Callables(_bytearray)
    _ALLOWED[_module, "complex"] = Callables(_complex)
    for _type in (set, frozenset):
        _ALLOWED[_module, _type.__name__] = _of_list(_type)


class _Restricted(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise Refused(f"{module_name}.{global_name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a persistent id")


def _printable(err: BaseException) -> str:
    """Return a quote of a damaged file as printable text on one line."""
    return "".join(c if c.isprintable() else "?" for c in str(err))[:160]


def _compressed(path: Path) -> str:
    name = path.name[: -len(".gz")] if path.suffix.lower() == ".gz" else f"{path.stem}.unpacked.pkl"
    return (
        f"{path}: is compressed with gzip, which is not read; expected the info pickle itself: unpack it "
        f"(gunzip < {path.name} > {name}) and name {name}"
    )


def load_pickle(path: Union[str, Path]) -> Any:
    """Load the object stored in ``path``, made of dict, list, tuple, set, numbers, text, bytes and numpy values.

    Raises DataError where the file is missing, is no pickle, names anything else (nothing of it is then executed),
    holds arrays of other than plain numbers and text, or nests or repeats itself beyond what infos need
    (untrusted/pickle_scan.py looks before anything is built).
    """
    try:
        file_path = to_path(path)
        with file_path.open("rb") as file, memory_budget(file_path.stat().st_size):
            data = file.read()
        if data.startswith(_GZIP):
            raise DataError(_compressed(file_path))
        scan(data)  # outside of the budget, which would count what compiling takes
        with memory_budget(len(data)):
            return _Restricted(io.BytesIO(data)).load()
    except Refused as refusal:
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
        if isinstance(err, DataError):
            raise
        what = _printable(err) or type(err).__name__
        raise DataError(f"{path}: not a readable pickle ({what}); make or copy the file again") from err
