"""The values of a PyTorch archive's pickle: plain values, tensors of checked bytes, placeholders for all others."""

from __future__ import annotations

import collections
import io
import pickle
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from tpvformer.compat.inert import Inert, StandIns, new, whole_name
from tpvformer.untrusted.names import shown
from tpvformer.untrusted.pickle_scan import check_hashes

_KINDS = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexDouble": "complex128",
    "ComplexFloat": "complex64", "Untyped": "uint8",
}  # fmt: skip
_DTYPES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex128": 16, "complex64": 8, "uint16": 2, "uint32": 4, "uint64": 8, "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}  # fmt: skip
_NOT_DENSE = (
    "_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_nested_tensor", "_rebuild_wrapper_subclass",
    "_rebuild_meta_tensor_no_storage", "_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor",
    "_rebuild_from_type_v2",
)  # fmt: skip


class Refused(Exception):
    """An archive is refused; the message is the reason, as a clause of a sentence."""


class _Fixed:
    """An object that a pickle may refer to but not change."""

    def __setstate__(self, _: Any) -> None:
        raise Refused("it changes a type, a function or a tensor of PyTorch")


class Type(_Fixed):
    """A storage class or a dtype: its name and the bytes of an element."""

    def __init__(self, name: str) -> None:
        self.name, self.size = name, _DTYPES[name]

    def dtype(self) -> torch.dtype:
        found = getattr(torch, self.name, None)
        if found is None:
            raise Refused(f"it has tensors of {self.name}, which this PyTorch does not know")
        assert isinstance(found, torch.dtype)
        return found


class _Call(_Fixed):
    """A function that a pickle may call here."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *arguments: Any) -> Any:
        return self._run(*arguments)


class _Made(_Fixed):
    """A finished tensor, which the rest of the pickle cannot change; ``finished`` unwraps it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _alone(keys: Any) -> Any:
    """Return the keys of a set. Raises ScanError where too many have the same hash."""
    check_hashes(keys)
    return keys


def _pairs(entries: Any) -> Any:
    """Return the entries of a dict, given as pairs or as a dict. Raises ScanError where too many keys have one hash."""
    if not isinstance(entries, dict):
        check_hashes(key for key, _ in entries)
    return entries


class _Ordered(collections.OrderedDict):
    """An OrderedDict, as PyTorch's state dicts are; attributes that are stored with it are dropped."""

    def __setstate__(self, _: Any) -> None:
        pass


class Storage(NamedTuple):
    """Elements ``first`` to ``first + length``, all of one type, of the bytes that ``raw()`` returns."""

    raw: Callable[[], Tensor]
    type: Type
    first: int
    length: int


class Reader(pickle.Unpickler):
    """Unpickle the archive's content to plain values, tensors and placeholders, and check each tensor."""

    def __init__(self, data: Any, storage: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="replace")
        self._storage = storage
        self._stand_ins = StandIns()
        self._known = {
            "torch._utils._rebuild_tensor": _Call(_tensor),
            "torch._utils._rebuild_tensor_v2": _Call(_tensor),
            "torch._utils._rebuild_tensor_v3": _Call(_tensor_3),
            "torch._utils._rebuild_parameter": _Call(lambda tensor, *_: tensor),
            "torch._utils._rebuild_parameter_with_state": _Call(lambda tensor, *_: tensor),
            "torch.Size": _Call(lambda sides=(): tuple(sides)),
            "collections.OrderedDict": _Call(lambda entries=(): _Ordered(_pairs(entries))),
            "collections.defaultdict": _Call(lambda *_: {}),
            "collections.Counter": _Call(lambda counts=(): dict(_pairs(counts))),
            "builtins.set": _Call(lambda entries=(): set(_alone(entries))),
            "builtins.frozenset": _Call(lambda entries=(): frozenset(_alone(entries))),
            "builtins.list": _Call(lambda entries=(): list(entries)),
            "builtins.tuple": _Call(lambda entries=(): tuple(entries)),
            "builtins.dict": _Call(lambda entries=(): dict(_pairs(entries))),
            "builtins.bytearray": _Call(_bytearray),
            "builtins.getattr": _Call(self._stand_ins.attribute),
            "copyreg._reconstructor": _Call(StandIns.instance),
            "copyreg.__newobj__": _Call(StandIns.instance),
            "copyreg.__newobj_ex__": _Call(StandIns.instance),
        }

    def persistent_load(self, pid: Any) -> Any:
        return self._storage(pid)

    def find_class(self, module_name: str, global_name: str) -> Any:
        module, name = whole_name(module_name, global_name)
        if name.endswith("Storage") and module.split(".")[0] == "torch":
            kind = _KINDS.get(name[: -len("Storage")])
            if kind is None:
                raise Refused(f"it has storages of the kind {shown(name)[:80]}")
            return Type(kind)
        if module == "torch" and name in _DTYPES:
            return Type(name)
        if module in ("torch._utils", "torch._tensor") and name in _NOT_DENSE:
            raise Refused(f"it has a tensor of {name}")
        return self._known.get(f"{module}.{name}") or self._stand_ins.named(f"{module}.{name}")


