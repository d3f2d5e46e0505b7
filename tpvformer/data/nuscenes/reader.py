"""Read nuScenes' images, lidar scans and lidarseg labels that the records of an info file name."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from torch import Tensor

from tpvformer.data.images.decode import Size
from tpvformer.data.images.letterbox import placements, read_pictures
from tpvformer.data.nuscenes.infos.read import load_infos
from tpvformer.data.record import Record
from tpvformer.data.scans.layout import USUAL as SCAN_COLUMNS
from tpvformer.data.scans.read import Cloud, read_cloud
from tpvformer.data.types import Frame
from tpvformer.errors import DataError
from tpvformer.files import to_path
from tpvformer.geometry import lidar_to_image
from tpvformer.untrusted.memory_budget import memory_budget
from tpvformer.untrusted.names import short
from tpvformer.untrusted.numpy_files import DAMAGED, damage

__all__ = [
    "SCAN_COLUMNS", "Record", "lidar_to_image", "load_infos", "read_frame", "read_labels", "read_scan", "resolve",
]  # fmt: skip


def resolve(stored: str, root: Union[str, Path], token: str) -> Path:
    """Return the file of an info record: as stored (absolute, or from the working directory), else below ``root``.

    Below ``root`` the part from ``samples/`` or ``sweeps/`` on is tried, then every ending of the path, the longest
    first and the bare file name last. Raises DataError.
    """
    found = _found(stored, root, token)
    if found is not None:
        return found
    below = ", ".join(str(to_path(root, *part)) for part in _endings(stored)[:2])
    raise DataError(
        f"sample {token}: {stored} is missing; looked for {stored}, {below} and shorter endings of it there. "
        f"Set data.root ({root}) to the folder that holds samples/, or complete the download"
    )


def _found(stored: str, root: Union[str, Path], token: str) -> Optional[Path]:
    """Resolve a file as ``resolve`` does, but return None if it is missing."""
    _refuse_another_machine(stored, root, token)
    if to_path(stored).is_file():
        return to_path(stored)
    for parts in _endings(stored):
        path = to_path(root, *parts)
        if path.is_file():
            return path
    return None


def _endings(stored: str) -> List[Tuple[str, ...]]:
    """Where a file may lie below the root: from samples/ or sweeps/ on, then all endings that do not lead upwards."""
    parts = Path(stored).parts
    starts = [i for i, part in enumerate(parts) if part in ("samples", "sweeps")]
    upwards = [i + 1 for i, part in enumerate(parts) if part == ".."]
    drive = bool(parts) and (Path(stored).is_absolute() or parts[0].endswith(":"))  # of Windows, or a URL's scheme
    first = max([int(drive), *upwards])
    return [parts[i:] for i in (*starts[-1:], *range(first, len(parts)))]


def _refuse_another_machine(stored: str, root: Union[str, Path], token: str) -> None:
    """Raises DataError for a URL that does not begin with the storage of data.root, which the user has typed."""
    if "://" not in stored:
        return
    scheme, _, rest = str(root).partition("://")
    if not rest or not stored.startswith(f"{scheme}://{rest.split('/')[0]}/"):
        raise DataError(
            f"sample {token}: its record names {short(stored)}, another storage than data.root ({root}), which is not "
            "asked unless you say so; set data.root to a URL there"
        )


def read_frame(
    record: Record,
    root: Union[str, Path],
    label_file: Optional[str],
    to_class: Sequence[int],
    pictures: Callable[[Sequence[Path], str, Sequence[Size]], Tensor] = read_pictures,
    require_scan: bool = True,
) -> Frame:
    """Read the frame of one sample. ``label_file`` is relative to ``root``; None leaves all labels 0.
    A record without lidar has no points; nor has, without ``require_scan``, an info record whose scan is absent or
    empty. Points whose coordinates are not finite, and their labels, are left out and counted, but refused where
    nuScenes' tables have labels of them. Cameras of different
    sizes are placed on canvases of one size (letterbox.py).

    ``to_class`` gives the class of each raw label; ``pictures`` reads images as ``read_pictures`` does. Raises
    DataError for a missing, short or unreadable file.
    """
    cloud = Cloud(np.empty((0, 3), np.float32), None)
    no_scan = "" if record.rig else _no_scan(record, root, require_scan)
    if record.scan and not no_scan:
        scan = _file_of(record, record.scan, root)
        cloud = read_cloud(scan, record.token, record.scan_columns)
    labels = np.zeros(len(cloud.points), np.uint8)
    if label_file is not None and record.scan and not no_scan:
        if cloud.lost and not record.rig:
            raise DataError(
                f"sample {record.token}: {scan} holds {cloud.lost} points whose coordinates are not finite numbers, "
                "which no labelled scan of nuScenes has; copy the file again"
            )
        file = to_path(label_file) if record.rig else to_path(root, label_file)
        raw = read_labels(file, scan, record.token, len(labels) + cloud.lost, len(to_class))
        labels = np.asarray(to_class, np.uint8)[raw if cloud.kept is None else raw[cloud.kept]]
    paths = [_file_of(record, path, root) for path in record.images]
    _refuse_twice(record, paths)
    images = pictures(paths, record.token, record.sizes)
    lidar2img, inner = record.lidar2img, []
    if len(set(record.sizes)) > 1:
        to_canvas, inner = placements(record.sizes)
        lidar2img = to_canvas @ lidar2img
    return Frame(
        record.token,
        images,
        list(record.camera_names),
        lidar2img,
        cloud.points,
        labels,
        record.lidar2ego,
        camera_slots=record.slots,
        inner=inner,
        lost_points=cloud.lost,
        no_scan=no_scan,
    )


def _no_scan(record: Record, root: Union[str, Path], require: bool) -> str:
    """Why an info record's sample has no points, empty where it has; without ``require`` for want of its file too."""
    if not record.scan:
        return "its record names no lidar scan"
    if require:
        return ""
    path = _found(record.scan, root, record.token)
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


def read_scan(path: Path, token: str, columns: Optional[int] = None) -> np.ndarray:
    """(P, 3) float32, metres, lidar frame: the points of ``read_cloud``, which says how a file is read."""
    return read_cloud(path, token, columns).points


def _panoptic(path: Path, token: str) -> np.ndarray:
    """(P,) raw classes of nuScenes-panoptic, whose labels are 1000 times the class of nuScenes-lidarseg and the number
    of the object. Raises DataError."""
    try:
        with memory_budget(path.stat().st_size), np.load(BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            labels = np.asarray(stored["data"])
    except DAMAGED as err:
        raise DataError(
            f"sample {token}: {path} is no file of nuScenes-panoptic ({damage(err)}); copy it again"
        ) from err
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels.size and not labels.min() >= 0):
        raise DataError(
            f"sample {token}: {path} holds {labels.dtype} of shape {labels.shape}; expected a label a point"
        )
    return np.minimum(labels // 1000, 255).astype(np.uint8)


def read_labels(path: Path, scan: Path, token: str, points: int, classes: int) -> np.ndarray:
    """(P,) uint8 raw classes, one for each of the ``points`` of ``scan``; raises DataError where they do not fit."""
    if not path.is_file():
        raise DataError(
            f"sample {token}: label file {path} is missing; put it there (nuScenes-lidarseg into data.root)"
        )
    raw = _panoptic(path, token) if path.suffix == ".npz" else np.frombuffer(path.read_bytes(), np.uint8)
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
