"""Find the files that records of nuScenes name, and read labels of points."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import List, Optional, Tuple, Union

import numpy as np

from tpvformer.data.record import Record
from tpvformer.data.scans.layout import USUAL as SCAN_COLUMNS
from tpvformer.errors import DataError
from tpvformer.files import to_path
from tpvformer.geometry import lidar_to_image
from tpvformer.untrusted.memory_budget import memory_budget
from tpvformer.untrusted.names import short
from tpvformer.untrusted.numpy_files import DAMAGED, damage

__all__ = ["SCAN_COLUMNS", "Record", "lidar_to_image", "read_labels", "resolve"]


def resolve(stored: str, root: Union[str, Path], token: str) -> Path:
    """Return the file of an info record: as stored (absolute, or from the working directory), else below ``root``.

    Below ``root`` the part from ``samples/`` or ``sweeps/`` on is tried, then every ending of the path, the longest
    first and the bare file name last. Raises DataError.
    """
    found = find_file(stored, root, token)
    if found is not None:
        return found
    below = ", ".join(str(to_path(root, *part)) for part in _endings(stored)[:2])
    raise DataError(
        f"sample {token}: {stored} is missing; looked for {stored}, {below} and shorter endings of it there. "
        f"Set data.root ({root}) to the folder that holds samples/, or complete the download"
    )


def find_file(stored: str, root: Union[str, Path], token: str) -> Optional[Path]:
    """Return what ``resolve`` returns; None where there is no such file."""
    _refuse_another_machine(stored, root, token)
    if to_path(stored).is_file():
        return to_path(stored)
    for parts in _endings(stored):
        path = to_path(root, *parts)
        if path.is_file():
            return path
    return None


def _endings(stored: str) -> List[Tuple[str, ...]]:
    """Return the paths to try below the root: from samples/ or sweeps/ on, then all endings that stay below it."""
    parts = Path(stored).parts
    starts = [i for i, part in enumerate(parts) if part in ("samples", "sweeps")]
    upwards = [i + 1 for i, part in enumerate(parts) if part == ".."]
    drive = bool(parts) and (Path(stored).is_absolute() or parts[0].endswith(":"))  # a drive letter or a URL's scheme
    first = max([int(drive), *upwards])
    return [parts[i:] for i in (*starts[-1:], *range(first, len(parts)))]


def _refuse_another_machine(stored: str, root: Union[str, Path], token: str) -> None:
    """Raise DataError for a URL on another storage than that of data.root, which the user has chosen."""
    if "://" not in stored:
        return
    scheme, _, rest = str(root).partition("://")
    if not rest or not stored.startswith(f"{scheme}://{rest.split('/')[0]}/"):
        raise DataError(
            f"sample {token}: its record names {short(stored)}, another storage than data.root ({root}), which is not "
            "asked unless you say so; set data.root to a URL there"
        )


def _panoptic(path: Path, token: str) -> np.ndarray:
    """Return the raw classes (P,) of a nuScenes-panoptic file. Raises DataError.

    Its labels are 1000 times the raw class of nuScenes-lidarseg plus the number of the object.
    """
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


def _stored_array(data: bytes, path: Path, token: str) -> np.ndarray:
    """Return the raw classes (P,), uint8, of a .npy file. Raises DataError."""
    try:
        with memory_budget(len(data)):
            labels = np.load(BytesIO(data), allow_pickle=False)
    except DAMAGED as err:
        raise DataError(f"sample {token}: {path} is no array file ({damage(err)}); copy it again") from err
    if (
        labels.ndim != 1
        or labels.dtype.kind not in "iu"
        or (labels.size and not 0 <= labels.min() <= labels.max() <= 255)
    ):
        raise DataError(
            f"sample {token}: {path} holds {labels.dtype} of shape {labels.shape}; expected a label of 0 to 255 a point"
        )
    return labels.astype(np.uint8)


def read_labels(path: Path, scan: Path, token: str, points: int, classes: int) -> np.ndarray:
    """Return the raw classes (P,), uint8, of the ``points`` of ``scan``. Raises DataError where they do not match."""
    raw = _raw(path, token)
    if len(raw) != points:
        raise DataError(
            f"sample {token}: {path} holds {len(raw)} labels for the {points} points of {scan}; expected one byte a "
            "point, so one of the two files is cut short or belongs to another scan: copy both again"
        )
    _refuse_unknown(raw, path, token, classes)
    return raw


def classes_in(path: Path, token: str, classes: int) -> np.ndarray:
    """Return the raw classes that a label file holds, sorted, without a look at its scan. Raises DataError."""
    found = np.unique(_raw(path, token))
    if len(found):
        _refuse_unknown(found, path, token, classes)
    return found


def _raw(path: Path, token: str) -> np.ndarray:
    """Return the raw classes of a label file as stored."""
    if not path.is_file():
        raise DataError(
            f"sample {token}: label file {path} is missing; put it there (nuScenes-lidarseg into data.root)"
        )
    if path.suffix == ".npz":
        return _panoptic(path, token)
    data = path.read_bytes()
    return _stored_array(data, path, token) if data[:6] == b"\x93NUMPY" else np.frombuffer(data, np.uint8)


def _refuse_unknown(raw: np.ndarray, path: Path, token: str, classes: int) -> None:
    if raw.max() >= classes:
        raise DataError(
            f"sample {token}: {path} holds label {raw.max()}; expected 0 to {classes - 1}, the raw classes of "
            "nuScenes-lidarseg under the configured data.label_map"
        )
