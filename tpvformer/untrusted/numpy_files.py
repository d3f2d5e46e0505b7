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


def damage(err: Exception) -> str:
    """What such an error says, on one line. NumPy's own text about Python objects and what is no file of its advises to
    read them with pickle, which runs whatever is inside, and is replaced."""
    text = " ".join((getattr(err, "strerror", None) or str(err) or type(err).__name__).split())
    if "allow_pickle=" in text or "pickle" in text:
        return "it is no file of NumPy's, or holds Python objects, which are never read"
    return text
