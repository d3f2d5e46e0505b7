"""Find faults in a JPEG's scans (its coded pixels) without decoding them.

A decoder goes over all pixels once a scan, and a scan of a progressive file may have ten bytes: 1000 scans of 8000x8000
pixels, 0.5 MB, took 38 s. Zeros that took the place of a few coded blocks decode without a warning where as many blocks
come out: in a scan whose shortest code of coefficients is not "the rest of this block is 0", zeros are blocks in which
every coefficient is the same negative number. No camera's picture has that.
"""

from __future__ import annotations

import re
from typing import Dict, Iterator, NamedTuple

MOST_SCANS = 100  # of one file; encoders write 1 to 20
HOLE = 48  # zero bytes: more bits than a block takes in which each of 63 coefficients has three
_SCANS = re.compile(rb"\xff\xda\x00")  # a scan's header has 8 to 14 bytes
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # none of those that lie within a scan's data
_FRAMES, _SEQUENTIAL = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC))), (0xC0, 0xC1)
_TABLES, _SCAN, _END, _BARE = 0xC4, 0xDA, 0xD9, (0x01, 0xD8)


class _Part(NamedTuple):
    """Hold a marker and its segment."""

    marker: int
    content: bytes
    end: int  # where the content ends; after a scan's header its coded pixels begin


def too_many_scans(data: bytes) -> str:
    """Return why a JPEG with too many scans is refused; empty if it is accepted, and for other formats."""
    if data[:2] != b"\xff\xd8" or len(_SCANS.findall(data)) <= MOST_SCANS:
        return ""
    scans = 0
    for part in _parts(data):  # most of those found may lie in a comment
        scans += part.marker == _SCAN
        if scans > MOST_SCANS:
            return f"has more than {MOST_SCANS} scans of its pixels; expected 1 to 20"
    return ""


def hole(data: bytes) -> int:
    """Return the offset of zeros that cannot be coded pixels; -1 if there are none.

    Looks at sequential JPEGs with Huffman codes, as cameras write them; finds HOLE bytes and more.
    """
    zeros = bytes(HOLE)
    if data[:2] != b"\xff\xd8" or data.find(zeros) < 0:
        return -1
    shortest: Dict[int, int] = {}  # what the code of zeros stands for in each table of coefficients
    sequential = False
    for part in _parts(data):
        if part.marker == _TABLES:
            shortest.update(_shortest(part.content))
        elif part.marker in _FRAMES:
            sequential = part.marker in _SEQUENTIAL
        elif part.marker == _SCAN and sequential and part.content:
            tables = part.content[2 : 1 + 2 * part.content[0] : 2]
            following = _MARKER.search(data, part.end)
            at = data.find(zeros, part.end, following.start() if following else len(data))
            if at >= 0 and any(shortest.get(table & 15) for table in tables):
                return at
    return -1


def _parts(data: bytes) -> Iterator[_Part]:
    """Return the marked segments up to the end of the image, in the order of a decoder."""
    at = 2
    while True:
        found = _MARKER.search(data, at)
        if found is None or data[found.start() + 1] == _END:
            return
        marker, at = data[found.start() + 1], found.end()
        if marker not in _BARE:
            length = max(int.from_bytes(data[at : at + 2], "big"), 2)
            at += length
            yield _Part(marker, data[at - length + 2 : at], at)


def _shortest(content: bytes) -> Dict[int, int]:
    """Of each table of coefficients its first value, to which the code of zeros belongs. 0: the rest of a block."""
    found, at = {}, 0
    while at + 17 < len(content):
        kind, values = content[at], sum(content[at + 1 : at + 17])
        if kind >> 4 == 1 and values:
            found[kind & 15] = content[at + 17]
        at += 17 + values
    return found
