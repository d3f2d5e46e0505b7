"""Names that numpy had in 2022 and removed in 1.24 and 2.0, as far as they are other names of something."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np

from tpvformer.engine.foreign.remarks import remark

_PLAIN = ("int", "float", "bool", "object", "complex", "str")  # Python's own, until 1.24
_RENAMED = {
    "float_": "float64", "complex_": "complex128", "string_": "bytes_", "unicode_": "str_", "Inf": "inf",
    "Infinity": "inf", "infty": "inf", "NaN": "nan", "NAN": "nan", "PINF": "inf", "product": "prod",
    "cumproduct": "cumprod", "sometrue": "any", "alltrue": "all", "row_stack": "vstack", "in1d": "isin",
    "trapz": "trapezoid", "round_": "round", "mat": "asmatrix", "longfloat": "longdouble", "singlecomplex": "complex64",
}  # fmt: skip


def restore_numpy_names() -> None:
    """Let numpy answer for removed names; those that it has keep their meaning. A second call changes nothing."""
    ask = np.__dict__.get("__getattr__")
    if getattr(ask, "restores", False):
        return

    def find(name: str) -> Any:
        if name in _PLAIN:
            value = getattr(builtins, name)
        elif name in _RENAMED and hasattr(np, _RENAMED[name]):
            value = getattr(np, _RENAMED[name])
        elif ask is None:
            raise AttributeError(f"module 'numpy' has no attribute {name!r}")
        else:
            return ask(name)
        remark(f"np.{name} is not in numpy {np.__version__}; {_successor(name)} takes its place")
        setattr(np, name, value)
        return value

    find.restores = True  # ty: ignore[missing-attribute]
    np.__dict__["__getattr__"] = find


def _successor(name: str) -> str:
    return f"Python's {name}" if name in _PLAIN else f"np.{_RENAMED[name]}"
