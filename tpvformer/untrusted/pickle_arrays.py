"""NumPy's values in a restricted pickle: dtypes of plain numbers and text alone, arrays from bytes of the right number.

NumPy's own functions trust what a pickle tells them: a dtype's state may call bytes pointers to Python objects. So the
names that NumPy writes stand for the classes and functions below, and no real dtype is ever set up from a file.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Tuple

import numpy as np

_CODE = re.compile(r"[biufc](1|2|4|8|16)|[SU]\d{1,6}")
_MOST_SIDES = 32
_EMPTY_STATE = (None, None, None)  # sub-array, names, fields of a plain dtype


class Refused(Exception):
    """Carries what is refused out of the unpickler."""


class Callables:
    """A function that a pickle may call, and nothing else: it cannot be changed, nor set up anew."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        object.__setattr__(self, "_run", run)

    def __call__(self, *arguments: Any) -> Any:
        return self._run(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("a change of the reader itself")

    def __setstate__(self, state: Any) -> None:
        raise Refused("a change of the reader itself")


class _Marker:
    """Stands for a class that is only named, as ``numpy.ndarray`` is."""

    __slots__ = ()

    def __call__(self, *_: Any) -> Any:
        raise Refused("numpy.ndarray, which makes arrays of memory that nobody filled")


class PlainDtype:
    """A dtype as a pickle describes it; ``found`` is a real one, made by its code and byte order alone."""

    __slots__ = ("_found",)

    def __init__(self, code: Any = None, *_: Any) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise Refused(f"a dtype {code!r}")
        try:
            object.__setattr__(self, "_found", np.dtype(code))
        except TypeError:
            raise Refused(f"a dtype {code!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("a change of a dtype")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or not 5 <= len(state) <= 9 or state[1] not in ("<", ">", "|", "="):
            raise Refused("a dtype with a state of another kind")
        if tuple(state[2:5]) != _EMPTY_STATE or (len(state) == 9 and state[8] is not None):
            raise Refused("a dtype with fields, sub-arrays or notes")
        object.__setattr__(self, "_found", self._found.newbyteorder(state[1]))

    def __reduce__(self) -> Any:
        return np.dtype, (self._found,)

    @property
    def found(self) -> np.dtype:
        return self._found


class PlainArray(np.ndarray):
    """An array whose state is looked at before NumPy takes it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or self.shape != (0,):
            raise Refused("an array with a state of another kind")
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):
            data = data.encode("latin-1")
        made = _array(data, dtype, shape)
        super().__setstate__((1, shape, made, fortran is True or fortran == 1, bytes(data)))  # ty: ignore

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()


def _array(data: Any, dtype: Any, shape: Any) -> np.dtype:
    """The dtype of an array whose bytes, dtype and shape agree. Raises Refused."""
    if not isinstance(dtype, PlainDtype) or not isinstance(data, (bytes, bytearray)):
        raise Refused("an array of objects or of a dtype that is none")
    if not isinstance(shape, tuple) or len(shape) > _MOST_SIDES:
        raise Refused("an array with a shape of another kind")
    size = dtype.found.itemsize
    for side in shape:
        if type(side) is not int or side < 0:
            raise Refused(f"an array of shape {str(shape)[:60]}")
        size *= side
    if size != len(data):
        raise Refused(f"an array {dtype.found} of shape {str(shape)[:60]} in {len(data)} bytes")
    return dtype.found


def _rebuild(kind: Any, shape: Any = (0,), _: Any = b"b") -> np.ndarray:
    if not isinstance(kind, _Marker) or shape != (0,):
        raise Refused("an array of another kind")
    return np.ndarray.__new__(PlainArray, (0,), np.int8)


def _scalar(dtype: Any, data: Any = None) -> Any:
    if isinstance(data, str):
        data = data.encode("latin-1")
    found = _array(data, dtype, ())
    return np.frombuffer(bytes(data), found)[0] if found.itemsize else found.type()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> np.ndarray:
    found = _array(data, dtype, shape)
    made = np.frombuffer(bytes(data), found) if found.itemsize else np.zeros(int(np.prod(shape)), found)
    if axes is not None:
        return made.reshape(shape).transpose(axes).copy()
    if order not in ("C", "F"):
        raise Refused(f"an array in the order {order!r}")
    return made.reshape(shape, order=order).copy(order)


def numpy_names() -> Dict[Tuple[str, str], Any]:
    """What NumPy's names in a pickle stand for; they moved from numpy.core to numpy._core in 2.0."""
    table: Dict[Tuple[str, str], Any] = {("numpy", "ndarray"): _Marker(), ("numpy", "dtype"): Callables(PlainDtype)}
    for core in ("numpy.core", "numpy._core"):
        table[core + ".multiarray", "_reconstruct"] = Callables(_rebuild)
        table[core + ".multiarray", "scalar"] = Callables(_scalar)
        table[core + ".numeric", "_frombuffer"] = Callables(_from_buffer)
    return table
