"""What NumPy's readers of ``.npy`` and ``.npz`` raise where a file is damaged: the header of an array is parsed as
Python's literals, a ``.npz`` is a zip archive, and neither says so in errors of its own."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib

DAMAGED = (
    OSError, ValueError, EOFError, TypeError, KeyError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError,
    OverflowError, struct.error, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
)  # fmt: skip
