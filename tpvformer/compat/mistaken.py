"""Recognising files that are not weights: a web page instead of a download, a Git LFS pointer, a compressed file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, List, Optional

_FETCH = "download the file itself, with the address of its data and logged in where that is asked for"
_STARTS = (
    (b"version https://git-lfs", "a pointer of Git LFS; run git lfs pull where it lies, or download the file itself"),
    (b"\x1f\x8b", "packed by gzip; unpack it first"),
    (b"BZh", "packed by bzip2; unpack it first"),
    (b"\xfd7zXZ\x00", "packed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed by Zstandard; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras); expected weights of PyTorch"),
)
_READ = 1000  # bytes


def mistaken_for_weights(file: Path) -> Optional[str]:
    """Describe a file that is not weights, by its first bytes, with the remedy; None where it may be weights.

    Raises OSError where it cannot be read.
    """
    with file.open("rb") as opened:
        start = opened.read(_READ)
    if not start:
        return "is empty (0 bytes); download or copy it again"
    for mark, name in _STARTS:
        if start.startswith(mark):
            return f"is {name}"
    if start[257:262] == b"ustar":
        return "is a tar archive; unpack it first"
    text = start[:-3] if len(start) == _READ else start  # the last bytes may be a part of a UTF-8 character
    try:
        words = text.decode("utf-8-sig").lstrip().lower()
    except UnicodeDecodeError:
        return None
    if re.match(r"<(!doctype html|html|head|!--)", words):
        return f"is a web page and no weights; {_FETCH}"
    if words.startswith(("<?xml", "<error")) or _is_answer(words):
        return f"is a server's answer in text and no weights; {_FETCH}"
    return None if re.search(r"[\x00-\x08\x0e-\x1f\x7f]", words) else "is text and no weights"


def _is_answer(words: str) -> bool:
    try:
        return isinstance(json.loads(words), (dict, list))
    except ValueError:
        return False


def is_safetensors(file: Path) -> bool:
    """Tell whether a file begins like safetensors: the length of the header, then its brace. Raises OSError."""
    with file.open("rb") as opened:
        start = opened.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size


def packed_in(names: List[str]) -> Optional[str]:
    """Describe a zip file that is no PyTorch archive, by the names of its parts; None where they are not recognised."""
    if names and all(name.endswith(".npy") for name in names):
        return "holds NumPy arrays (.npz); expected tensors of PyTorch"
    weights = [name for name in names if name.endswith((".pth", ".pt", ".ckpt", ".bin", ".safetensors"))]
    return f"is a zip archive that holds {weights[0][:80]!r}; unpack it first" if weights else None


def entries_of(content: Any) -> str:
    """Describe a dictionary without weights by its keys."""
    if not content:
        return "it is empty"
    keys = [str(key)[:40] for key in content][:6]
    if {"state", "param_groups"} <= set(content) or set(content) & {"optimizer", "optimizer_state_dict"}:
        return f"it holds an optimizer's state ({', '.join(keys)}) and no weights"
    return f"it holds {', '.join(keys)}{', ...' if len(content) > len(keys) else ''} and no tensors under names"