def _bytearray(*arguments: Any) -> Any:
    if any(isinstance(argument, int) for argument in arguments):
        raise Refused("it asks for a bytearray without content")
    return new(Inert)


def _tensor_3(storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *more: Any) -> Any:
    if isinstance(storage, Storage) and isinstance(dtype, Type):
        wide = dtype.size // storage.type.size
        if wide < 1 or storage.first % wide:
            raise Refused("it has a tensor of smaller elements than its storage")
        storage = storage._replace(type=dtype, first=storage.first // wide, length=storage.length // wide)
    return _tensor(storage, offset, size, stride, False, None, *more)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> _Made:
    """Build a tensor on its storage.

    Raises Refused where it reaches beyond its storage, has more elements than that, or is a lazy conjugate or negative.
    """
    if not isinstance(storage, Storage):
        raise Refused("it has a tensor without a storage")
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or len(size) > 64 or not all(type(n) is int and n >= 0 for n in numbers):
        raise Refused(f"it has a tensor of shape {str(tuple(size))[:60]} and strides {str(tuple(stride))[:60]}")
    if any(more[2:]):  # flags of a lazy conjugate or negative
        raise Refused("it has a tensor that is to be changed when it is read")
    elements, last = 1, offset
    for n, step in zip(size, stride):
        elements *= n
        last += (n - 1) * step
    there = storage.length
    if elements and (last >= there or elements > there):
        raise Refused(
            f"it has a tensor of shape {str(tuple(size))[:60]} that reaches to element {last} of a storage of {there}"
        )
    made = torch.empty(0, dtype=storage.type.dtype())
    try:
        if elements == 0:
            return _Made(made.new_empty(tuple(size)))
        place = storage.first + offset
        return _Made(made.set_(storage.raw().untyped_storage(), place, tuple(size), tuple(stride)))
    except RuntimeError:  # an empty tensor with a side that is too large for PyTorch
        raise Refused(f"it has a tensor of shape {str(tuple(size))[:60]}") from None


def finished(content: Any) -> Any:
    """Return the content with tensors, dtypes and OrderedDicts for ``_Made``, ``Type`` and ``_Ordered``."""
    seen: Dict[int, Tuple[Any, Any]] = {}  # by id; the first of a pair keeps its object alive, so that ids are unique

    def finish(value: Any) -> Any:
        if isinstance(value, _Made):
            return value.tensor
        if isinstance(value, Type):
            return value.dtype()
        if not isinstance(value, (dict, list, tuple)):
            return value
        if id(value) not in seen:
            seen[id(value)] = (value, value)
            if isinstance(value, _Ordered):
                seen[id(value)] = (value, collections.OrderedDict((key, finish(inner)) for key, inner in value.items()))
            elif isinstance(value, dict):
                for key, inner in list(value.items()):
                    dict.__setitem__(value, key, finish(inner))
            elif isinstance(value, list):
                value[:] = [finish(inner) for inner in value]
            else:
                seen[id(value)] = (value, tuple(finish(inner) for inner in value))
        return seen[id(value)][1]

    return finish(content)


def not_a_dictionary(content: Any) -> Optional[str]:
    """Describe a content that is no dictionary, for a message; None for a dictionary."""
    if isinstance(content, Inert) and not content:
        return (
            f"holds a whole object of {content.origin}, of which nothing is run; expected a dictionary of tensors, "
            "save model.state_dict() with the program that wrote it"
        )
    if isinstance(content, type):
        return f"holds the class or function {content!r}; expected a dictionary of tensors"
    if not isinstance(content, dict):
        return f"holds a {type(content).__name__}; expected a dictionary of tensors"
    return None
