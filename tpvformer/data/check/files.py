"""Check single files: quickly by size, head and end, or by reading all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Tuple

import numpy as np

from tpvformer.data.images.decode import read_images
from tpvformer.data.images.header import orientation
from tpvformer.data.nuscenes.reader import SCAN_COLUMNS, read_labels
from tpvformer.data.scans.layout import layout_problem
from tpvformer.data.scans.read import read_cloud
from tpvformer.errors import DataError

_HEAD = 64 * 1024  # bytes in which a JPEG names its size, unless somebody put a picture into its comments
_TAIL = 1024
POINT_BYTES = 4 * SCAN_COLUMNS
_POINTS_LOOKED_AT = 4000  # of a scan that is not read whole
RAW_CLASSES = 32


def image_fault(
    path: Path, token: str, size: Tuple[int, int], whole: bool, source: str = "its row in sample_data"
) -> Optional[str]:
    """What is wrong with a camera image, None where nothing is. ``size`` is (width, height) by ``source``, (0, 0) where
    that gives none. ``whole`` decodes it; else a JPEG's head and end are looked at."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            length = file.seek(0, 2)
            file.seek(max(0, length - _TAIL))
            tail = file.read()
    except OSError as err:
        return f"sample {token}: {path} cannot be read ({err.strerror}); copy it again"
    found = jpeg_size(head)
    if found is not None and b"\xff\xd9" not in tail:
        return f"sample {token}: {path} is no whole image ({length} bytes, no end marker); copy the file again"
    if whole or found is None or orientation(head) > 1:
        try:
            _, height, width, _ = read_images([path], token).shape
        except DataError as err:
            return str(err)
        found = (width, height)
    if any(size) and found != size:
        return (
            f"sample {token}: {path} is {found[0]}x{found[1]} pixels, {source} says {size[0]}x{size[1]}; "
            "the intrinsics belong to the latter, so restore the original image"
        )
    return None


def jpeg_size(head: bytes) -> Optional[Tuple[int, int]]:
    """(width, height) that a JPEG's frame header names; None where there is none in these bytes."""
    if head[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        kind = head[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame, not tables
            height, width = int.from_bytes(head[at + 5 : at + 7], "big"), int.from_bytes(head[at + 7 : at + 9], "big")
            return (width, height) if width and height else None
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def scan_fault(path: Path, token: str, whole: bool) -> Optional[str]:
    """What is wrong with a lidar file; ``whole`` reads all of it, else its beginning tells whether it has the layout of
    nuScenes."""
    try:
        size = path.stat().st_size
        if whole or size == 0 or size % POINT_BYTES:
            lost = read_cloud(path, token).lost
            if lost:
                return (
                    f"sample {token}: {path} holds {lost} points whose coordinates are not finite numbers, which no "
                    "scan of nuScenes has; copy the file again"
                )
        elif path.suffix == ".bin":
            with path.open("rb") as file:
                numbers = np.frombuffer(file.read(_POINTS_LOOKED_AT * POINT_BYTES), "<f4")
            problem = layout_problem(numbers, None)
            return f"sample {token}: {path}: {problem}" if problem else None
    except OSError as err:
        return f"sample {token}: {path} cannot be read ({err.strerror}); copy it again"
    except DataError as err:
        return str(err)
    return None


def label_fault(path: Path, scan: Path, token: str, whole: bool) -> Optional[str]:
    """Return the fault of a label file; ``whole`` also looks at every label."""
    try:
        points = scan.stat().st_size // POINT_BYTES
        if whole or path.suffix == ".npz" or path.stat().st_size != points:
            read_labels(path, scan, token, points, RAW_CLASSES)
    except OSError as err:
        return f"sample {token}: {err.filename} cannot be read ({err.strerror}); copy it again"
    except DataError as err:
        return str(err)
    return None
