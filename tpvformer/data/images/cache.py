"""Cache decoded images on disk, because reading 26 MB takes less time than decoding six JPEGs.

Each sample has one ``.npy`` file (N, H, W, 3) uint8. The file name depends on the paths, sizes and times of the JPEGs,
so a changed JPEG is decoded again. Files are written atomically and end with the CRC-32 of their pixels; truncated or
changed files are rewritten. The pixels equal the decoder's bit by bit: training with and without a cache is the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from torch import Tensor

from tpvformer.data.images.decode import Size, alloc_images
from tpvformer.data.images.letterbox import read_pictures
from tpvformer.errors import ConfigError
from tpvformer.untrusted.numpy_files import DAMAGED

SPARE = 0.05  # of the file system stays free
_SUM = 4  # bytes of the checksum


class ImageCache:
    """Cache images; ``read`` replaces ``read_pictures`` and is safe for any number of processes."""

    def __init__(self, folder: str) -> None:
        """Create the folder. Raises ConfigError if that fails."""
        self._folder, self._full = Path(folder), False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise ConfigError(
                f"data.image_cache is {folder}, which cannot be made ({err.strerror}); name a folder of yours"
            ) from err

    def read(self, paths: Sequence[Path], token: str, sizes: Sequence[Size] = ()) -> Tensor:
        """Return the images of one sample, (N, H, W, 3) uint8 BGR. Raises DataError, as ``read_pictures`` does."""
        file = self._folder / self._name(paths, sizes)
        images = _load(file)
        if images is None:
            images = read_pictures(paths, token, sizes)
            self._store(file, images.numpy())
        return images

    def _name(self, paths: Sequence[Path], sizes: Sequence[Size]) -> str:
        digest = hashlib.sha256(repr(tuple(sizes)).encode() if sizes else b"")
        for path in paths:
            found = path.stat()
            digest.update(f"{path}\0{found.st_size}\0{getattr(found, 'st_mtime', 0)}\0".encode())
        return f"{digest.hexdigest()[:40]}.npy"

    def _store(self, file: Path, images: np.ndarray) -> None:
        if self._full:
            return
        partial = file.with_name(f".{file.stem}.{os.getpid()}.partial")
        try:
            total, _, free = shutil.disk_usage(self._folder)
            if free - images.nbytes < SPARE * total:
                raise OSError(f"less than {SPARE:.0%} of the file system would stay free")
            with partial.open("wb") as out:
                np.save(out, images, allow_pickle=False)
                out.write(_sum(images))
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, file)
        except OSError as err:
            self._full = True
            logging.getLogger(__name__).warning(
                "image cache %s takes no more images: %s; the rest is decoded each time", self._folder, err
            )
        finally:
            partial.unlink(missing_ok=True)


def _load(file: Path) -> Optional[Tensor]:
    """Load the cached images; None if the file is missing or incomplete."""
    try:
        with file.open("rb") as stored:
            if np.lib.format.read_magic(stored) != (1, 0):
                return None
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stored)
            size = os.fstat(stored.fileno()).st_size - stored.tell() - _SUM
            if len(shape) != 4 or fortran or dtype != np.uint8 or size != np.prod(shape):
                return None
            images = alloc_images(shape)
            if stored.readinto(memoryview(images.numpy()).cast("B")) != size:
                return None
            if stored.read(_SUM) == _sum(images.numpy()):
                return images
    except DAMAGED:
        return None
    logging.getLogger(__name__).warning("%s in the image cache is damaged; its images are decoded anew", file)
    return None


def _sum(images: np.ndarray) -> bytes:
    """Return the checksum that is stored at the end of a file."""
    return zlib.crc32(images.data).to_bytes(_SUM, "little")
