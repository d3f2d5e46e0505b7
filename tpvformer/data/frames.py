"""Read a frame: ``read_frame`` returns the images, points and labels of a record, whatever its format."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from tpvformer.data.images.decode import Size
from tpvformer.data.images.letterbox import on_canvas, placements, read_pictures
from tpvformer.data.nuscenes.reader import classes_in, find_file, read_labels, resolve
from tpvformer.data.record import Record
from tpvformer.data.scans.read import Cloud, read_cloud
from tpvformer.data.semantickitti import crop
from tpvformer.data.types import Frame
from tpvformer.data.windows import grid2global
from tpvformer.errors import DataError
from tpvformer.files import to_path

Pictures = Callable[[Sequence[Path], str, Sequence[Size]], Tensor]
_NO_POINTS = np.empty((0, 3), np.float32)


def read_frame(
    record: Record,
    root: Union[str, Path] = "",
    label_file: Optional[str] = None,
    to_class: Sequence[int] = (),
    pictures: Pictures = read_pictures,
    require_scan: bool = True,
) -> Frame:
    """Return the frame of a record, which nothing changes afterwards: whoever needs another makes a copy of it.

    ``label_file`` is relative to ``root``; None leaves all labels 0. ``to_class`` gives the class of each raw label;
    ``pictures`` reads images as ``read_pictures`` does. A record without lidar has no points; nor has, without
    ``require_scan``, an info record whose scan is absent or empty. Points whose coordinates are not finite, and their
    labels, are left out and counted; where nuScenes' tables have labels of them, they are refused. Cameras of different
    sizes are brought to one canvas (images/letterbox.py). Raises DataError for a missing, short or unreadable file.
    """
    cloud, labels, no_scan = _points(record, root, label_file, to_class, require_scan)
    images, lidar2img, valid_sizes = read_views(record, root, pictures)
    return Frame(
        record.token,
        images,
        list(record.camera_names),
        lidar2img,
        cloud.points,
        labels,
        record.lidar2ego,
        camera_slots=record.slots,
        valid_sizes=valid_sizes,
        lost_points=cloud.lost,
        boxes=record.boxes,
        no_scan=no_scan,
        scene=record.scene,
        timestamp=record.timestamp,
        lidar2global=grid2global(record, "lidar"),
    )


def read_classes(record: Record, root: Union[str, Path], label_file: str, to_class: Sequence[int]) -> np.ndarray:
    """Return the classes of a record's points, sorted; arguments as for ``read_frame``. Only the labels are read."""
    raw = classes_in(_label_path(record, root, label_file), record.token, len(to_class))
    return np.unique(np.asarray(to_class, np.int64)[raw])


def _label_path(record: Record, root: Union[str, Path], label_file: str) -> Path:
    return to_path(label_file) if record.rig else to_path(root, label_file)


def read_views(
    record: Record, root: Union[str, Path], pictures: Pictures
) -> Tuple[Tensor, np.ndarray, Sequence[Tuple[int, int]]]:
    """Return images (N, H, W, 3), lidar2img (N, 4, 4) and valid sizes of a record, as ``Frame`` holds them."""
    images = _images(record, root, pictures)
    if len(set(record.sizes)) <= 1:
        return images, record.lidar2img, []
    to_canvas, valid_sizes = placements(record.sizes)
    return images, to_canvas @ record.lidar2img, valid_sizes


def _points(
    record: Record, root: Union[str, Path], label_file: Optional[str], to_class: Sequence[int], require_scan: bool
) -> Tuple[Cloud, np.ndarray, str]:
    """Return points, the class of each (P,) uint8, and why an info record's sample has none."""
    cloud = Cloud(_NO_POINTS if record.held is None else record.held.points, None)
    no_scan = "" if record.rig else _no_scan(record, root, require_scan)
    if not record.scan or no_scan:
        return cloud, np.zeros(len(cloud.points), np.uint8), no_scan
    scan = _file_of(record, record.scan, root)
    cloud = read_cloud(scan, record.token, record.scan_columns)
    if label_file is None:
        return cloud, np.zeros(len(cloud.points), np.uint8), no_scan
    if cloud.lost and not record.rig:
        raise DataError(
            f"sample {record.token}: {scan} holds {cloud.lost} points whose coordinates are not finite numbers, "
            "which no labelled scan of nuScenes has; copy the file again"
        )
    file = _label_path(record, root, label_file)
    raw = read_labels(file, scan, record.token, len(cloud.points) + cloud.lost, len(to_class))
    return cloud, np.asarray(to_class, np.uint8)[raw if cloud.kept is None else raw[cloud.kept]], no_scan


def _images(record: Record, root: Union[str, Path], pictures: Pictures) -> Tensor:
    """Return the images of all cameras, (N, H, W, 3) uint8 BGR."""
    if record.held is not None:
        alike = len(set(record.sizes)) <= 1
        return torch.from_numpy(np.stack(record.held.images)) if alike else on_canvas(record.held.images, record.sizes)
    paths = [_file_of(record, path, root) for path in record.images]
    _refuse_twice(record, paths)
    images = pictures(paths, record.token, record.sizes)
    return images if record.crop is None else crop(images, record.token, record.crop)


def _no_scan(record: Record, root: Union[str, Path], require: bool) -> str:
    """Why an info record's sample has no points, empty where it has; without ``require`` for want of its file too."""
    if not record.scan:
        return "its record names no lidar scan"
    if require:
        return ""
    path = find_file(record.scan, root, record.token)
    if path is None:
        return f"its lidar scan {record.scan} is missing"
    return "" if path.stat().st_size else f"its lidar scan {path} is empty"


def _refuse_twice(record: Record, paths: Sequence[Path]) -> None:
    """Raises DataError where two images that the record tells apart are one file below data.root."""
    first: Dict[Path, int] = {}
    for i, path in enumerate(paths):
        k = first.setdefault(path, i)
        if record.images[k] != record.images[i]:
            one, other = (f"{record.camera_names[n]} ({record.images[n]})" for n in (k, i))
            raise DataError(
                f"sample {record.token}: {path} would be the image of both {one} and {other}; put each camera's images "
                "where the record names them, below data.root"
            )


def _file_of(record: Record, stored: str, root: Union[str, Path]) -> Path:
    """A file of the record; one that a rig file names lies where that says, and nowhere else."""
    if not record.rig:
        return resolve(stored, root, record.token)
    path = to_path(stored)
    if not path.is_file():
        raise DataError(f"sample {record.token}: {stored} is missing; correct its path in {record.rig} or put it there")
    return path
