"""A PyTorch archive is looked through before PyTorch opens it: sizes that are declared against bytes that are there.

``torch.load`` believes what an archive says: it unpacks a megabyte of compressed zeros to gigabytes, and where a tensor
reaches beyond its storage it enlarges the storage with memory that nobody filled. Here the archive's pickle is read
with stand-ins: nothing of it is called, and every tensor is compared with the bytes of its storage.
"""

from __future__ import annotations

import collections
import io
import mmap
import pickle
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

from tpvformer.compat.errors import CheckpointError
from tpvformer.guard.pickle_scan import ScanError, check_hashes, scan

LARGEST_PICKLE = 2**27  # bytes; ours take 0.3 MB, and tensors lie outside of it
_SIZES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1,
}  # fmt: skip
_DTYPES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex128": 16, "complex64": 8, "uint16": 2, "uint32": 4, "uint64": 8, "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}  # fmt: skip
_NOT_DENSE = (
    "_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_nested_tensor", "_rebuild_wrapper_subclass",
    "_rebuild_meta_tensor_no_storage", "_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor",
    "_rebuild_from_type_v2", "_rebuild_parameter_with_state",
)  # fmt: skip
_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    RecursionError,
)  # fmt: skip


class _Refused(Exception):
    """What is wrong with an archive, as a part of a sentence."""


class _Storage(NamedTuple):
    bytes: int


class _Anything:
    """Stands for whatever PyTorch itself will look at; does nothing, keeps nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any) -> _Anything:
        return _Anything()

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def update(self, _: Any) -> None:
        pass


class _Width:
    """A class of storages or a dtype: bytes an element."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __setstate__(self, _: Any) -> None:
        raise _Refused("it changes a type of PyTorch")


class _Call:
    """A function that a pickle may call here."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *arguments: Any) -> Any:
        return self._run(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise _Refused("it changes a function")


class _Reader(pickle.Unpickler):
    """Builds the archive's content out of plain values and stand-ins, and checks each tensor as it comes."""

    def __init__(self, data: Any, storage: Callable[[Any], _Storage]) -> None:
        super().__init__(io.BytesIO(data))
        self._storage = storage

    def persistent_load(self, pid: Any) -> Any:
        return self._storage(pid)

    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name.endswith("Storage") and module_name.split(".")[0] == "torch":
            size = _SIZES.get(global_name[: -len("Storage")])
            if size is None:
                raise _Refused(f"it has storages of the kind {global_name}")
            return _Width(size)
        if module_name == "torch" and global_name in _DTYPES:
            return _Width(_DTYPES[global_name])
        if module_name == "torch._utils" and global_name in _NOT_DENSE:
            raise _Refused(f"it has a tensor of {global_name}")
        known = {
            ("torch._utils", "_rebuild_tensor"): _Call(_tensor),
            ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
            ("torch._utils", "_rebuild_tensor_v3"): _Call(_tensor_3),
            ("torch._utils", "_rebuild_parameter"): _Call(lambda tensor, *_: tensor),
            ("collections", "OrderedDict"): _Call(_ordered),
            ("collections", "Counter"): _Call(_keyed),
            ("builtins", "set"): _Call(_keyed),
            ("__builtin__", "set"): _Call(_keyed),
            ("torch", "Size"): _Call(lambda sides=(): tuple(sides)),
            ("builtins", "bytearray"): _Call(_bytearray),
            ("__builtin__", "bytearray"): _Call(_bytearray),
        }
        return known.get((module_name, global_name)) or _Anything


def _ordered(*pairs: Any) -> Any:
    check_hashes(key for key, _ in (pairs[0] if pairs and isinstance(pairs[0], (list, tuple)) else ()))
    return collections.OrderedDict(*pairs)


def _keyed(*keys: Any) -> Any:
    """A set, or a Counter of a list or dict."""
    check_hashes(keys[0] if keys and isinstance(keys[0], (list, tuple)) else ())
    return _Anything()


def _bytearray(*arguments: Any) -> Any:
    if any(isinstance(argument, int) for argument in arguments):
        raise _Refused("it asks for a bytearray without content")
    return _Anything()


