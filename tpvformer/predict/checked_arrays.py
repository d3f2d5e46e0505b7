"""Read the arrays of an archive, which may be a stranger's: each is checked for its kind, shape and range."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence

from tpvformer.data.types import DataError  # and PyTorch, before OpenCV: see "static TLS" in docs/ascend.md

# isort: split
import cv2
import numpy as np

from tpvformer.data.images.header import declared_size, too_large
from tpvformer.data.images.jpeg_scans import too_many_scans
from tpvformer.predict.published_labels import KNOWN
from tpvformer.untrusted.memory_budget import memory_budget
from tpvformer.untrusted.numpy_files import DAMAGED, damage

MAX_BYTES = 1 << 29  # of all arrays: a small file may unpack to large ones
_EXPECTED = f"expected an archive that tpvformer predict wrote, {KNOWN}"
_KINDS = {"text": "U", "whole numbers": "iu", "numbers": "iuf"}


def load_arrays(path: Path) -> Dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name. Raises DataError for a file that is damaged or too large."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(one.file_size for one in archive.infolist())
        if size > MAX_BYTES:
            raise DataError(f"{path}: unpacks to more than {MAX_BYTES >> 20} MB; {_EXPECTED}")
        with memory_budget(path.stat().st_size), np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except DAMAGED as err:
        if isinstance(err, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({damage(err)}); {_EXPECTED}") from err
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}  # others are bytes


class CheckedArrays:
    """Arrays of one file, taken by name. Every method raises DataError for an array that does not fit."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        self.path, self._arrays = path, arrays

    def maybe(self, name: str, kind: str, shape: Sequence[Optional[int]]) -> Optional[np.ndarray]:
        """Return an array, or None where the file has none of this name."""
        return self.take(name, kind, shape) if name in self._arrays else None

    def take(
        self,
        name: str,
        kind: str,
        shape: Sequence[Optional[int]],
        default: Optional[np.ndarray] = None,
        required: bool = False,
        unknown: bool = False,
    ) -> np.ndarray:
        """Return an array; None in ``shape`` allows any length, ``unknown`` allows NaN."""
        if name not in self._arrays:
            if required or default is None:
                raise DataError(f"{self.path}: has no array {name!r}; {_EXPECTED}")
            return default
        array = self._arrays[name]
        fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape))
        if not fits or array.dtype.kind not in _KINDS[kind]:
            wanted = tuple("any" if n is None else n for n in shape)
            raise DataError(
                f"{self.path}: {name} is {array.dtype} of shape {array.shape}; expected {kind} of shape {wanted}"
            )
        if array.dtype.kind == "f" and not (np.isfinite(array) | (np.isnan(array) & unknown)).all():
            raise DataError(f"{self.path}: {name} holds numbers that are not finite; make the file again")
        if array.dtype.kind in "iu" and kind == "whole numbers" and name != "number" and array.size:
            low, high = int(array.min()), int(array.max())
            if low < 0 or high > 65535 or (high > 255 and name != "scanned" and name != "image_sizes"):
                raise DataError(f"{self.path}: {name} holds {low} to {high}; expected classes, 0 to 255")
        return array

    def text(self, name: str, default: str) -> str:
        """Return a text, its first 200 characters."""
        return str(self.take(name, "text", (), np.array(default)))[:200]


def jpeg_width(data: np.ndarray) -> int:
    """Return the width in pixels of a JPEG; 0 for bytes that cannot be decoded as one."""
    content = data.tobytes()
    size = declared_size(content) if content[:2] == b"\xff\xd8" else None
    if size is None or too_large(size, len(content)) or too_many_scans(content):
        return 0
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # more pixels than it takes
        return 0
    return 0 if picture is None else picture.shape[1]
