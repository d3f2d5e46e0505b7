"""Decode the camera images of a sample into one array, in shared memory inside loader workers.

simplejpeg decodes JPEGs if it is installed: libjpeg-turbo with the exact transform and up-sampling gives the same bytes
as OpenCV's decoder in less time. Its warnings (data missing, left over or out of order) count as faults, because the
pixels after such a place are wrong. OpenCV decodes other formats and colours and hides such warnings. All JPEGs are
searched for zeros in place of coded pixels (jpeg_scans.py).
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Optional, Sequence, Tuple

import torch  # before OpenCV: see "static TLS" in docs/ascend.md
from torch import Tensor
from torch.utils.data import get_worker_info

# isort: split
import cv2
import numpy as np

from tpvformer.data.images.header import declared_size, orientation, too_large
from tpvformer.data.images.jpeg_scans import hole, too_many_scans
from tpvformer.errors import DataError
from tpvformer.untrusted.kinds import HEAD, kind_of

try:
    import simplejpeg

    FAST = True
except ImportError:
    FAST = False  # OpenCV decodes everything


Size = Tuple[int, int]  # width, height


def read_images(paths: Sequence[Path], token: str, sizes: Sequence[Size] = ()) -> Tensor:
    """Read the images of one sample, (N, H, W, 3) uint8 BGR. ``sizes`` are the expected sizes.

    Grey images are accepted, and a constant alpha channel is dropped. Raises DataError for a file
    that is not a complete 8-bit image, and for images of different or unexpected sizes.
    """
    out = torch.empty(0)
    for i, path in enumerate(paths):
        data = path.read_bytes()
        _check_header(data, path, token, sizes[i] if sizes else None)
        shape, image = _jpeg_shape(data), None
        if shape is None:
            image = _opencv(data, path, token)
            shape = image.shape
        if sizes:
            _check_size(path, token, shape, sizes[i])
        if i == 0:
            out = alloc_images((len(paths), *shape))
        if out.shape[1:] != shape:
            found = sorted({tuple(out.shape[1:]), shape})
            raise DataError(
                f"sample {token}: the cameras' images have different sizes {found}; one size is expected, so rescale "
                "the images and their intrinsics to it, or describe the cameras in a rig file (docs/rig.md)"
            )
        if image is None:
            _simplejpeg(data, out[i].numpy(), path, token)
        else:
            out[i] = torch.from_numpy(image)
    return out


def read_image(path: Path, token: str, size: Optional[Size] = None) -> np.ndarray:
    """Read one image, (H, W, 3) uint8 BGR; check its size if ``size`` is given.

    Raises DataError as ``read_images`` does."""
    data = path.read_bytes()
    _check_header(data, path, token, size)
    shape = _jpeg_shape(data)
    image = _opencv(data, path, token) if shape is None else np.empty(shape, np.uint8)
    if size is not None:
        _check_size(path, token, image.shape, size)
    if shape is not None:
        _simplejpeg(data, image, path, token)
    return image


def _check_header(data: bytes, path: Path, token: str, size: Optional[Size]) -> None:
    """Raises DataError for a file whose header asks for more memory than an image may take, before any is taken."""
    declared = declared_size(data)
    _refuse_turned(data, path, token)
    if declared is None:
        _refuse_other_kinds(data, path, token)
        if _is_whole(data):
            raise DataError(
                f"sample {token}: {path} is no whole image ({len(data)} bytes); expected a JPEG or PNG, copy the file "
                "again"
            )
        return
    if size is not None:
        _check_size(path, token, declared[::-1], size)
    problem = too_large(declared, len(data)) or too_many_scans(data)
    if problem:
        raise DataError(f"sample {token}: {path} {problem}; copy the file again")
    zeros = hole(data)
    if zeros >= 0:
        raise DataError(
            f"sample {token}: {path} is damaged (zeros from byte {zeros} on, where its pixels should be); copy the "
            "file again"
        )


def _refuse_other_kinds(data: bytes, path: Path, token: str) -> None:
    """Raises DataError for a video, a recording or another file that is named in place of an image."""
    kind = kind_of(path, data[:HEAD])
    if not kind or kind in ("an image", "a JPEG image", "a PNG image"):
        return
    if "image" in kind:
        raise DataError(f"sample {token}: {path} is {kind}; expected a JPEG, PNG or BMP: write it as one of these")
    mend = "write its frames as images (ffmpeg, cv2.VideoCapture)" if "video" in kind else "name the camera's image"
    raise DataError(f"sample {token}: {path} is no whole image, but {kind}; expected a JPEG or PNG: {mend}")


def _refuse_turned(data: bytes, path: Path, token: str) -> None:
    """Raises DataError for a JPEG that viewers and cv2.imread turn before they show it: calibrations are of either."""
    turn = orientation(data)
    if turn > 1:
        raise DataError(
            f"sample {token}: {path} is stored turned or mirrored (EXIF orientation {turn}), so its calibration may be "
            "that of the image as stored or as shown; write it upright without that entry"
        )


def _check_size(path: Path, token: str, shape: Sequence[int], size: Size) -> None:
    if (shape[1], shape[0]) != size:
        raise DataError(
            f"sample {token}: {path} is {shape[1]}x{shape[0]} pixels, but its camera is said to have "
            f"{size[0]}x{size[1]}, to which the intrinsics belong; restore the image, or correct size and intrinsics"
        )


def alloc_images(shape: Tuple[int, ...]) -> Tensor:
    """Allocate memory for a sample's images; in a loader worker it is shared with the training process."""
    room = torch.empty(shape, dtype=torch.uint8)
    return room if get_worker_info() is None else room.share_memory_()


