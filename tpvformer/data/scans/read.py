"""Read a scan from the disk. Its first bytes, then its suffix, determine the format."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional

import numpy as np

from tpvformer.data.scans.layout import USUAL, layout_problem, likely_widths, listed
from tpvformer.data.scans.pcd import BEGINNINGS, read_pcd
from tpvformer.data.scans.ply import read_ply
from tpvformer.errors import DataError
from tpvformer.untrusted.kinds import kind_by_head, kind_by_suffix
from tpvformer.untrusted.memory_budget import memory_budget
from tpvformer.untrusted.numpy_files import DAMAGED, damage

KINDS = ".bin (float32), .npy, .pcd or .ply"
DECLARE = "say how many with lidar_columns in a rig file, or with lidar_points.num_pts_feats in an info file"
_MOST_COLUMNS = 64
_FARTHEST = 300.0  # metres: half of a scan's points are nearer, whatever the lidar
_NEAREST, _ENOUGH = 1.0, 100  # metres: of this many points, at least one is farther
_AXES, _FEATURES = 8, 9  # a transposed array has at most so many rows and at least so many columns


class Cloud(NamedTuple):
    """The points of a scan, without those whose coordinates are not finite, which drivers write for missing returns."""

    points: np.ndarray  # (P, 3) float32, metres, lidar frame
    kept: Optional[np.ndarray]  # (R,) bool: which of the file's points these are; None: all of them

    @property
    def lost(self) -> int:
        """The number of the file's points that are left out."""
        return 0 if self.kept is None else int((~self.kept).sum())


def read_cloud(path: Path, token: str, columns: Optional[int] = None) -> Cloud:
    """Read the scan of sample ``token``.

    A raw file has ``columns`` float32 a point, x, y, z first (None: five, checked to look like x, y, z, intensity,
    ring). Of a .npy array the first three columns are read, of a PCD or PLY file the fields x, y, z. Raises DataError
    for a file that is cut short or of another kind, and for numbers that do not look like points.
    """
    data = path.read_bytes()
    kind = _kind(data, path, token)
    if kind == ".npy":
        return _finite(_array(data, path, token), path, token)
    if kind in _PARSERS:
        try:
            return _finite(_PARSERS[kind](data), path, token)
        except (ValueError, OverflowError) as err:
            raise DataError(f"sample {token}: {path} cannot be read as {kind[1:].upper()}: {err}") from err
    return _finite(_raw(data, path, token, columns)[:, :3], path, token)


_PARSERS: Dict[str, Callable[[bytes], np.ndarray]] = {".pcd": read_pcd, ".ply": read_ply}


def _kind(data: bytes, path: Path, token: str) -> str:
    if data[:6] == b"\x93NUMPY":
        return ".npy"
    if data.startswith(BEGINNINGS):
        return ".pcd"
    if data[:4] in (b"ply\n", b"ply\r"):
        return ".ply"
    suffix = path.suffix.lower()
    if suffix in _PARSERS:
        raise DataError(f"sample {token}: {path} does not begin as a {suffix} file does; expected a scan: {KINDS}")
    what = kind_by_head(data) or ("" if suffix in (".bin", ".npy") else kind_by_suffix(path.name) or "of another kind")
    if what:
        raise DataError(
            f"sample {token}: {path} is {what}; expected a scan: {KINDS}; numpy.save writes an array with a point a "
            "row as .npy"
        )
    return suffix


def _raw(data: bytes, path: Path, token: str, columns: Optional[int]) -> np.ndarray:
    """Return the rows of a raw file, (R, columns) float32. Raises DataError."""
    width = USUAL if columns is None else columns
    if not data or len(data) % (4 * width):
        raise DataError(f"sample {token}: {path} has {len(data)} bytes; {_cut_or_other(data, columns)}")
    numbers = np.frombuffer(data, "<f4")
    problem = layout_problem(numbers, columns)
    if problem:
        raise DataError(f"sample {token}: {path}: {problem}; {DECLARE}")
    return numbers.reshape(-1, width)


def _cut_or_other(data: bytes, columns: Optional[int]) -> str:
    width = USUAL if columns is None else columns
    kind = "x, y, z, intensity, ring" if width == USUAL else f"x, y, z and {width - 3} more"
    expected = f"expected a multiple of {4 * width} (float32 {kind})"
    if data and len(data) % 4 == 0:
        others = likely_widths(np.frombuffer(data, "<f4"), width)
        if others:
            return f"{expected}, but its points look as if they had {listed(others)} numbers each; {DECLARE}"
    return f"{expected}, so the file is cut short: copy it again"


def _array(data: bytes, path: Path, token: str) -> np.ndarray:
    expected = "expected an array of numbers with a point a row: x, y, z and whatever follows"
    try:
        with memory_budget(len(data)):
            array = np.load(BytesIO(data), allow_pickle=False)
    except DAMAGED as err:
        raise DataError(f"sample {token}: {path} is no array file ({damage(err)}); {expected}") from err
    if array.ndim != 2 or array.shape[1] < 3 or len(array) == 0 or array.dtype.kind not in "iuf":
        raise DataError(f"sample {token}: {path} holds {array.dtype} of shape {array.shape}; {expected}")
    if on_its_side(array):
        raise DataError(f"sample {token}: {path} has the shape {array.shape}, but rows are points; transpose it")
    return np.asarray(array[:, :3], np.float64)


def on_its_side(array: np.ndarray) -> bool:
    """Tell whether an array has a point a column, with few rows and many columns, as nuscenes-devkit's has."""
    rows, columns = array.shape
    return columns > _MOST_COLUMNS or (3 <= rows <= _AXES and columns > _FEATURES)


def _check_distances(points: np.ndarray, path: Path, token: str) -> None:
    """Raise DataError for points that are not in metres from a lidar: half of them too far away, or none far enough."""
    distances = np.abs(points).max(1)
    middle = float(np.median(distances))
    if middle > _FARTHEST:
        raise DataError(
            f"sample {token}: {path}: half of its points lie more than {middle:.0f} m away, so they are not in metres "
            "(millimetres, centimetres?) or not in the lidar's frame (a map's?); store metres from the lidar"
        )
    if len(points) >= _ENOUGH and float(distances.max()) < _NEAREST:
        raise DataError(
            f"sample {token}: {path}: none of its points is {_NEAREST:.1f} m away, so they are not in metres "
            "(kilometres, or brought to one size?); store metres from the lidar"
        )


def _finite(points: np.ndarray, path: Path, token: str) -> Cloud:
    with np.errstate(over="ignore"):
        points = np.ascontiguousarray(points, np.float32)
    good = np.asarray(np.isfinite(points).all(1))
    if good.all():
        _check_distances(points, path, token)
        return Cloud(points, None)
    if not good.any():
        raise DataError(
            f"sample {token}: {path} holds nothing but coordinates that are not finite numbers; copy the file again"
        )
    _check_distances(points[good], path, token)
    return Cloud(points[good], good)
