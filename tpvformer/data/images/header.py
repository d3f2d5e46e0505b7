"""Read the size that an image file declares before decoding it: a header of 30 bytes can ask for 17 GB."""

from __future__ import annotations

import struct
from typing import Optional, Tuple

MOST_PIXELS = 2**26  # of one image; nuScenes' have 1.4 million
# Of the densest JPEG (one colour, one bit a block) a byte holds 341 pixels, of the densest PNG 344.
PIXELS_A_BYTE = 512
_SPARE = 2**16
# of JPEG: beginnings of a frame, which hold its size; markers without a length
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))


def declared_size(data: bytes) -> Optional[Tuple[int, int]]:
    """Return (width, height) from the header of a JPEG, PNG or BMP; None for other or damaged files."""
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return (width, height) if _chunks_fit(data) else None
    if data[:2] == b"BM" and len(data) >= 26:
        width, height = struct.unpack("<ii", data[18:26])
        return (abs(width), abs(height))
    return None


def _chunks_fit(data: bytes) -> bool:
    """Whether a PNG's chunks end within the file: OpenCV takes the memory that a chunk declares before it reads it."""
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        at += 12 + length
        if at > len(data):
            return False
        if name == b"IEND":
            break
    return True


def _jpeg(data: bytes) -> Optional[Tuple[int, int]]:
    """Return the size of the largest JPEG frame: decoders differ in the frame they decode."""
    at, found = 2, None
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            at = data.find(b"\xff", at)
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker in _BARE or marker in (0x00, 0xFF):
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            break
        length = (data[at + 2] << 8) + data[at + 3]
        if marker in _FRAMES and at + 9 <= len(data):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            if found is None or width * height > found[0] * found[1]:
                found = (width, height)
        if marker == 0xDA and found is not None:  # the pictures themselves
            break
        at += 2 + max(length, 2)
    return found


def orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG: 1 upright (also without EXIF), 2 to 8 turned or mirrored."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 4 <= len(data) and data[at] == 0xFF and 0xE0 <= data[at + 1] <= 0xEF:
        length = (data[at + 2] << 8) + data[at + 3]
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return _orientation(data[at + 10 : at + 2 + length])
        at += 2 + max(length, 2)
    return 1


def _orientation(tiff: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    first = struct.unpack(order + "I", tiff[4:8])[0]
    entries = struct.unpack(order + "H", tiff[first : first + 2])[0] if first + 2 <= len(tiff) else 0
    for at in range(first + 2, min(first + 2 + 12 * entries, len(tiff) - 11), 12):
        tag, kind = struct.unpack(order + "HH", tiff[at : at + 4])
        if (tag, kind) == (0x0112, 3):
            value = int(struct.unpack(order + "H", tiff[at + 8 : at + 10])[0])
            return value if 1 <= value <= 8 else 1
    return 1


def too_large(size: Tuple[int, int], length: int) -> str:
    """Return why an image of this size is refused; empty if it is accepted. ``length`` is the file's size in bytes."""
    pixels = size[0] * size[1]
    if pixels > MOST_PIXELS:
        return f"says to have {size[0]}x{size[1]} pixels; expected {MOST_PIXELS} of them at most"
    if pixels > PIXELS_A_BYTE * length + _SPARE:
        return f"says to have {size[0]}x{size[1]} pixels, which its {length} bytes cannot hold"
    return ""
