"""Voxelize points: find the cell of each point and the label of each cell.

The pitch divides the range by n - 1, not n, because the published weights were trained with it: with 200 cells over
102.4 m a label cell is 0.51457 m wide, and the last cell holds only what lies on or beyond the upper bound.
Points outside the range are clamped to its border and keep their labels.

``voxelize`` uses a Numba kernel (voxelize_numba.py) if Numba is available, else the three functions below it, which are
the reference.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tpvformer.geometry import lattice


class Cells(NamedTuple):
    """Hold the result of ``voxelize`` for P points in M occupied cells of an (X, Y, Z) grid."""

    grid_index: np.ndarray  # (P, 3) int64: x, y, z of the cell a point lies in
    occupied: np.ndarray  # (M, 3) int64: the distinct cells, in lexicographic order
    point_row: np.ndarray  # (P,) int64: the row of ``occupied`` a point lies in
    labels: np.ndarray  # (X, Y, Z) uint8: the most frequent label among a cell's points


@functools.lru_cache(maxsize=None)
def _kernel() -> Optional[Callable[..., Any]]:
    try:
        from tpvformer.data.voxels import voxelize_numba
    except (ImportError, RuntimeError) as err:  # Numba raises RuntimeError where it finds no folder to cache in
        logging.getLogger(__name__).warning("the Numba kernel is not available (%s); NumPy counts votes instead", err)
        return None
    return voxelize_numba.voxelize


def voxelize(
    points: np.ndarray,
    labels: np.ndarray,
    voxels: Sequence[int],
    pc_range: Sequence[float],
    fill: int,
    divide_by_n: bool = False,
) -> Cells:
    """Compute cells and label votes of points (P, 3) metres, lidar frame, with labels (P,) uint8.

    voxels (X, Y, Z); pc_range (x0, y0, z0, x1, y1, z1) metres; ``fill`` is the label of a cell without points.
    ``divide_by_n`` divides the range by n instead of n - 1, as the grids of published dense labels do.
    """
    kernel = _kernel()
    if kernel is not None:
        low, last, pitch = _lattice(voxels, pc_range, divide_by_n)
        return Cells(*kernel(points, labels, low, np.asarray(pc_range[3:], np.float64), pitch, last, fill))
    index = grid_index(points, voxels, pc_range, divide_by_n)
    occupied, point_row = occupied_voxels(index, voxels)
    return Cells(index, occupied, point_row, vote(labels, point_row, occupied, voxels, fill))


def _lattice(
    voxels: Sequence[int], pc_range: Sequence[float], divide_by_n: bool
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lower corner (metres), the last index and the pitch (metres) of each axis."""
    last = np.asarray(voxels, np.int64) - 1
    low, pitch = lattice(pc_range, last + 1 if divide_by_n else np.maximum(last, 1))
    return low, last, pitch


def grid_index(
    points: np.ndarray, voxels: Sequence[int], pc_range: Sequence[float], divide_by_n: bool = False
) -> np.ndarray:
    """Return the cells of points (P, 3): (P, 3) int64 in [0, X-1] x [0, Y-1] x [0, Z-1], computed in float64."""
    low, last, pitch = _lattice(voxels, pc_range, divide_by_n)
    inside = np.clip(np.asarray(points, np.float64), low, np.asarray(pc_range[3:], np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):  # as in the kernel: no number, cell 0
        return np.maximum(np.minimum(np.floor((inside - low) / pitch).astype(np.int64), last), 0)


def occupied_voxels(index: np.ndarray, voxels: Sequence[int]) -> Tuple[np.ndarray, np.ndarray]:
    """Return the distinct cells among ``index`` (P, 3).

    They are (M, 3) int64 in lexicographic order, with (P,) int64, the row of each point's cell.
    """
    size = tuple(int(n) for n in voxels)
    flat = np.ravel_multi_index((index[:, 0], index[:, 1], index[:, 2]), size)
    hit = np.zeros(size[0] * size[1] * size[2], bool)  # marking cells is several times faster than sorting points
    hit[flat] = True
    cells = np.flatnonzero(hit)
    row = np.empty(hit.shape, np.int64)
    row[cells] = np.arange(len(cells))
    return np.stack(np.unravel_index(cells, size), axis=1).astype(np.int64, copy=False), row[flat]


def vote(
    labels: np.ndarray, point2voxel: np.ndarray, cells: np.ndarray, voxels: Sequence[int], fill: int
) -> np.ndarray:
    """Return the label grid (X, Y, Z) uint8: the most frequent label among a cell's points, ``fill`` where there are
    none.

    labels (P,) uint8; point2voxel (P,) and cells (M, 3) as ``occupied_voxels`` returns them. Label 0 votes like any
    other; among equally frequent labels the smallest wins.
    """
    grid = np.full(tuple(voxels), fill, np.uint8)
    if len(labels):
        kinds = int(labels.max()) + 1
        ballots = np.bincount(point2voxel * kinds + labels, minlength=len(cells) * kinds).reshape(len(cells), kinds)
        grid[cells[:, 0], cells[:, 1], cells[:, 2]] = ballots.argmax(axis=1)  # argmax takes the first of equals
    return grid
