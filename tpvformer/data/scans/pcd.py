"""Read PCD, the point cloud format of PCL and ROS, versions 0.6 and 0.7: ascii, binary, and binary_compressed.

A header of text lines names the fields of a point, their types and sizes; the line DATA ends it. Compressed data is one
LZF block, ordered by fields: all values of the first field, then all of the second.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple

import numpy as np

from tpvformer.data.scans.text import columns_of

BEGINNINGS = (b"# .PCD", b"VERSION", b"FIELDS")
_LONGEST_HEADER = 64 * 1024  # bytes
_TYPES = {
    ("F", 4): "<f4", ("F", 8): "<f8", ("I", 1): "<i1", ("I", 2): "<i2", ("I", 4): "<i4", ("I", 8): "<i8",
    ("U", 1): "<u1", ("U", 2): "<u2", ("U", 4): "<u4", ("U", 8): "<u8",
}  # fmt: skip


class _Field(NamedTuple):
    name: str
    type: str
    size: int  # bytes of one value
    count: int  # values a point


class _Header(NamedTuple):
    fields: List[_Field]
    points: int
    kind: str
    length: int  # bytes


def read_pcd(data: bytes) -> np.ndarray:
    """Return the fields x, y, z as (P, 3) float64. Raises ValueError with the problem."""
    header = _header(data)
    body, width = data[header.length :], sum(field.size * field.count for field in header.fields)
    if header.kind == "ascii":
        lines = [line for line in body.split(b"\n") if line.strip()]
        if len(lines) < header.points:
            raise ValueError(f"holds {len(lines)} of the {header.points} points that its header names: copy it again")
        places = [_place(header.fields, name, counted=True) for name in "xyz"]
        return columns_of(lines[: header.points], places, sum(field.count for field in header.fields))
    if header.kind == "binary_compressed":
        body = _uncompressed(body, header.points * width)
    if len(body) < header.points * width:
        raise ValueError(
            f"holds {len(body)} of the {header.points * width} bytes of points that its header names, so it is cut "
            "short: copy it again"
        )
    columns = []
    for name in "xyz":
        field = next(field for field in header.fields if field.name == name)
        at = _place(header.fields, name)
        if header.kind == "binary":
            step, start = width, at
        else:
            step, start = field.size, at * header.points
        dtype = np.dtype(_TYPES[field.type, field.size])
        with np.errstate(invalid="ignore"):  # a signalling NaN
            columns.append(np.ndarray((header.points,), dtype, body, start, (step,)).astype(np.float64))
    return np.stack(columns, axis=1)


def _place(fields: List[_Field], name: str, counted: bool = False) -> int:
    """Return the offset of a field in a point, in bytes or, with ``counted``, in values."""
    at = 0
    for field in fields:
        if field.name == name:
            return at
        at += field.count * (1 if counted else field.size)
    raise AssertionError(name)


def _header(data: bytes) -> _Header:
    found: Dict[str, List[str]] = {}
    at = 0
    while "DATA" not in found:
        stop = data.find(b"\n", at, _LONGEST_HEADER)
        if stop < 0:
            raise ValueError("its header has no line DATA")
        words = data[at:stop].decode("ascii", "replace").split()
        at = stop + 1
        if words and not words[0].startswith("#"):
            found[words[0].upper()] = words[1:]
    points, names = _count(found), found.get("FIELDS", found.get("COLUMNS", []))
    try:
        sizes, kinds = [int(word) for word in found["SIZE"]], found["TYPE"]
        counts = [int(word) for word in found.get("COUNT", ["1"] * len(names))]
        kind = found["DATA"][0].lower()
    except (KeyError, ValueError, IndexError):
        raise ValueError("its header lacks SIZE, TYPE or the kind of DATA") from None
    fields = [_Field(*field) for field in zip(names, kinds, sizes, counts)]
    if not len(names) == len(sizes) == len(kinds) == len(counts) or any(
        (field.type, field.size) not in _TYPES or not 1 <= field.count <= 1_000_000 for field in fields
    ):
        raise ValueError("its header's FIELDS, SIZE, TYPE and COUNT do not fit each other")
    for name in "xyz":
        if [field.count for field in fields if field.name == name] != [1]:
            raise ValueError(f"its header names no single field {name} (it has {' '.join(names)[:80]})")
    if kind not in ("ascii", "binary", "binary_compressed"):
        raise ValueError(f"its DATA is {kind[:40]}; known are ascii, binary and binary_compressed")
    return _Header(fields, points, kind, at)


def _count(found: Dict[str, List[str]]) -> int:
    try:
        if "POINTS" in found:
            points = int(found["POINTS"][0])
        else:
            points = int(found["WIDTH"][0]) * int(found.get("HEIGHT", ["1"])[0])
    except (KeyError, ValueError, IndexError):
        raise ValueError("its header lacks POINTS") from None
    if not 1 <= points <= 2**31:
        raise ValueError(f"its header names {points} points")
    return points


def _uncompressed(body: bytes, size: int) -> bytes:
    """Decompress an LZF block: its compressed length, its uncompressed length, its data. Raises ValueError."""
    packed, whole = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
    if whole != size:
        raise ValueError(f"its compressed data says to be of {whole} bytes where its header needs {size}")
    if len(body) < 8 + packed:
        raise ValueError("its compressed data is cut short: copy it again")
    try:
        out = _lzf(body[8 : 8 + packed], size)
    except IndexError:
        out = b""
    if len(out) != size:
        raise ValueError("its compressed data is damaged: copy it again")
    return out


def _lzf(data: bytes, size: int) -> bytes:
    """Decompress LZF data.

    A control byte below 32 is followed by that many literal bytes plus one. Any other begins a copy of earlier output:
    its upper three bits are the length (7: the next byte is added), the other five and the next byte the distance.
    """
    out = bytearray()
    at = 0
    while at < len(data) and len(out) <= size:
        control = data[at]
        at += 1
        if control < 32:
            out += data[at : at + control + 1]
            at += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += data[at]
            at += 1
        start = len(out) - ((control & 31) << 8) - data[at] - 1
        at += 1
        if start < 0:
            return b""
        out += _repeated(out, start, length + 2)
    return bytes(out)


def _repeated(out: bytearray, start: int, length: int) -> bytes:
    piece = bytes(out[start : start + length])
    if len(piece) < length:  # the copy overlaps its own output
        piece = (piece * (length // len(piece) + 1))[:length]
    return piece
