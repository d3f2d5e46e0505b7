"""nuScenes from the disk: images, LiDAR scans and their lidarseg labels, found by the records of an info file."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Optional, Sequence, Union

import numpy as np
from torch import Tensor

from tpvformer.data.images import read_images
from tpvformer.data.infos.geometry import lidar_to_image
from tpvformer.data.infos.read import Record, load_infos
from tpvformer.data.storage import place
from tpvformer.data.types import DataError, Frame

__all__ = ["Record", "lidar_to_image", "load_infos", "read_frame", "read_labels", "read_scan", "resolve"]

SCAN_COLUMNS = 5  # x, y, z (metres, LiDAR frame), intensity, ring


def resolve(stored: str, root: Union[str, Path], token: str) -> Path:
    """The file an info record names: as stored (absolute, or from the working directory), else below ``root``.

    Below ``root`` the part from ``samples/`` or ``sweeps/`` on is tried, then the bare file name. Raises DataError.
    """
    parts = Path(stored).parts
    tried = [place(stored)]
    starts = [i for i, part in enumerate(parts) if part in ("samples", "sweeps")]
    if starts:
        tried.append(place(root, *parts[starts[-1] :]))
    tried.append(place(root, parts[-1] if parts else ""))
    for path in tried:
        if path.is_file():
            return path
    raise DataError(
        f"sample {token}: {stored} is missing; looked for {', '.join(map(str, tried))}. "
        f"Set data.root ({root}) to the folder that holds samples/, or complete the download"
    )


def read_frame(
    record: Record,
    root: Union[str, Path],
    label_file: Optional[str],
    to_class: Sequence[int],
    pictures: Callable[[Sequence[Path], str], Tensor] = read_images,
) -> Frame:
    """Everything of one sample. ``label_file`` is relative to ``root``; None leaves all labels 0.
    A record without LiDAR has no points.

    ``to_class`` gives the class of each raw label; ``pictures`` reads images as ``read_images`` does. Raises DataError
    for a missing, short or unreadable file.
    """
    points = np.empty((0, 3), np.float32)
    if record.scan:
        scan = resolve(record.scan, root, record.token)
        points = read_scan(scan, record.token)
    labels = np.zeros(len(points), np.uint8)
    if label_file is not None and record.scan:
        raw = read_labels(place(root, label_file), scan, record.token, len(points), len(to_class))
        labels = np.asarray(to_class, np.uint8)[raw]
    images = pictures([resolve(path, root, record.token) for path in record.images], record.token)
    return Frame(record.token, images, list(record.camera_names), record.lidar2img, points, labels, record.lidar2ego)


def read_scan(path: Path, token: str) -> np.ndarray:
    """(P, 3) float32, metres, LiDAR frame; raises DataError for a file that is cut short or holds no numbers."""
    size = path.stat().st_size
    if size == 0 or size % (4 * SCAN_COLUMNS):
        raise DataError(
            f"sample {token}: {path} has {size} bytes; expected a multiple of {4 * SCAN_COLUMNS} (float32 x, y, z, "
            "intensity, ring), so the file is cut short: copy it again"
        )
    points = np.frombuffer(path.read_bytes(), "<f4").reshape(-1, SCAN_COLUMNS)[:, :3]
    if not np.isfinite(points).all():
        raise DataError(f"sample {token}: {path} holds coordinates that are not finite numbers; copy the file again")
    return np.ascontiguousarray(points, np.float32)


def read_labels(path: Path, scan: Path, token: str, points: int, classes: int) -> np.ndarray:
    """(P,) uint8 raw classes, one for each of the ``points`` of ``scan``; raises DataError where they do not fit."""
    if not path.is_file():
        raise DataError(f"sample {token}: label file {path} is missing; unpack nuScenes-lidarseg into data.root")
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    if len(raw) != points:
        raise DataError(
            f"sample {token}: {path} holds {len(raw)} labels for the {points} points of {scan}; expected one byte a "
            "point, so one of the two files is cut short or belongs to another scan: copy both again"
        )
    if raw.max() >= classes:
        raise DataError(
            f"sample {token}: {path} holds label {raw.max()}; expected 0 to {classes - 1}, the raw classes of "
            "nuScenes-lidarseg under the configured data.label_map"
        )
    return raw