def _is_whole(data: bytes) -> bool:
    """Check a JPEG for its end marker: a truncated JPEG still decodes, to grey below the cut."""
    return bool(data) and (data[:2] != b"\xff\xd8" or b"\xff\xd9" in data[-1024:])


def _jpeg_shape(data: bytes) -> Optional[Tuple[int, int, int]]:
    """Return (height, width, 3) of an ordinary colour JPEG; None if OpenCV has to decode the file."""
    if not FAST or not _is_whole(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (int(height), int(width), 3) if colours == "YCbCr" else None


def _simplejpeg(data: bytes, out: np.ndarray, path: Path, token: str) -> None:
    """Decode into out (H, W, 3). Raises DataError for any fault in the file, however small."""
    try:
        simplejpeg.decode_jpeg(data, "BGR", fastdct=False, fastupsample=False, buffer=out)
    except ValueError as err:
        raise DataError(
            f"sample {token}: {path} is damaged ({' '.join(str(err).split())}); copy the file again"
        ) from err


@functools.lru_cache(maxsize=None)
def _say_what_is_missed() -> None:
    logging.getLogger(__name__).warning(
        "simplejpeg is not installed, so OpenCV decodes JPEGs: of files that are damaged within, it notices those that "
        "are cut short or have zeros in place of pixels, no others; pip install simplejpeg"
    )


def _opencv(data: bytes, path: Path, token: str) -> np.ndarray:
    worker = get_worker_info()
    if not FAST and data[:2] == b"\xff\xd8" and (worker is None or worker.id == 0):
        _say_what_is_missed()
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if _is_whole(data) else None
    except cv2.error:  # more pixels than it takes
        image = None
    if image is None:
        raise DataError(f"sample {token}: {path} is no whole image ({len(data)} bytes); copy the file again")
    try:
        return three_channels(image)
    except ValueError as err:
        raise DataError(f"sample {token}: {path} {err}") from err


def three_channels(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) of an image uint8 (H, W, 3), (H, W, 4) with one alpha everywhere, (H, W) or (H, W, 1), whose grey then
    stands for all three. Raises ValueError that says what it is instead."""
    channels = 1 if image.ndim == 2 else image.shape[2] if image.ndim == 3 else 0
    if channels not in (1, 3, 4) or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"is {image.dtype} {image.shape}; expected an 8-bit colour image, write it as one")
    if channels == 4:
        alpha = image[:, :, 3]
        if alpha.min() != alpha.max():
            raise ValueError(
                f"is transparent in places (alpha {alpha.min()} to {alpha.max()}), so its colours are not all of what "
                "the camera saw; expected an opaque image, write it without alpha"
            )
        return np.ascontiguousarray(image[:, :, :3])
    return image if channels == 3 else np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