def _tensor_3(storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any) -> Any:
    width = dtype.size if isinstance(dtype, _Width) else 1
    return _tensor((storage[0] if isinstance(storage, tuple) else storage, width), offset, size, stride)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    """Raises _Refused where the tensor has places outside of its storage, or more elements than that."""
    found, width = storage if isinstance(storage, tuple) and len(storage) == 2 else (None, 0)
    if not isinstance(found, _Storage):
        raise _Refused("it has a tensor without a storage")
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or len(size) > 64 or not all(type(n) is int and n >= 0 for n in numbers):
        raise _Refused(f"it has a tensor of shape {str(tuple(size))[:60]} and strides {str(tuple(stride))[:60]}")
    elements, last = 1, offset
    for n, step in zip(size, stride):
        elements *= n
        last += (n - 1) * step
    there = found.bytes // width
    if elements and (last >= there or elements > there):
        raise _Refused(
            f"it has a tensor of shape {str(tuple(size))[:60]} that reaches to element {last} of a storage of {there}"
        )
    return _Anything()


def check_archive(file: Path) -> None:
    """Raises CheckpointError for an archive that is larger inside than outside, nests or repeats itself without end, or
    has tensors that are not plain ones within their storages.

    What is no archive at all passes; that is for ``torch.load`` to say.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
        if start == b"PK\x03\x04":
            _check_zip(file)
        elif start[:1] == b"\x80":
            _check_legacy(file)
    except _Refused as refusal:
        raise CheckpointError(f"{file}: refused, {refusal}; save it again as a plain state dict of tensors") from None
    except ScanError as err:
        raise CheckpointError(
            f"{file}: not a readable PyTorch checkpoint of tensors, {err}; it is damaged, cut short or of another kind"
        ) from err
    except (*_BROKEN, zipfile.BadZipFile, NotImplementedError, OSError) as err:
        raise CheckpointError(
            f"{file}: not a readable PyTorch checkpoint of tensors; it is damaged, cut short or of another kind"
        ) from err


def _check_zip(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        entries: Dict[str, zipfile.ZipInfo] = {}
        total = 0
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise _Refused(f"its part {entry.filename[:80]!r} is compressed, which PyTorch never writes")
            if entries.setdefault(entry.filename, entry) is not entry:
                raise _Refused(f"it has two parts {entry.filename[:80]!r}")
            total += entry.file_size
        if total > file.stat().st_size:
            raise _Refused(f"its parts have {total} bytes together, more than the file")
        name = next((name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if name is None:
            return
        if entries[name].file_size > LARGEST_PICKLE:
            raise _Refused(f"its part {name[:80]!r} has {entries[name].file_size} bytes")
        content = archive.read(name)
    folder = name[: -len("data.pkl")] + "data/"

    def storage(pid: Any) -> Tuple[_Storage, int]:
        _, kind, key, _, count = pid if isinstance(pid, tuple) and len(pid) == 5 else (None,) * 5
        entry = entries.get(f"{folder}{key}") if isinstance(key, str) else None
        if not isinstance(key, str) or entry is None or not isinstance(kind, _Width) or type(count) is not int:
            raise _Refused("it names a storage that it does not have")
        if count < 0 or count * kind.size != entry.file_size:
            raise _Refused(f"its storage {key[:40]!r} has {entry.file_size} bytes for {count} elements of {kind.size}")
        return _Storage(entry.file_size), kind.size

    scan(content)
    _Reader(content, storage).load()  # ty: ignore[invalid-argument-type]


def _check_legacy(file: Path) -> None:
    """The format before PyTorch 1.6: three small pickles, the content, the keys of the storages, and their bytes."""
    size = file.stat().st_size
    declared: Dict[Any, int] = {}

    def storage(pid: Any) -> Tuple[_Storage, int]:
        pid = tuple(pid) if isinstance(pid, (tuple, list)) else ()
        name, kind, key, _, count, view = pid if len(pid) == 6 else (None,) * 6
        if name != "storage" or not isinstance(kind, _Width) or type(count) is not int or count < 0:
            raise _Refused("it names a storage of another kind")
        first, length = 0, count
        if view is not None:
            _, first, length = view
        if type(first) is not int or type(length) is not int or first < 0 or length < 0 or first + length > count:
            raise _Refused("it has a view outside of its storage")
        declared[str(key)] = count * kind.size
        if sum(declared.values()) > size:
            raise _Refused(f"its storages have {sum(declared.values())} bytes together, more than the file")
        return _Storage(length * kind.size), kind.size

    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        at = 0
        for _ in range(5):
            with memoryview(mapped) as whole, whole[at : at + LARGEST_PICKLE] as rest:
                end = at + scan(rest, compiled=False).end
            _Reader(mapped[at:end], storage).load()  # ty: ignore[invalid-argument-type]
            at = end


def first_not_plain(content: Any) -> Optional[str]:
    """The place of the first tensor that is not dense and on the CPU; None where all are. ``content`` is bounded."""
    import torch

    waiting = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
                return name
        elif isinstance(value, dict):
            waiting += [(str(key), inner) for key, inner in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(name, inner) for inner in value]
    return None
