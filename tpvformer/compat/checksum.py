"""A SHA-256 checksum at the end of PyTorch archives, the "seal", which detects damage.

PyTorch stores checksums in its archives but does not compare them when it reads (2.1 and 2.13 alike): a tensor with a
flipped bit is loaded without a warning. The seal is the zip archive's comment, which readers of zip files skip. The
last 64 characters of a sealed file are the SHA-256 of all before them, as ``head -c -64 FILE | sha256sum`` prints it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
from pathlib import Path
from typing import IO, Any, Optional, cast

import torch

from tpvformer.errors import CheckpointError

_SEAL = re.compile(rb"tpvformer step=(\d{12}) sha256=([0-9a-f]{64})")
_DIGEST = 64
_LENGTH = len("tpvformer step= sha256=") + 12 + _DIGEST
_ZIP, _END, _END_LENGTH = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    22,
)  # beginning of a zip file; of its last record, without comment
_PIECE = 2**22


def write_sealed(content: Any, path: Path, step: int) -> None:
    """Save like ``torch.save``, with a seal that contains the number of trained steps, and sync. Raises OSError."""
    with path.open("wb", buffering=0) as raw:
        stream = _Hashing(raw)
        torch.save(content, cast(IO[bytes], stream))
        stream.seal(step)
        os.fsync(raw.fileno())


def sealed_step(path: Path) -> Optional[int]:
    """Return the number of steps in a file's seal, without checking the file; None for a file without a seal."""
    try:
        with path.open("rb") as file:
            seal = _SEAL.fullmatch(_tail(file, _LENGTH))
    except OSError:
        return None
    return None if seal is None else int(seal[1])


def check_seal(path: Path) -> None:
    """Raise CheckpointError where a sealed file does not match its SHA-256, or where a zip file's end is missing.

    Files without a seal (of other programs or older versions) pass, because there is nothing to compare them with.
    """
    with path.open("rb") as file:
        seal = _SEAL.fullmatch(_tail(file, _LENGTH))
        if seal is None:
            end = _tail(file, _END_LENGTH)
            file.seek(0)
            if file.read(len(_ZIP)) != _ZIP or (end.startswith(_END) and end.endswith(b"\0\0")):
                return
            raise CheckpointError(f"{path}: damaged or cut short, its end is not that of a PyTorch archive")
        digest, left = hashlib.sha256(), file.seek(0, io.SEEK_END) - _DIGEST
        file.seek(0)
        while left > 0:
            piece = file.read(min(_PIECE, left))
            if not piece:
                break
            digest.update(piece)
            left -= len(piece)
    if digest.hexdigest().encode() != seal[2]:
        raise CheckpointError(f"{path}: damaged, its content does not have the SHA-256 that was written at its end")


def _tail(file: Any, length: int) -> bytes:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - length))
    return bytes(file.read(length))


class _Hashing:
    """A file object for ``torch.save`` that computes the SHA-256 of what is written.

    An error in ``write`` is kept and raised by ``seal``. Raised in ``write``, it would pass through PyTorch's C++ code,
    which replaces it by another type of error (a full disk is no longer recognised) or ends the process.
    """

    def __init__(self, raw: Any) -> None:
        self._raw, self._digest = raw, hashlib.sha256()
        self._error: Optional[OSError] = None
        self._held = b""  # the last two bytes so far: at the end of the archive, the length of its comment

    def write(self, data: Any) -> int:
        """Write all of ``data`` and return its length; after an error, write nothing more."""
        size, view = len(data), memoryview(self._held + bytes(data) if len(data) < 2 else data).cast("B")
        if size >= 2:
            self._put(self._held)
        self._held = bytes(view[-2:])
        self._put(view[:-2])
        return size

    def flush(self) -> None:
        """Do nothing: only ``_held`` is buffered here."""

    def seal(self, step: int) -> None:
        """Write the seal. Raises the first OSError of any write."""
        self._put(struct.pack("<H", _LENGTH) + f"tpvformer step={step:012d} sha256=".encode())
        self._put(self._digest.hexdigest().encode())
        if self._error is not None:
            raise self._error

    def _put(self, data: Any) -> None:
        self._digest.update(data)
        view = memoryview(data)
        try:
            while len(view) and self._error is None:
                view = view[self._raw.write(view) :]
        except OSError as err:
            self._error = err
