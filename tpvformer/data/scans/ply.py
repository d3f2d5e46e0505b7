"""Read the vertices of PLY files as points: ascii, binary_little_endian and binary_big_endian."""

from __future__ import annotations

from typing import Any, List, NamedTuple, Tuple

import numpy as np

from tpvformer.data.scans.text import columns_of

_LONGEST_HEADER = 64 * 1024  # bytes
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


class _Header(NamedTuple):
    kind: str
    points: int
    properties: List[Tuple[str, str]]  # of a vertex: name and type of PLY
    length: int  # bytes


def read_ply(data: bytes) -> np.ndarray:
    """Return the properties x, y, z of the vertices as (P, 3) float64. Raises ValueError with the problem."""
    header = _header(data)
    body, names = data[header.length :], [name for name, _ in header.properties]
    if header.kind == "ascii":
        lines = [line for line in body.split(b"\n") if line.strip()]
        if len(lines) < header.points:
            raise ValueError(f"holds {len(lines)} of the {header.points} vertices that its header names: copy it again")
        return columns_of(lines[: header.points], [names.index(name) for name in "xyz"], len(names))
    order = _ORDERS[header.kind]
    dtype = np.dtype([(name, order + _TYPES[kind]) for name, kind in header.properties])
    if len(body) < header.points * dtype.itemsize:
        raise ValueError(
            f"holds {len(body)} of the {header.points * dtype.itemsize} bytes of vertices that its header names, so it "
            "is cut short: copy it again"
        )
    rows: Any = np.frombuffer(body, dtype, header.points)
    with np.errstate(invalid="ignore"):  # NaN of a kind that signals
        return np.stack([rows[name].astype(np.float64) for name in "xyz"], axis=1)


def _header(data: bytes) -> _Header:
    stop = data.find(b"end_header", 0, _LONGEST_HEADER)
    end = data.find(b"\n", stop)
    if stop < 0 or end < 0:
        raise ValueError("its header has no line end_header")
    kind, points, element = "", 0, ""
    properties: List[Tuple[str, str]] = []
    for line in data[:stop].decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1:
            kind = words[1]
        elif words[:1] == ["element"] and len(words) == 3:
            if not element and words[1] != "vertex":
                raise ValueError(f"its first element is {words[1][:40]}; expected vertex")
            element = words[1]
            points = _count(words[2]) if element == "vertex" else points
        elif words[:1] == ["property"] and element == "vertex":
            if len(words) != 3 or words[1] not in _TYPES or words[2] in dict(properties):
                raise ValueError(f"a vertex has the property {' '.join(words[1:])[:60]}; expected a number of its own")
            properties.append((words[2], words[1]))
    if kind not in _ORDERS:
        raise ValueError(f"its format is {kind[:40] or 'not named'}; known are {', '.join(_ORDERS)}")
    lost = [name for name in "xyz" if name not in dict(properties)]
    if lost:
        raise ValueError(f"its vertices have no property {lost[0]}")
    return _Header(kind, points, [(name, kind) for name, kind in properties], end + 1)


def _count(word: str) -> int:
    if not word.isdigit() or not 1 <= int(word[:20]) <= 2**31:
        raise ValueError(f"its header names {word[:20]} vertices")
    return int(word)
