"""Find the voxels that no camera of a frame sees, but a camera of a past frame that the stream read for it.

What is seen is a matter of projection alone: the middle of a voxel lies in front of a camera and inside its picture,
whatever stands in between. These are places that a model without a memory has to guess from their surroundings.
"""

from __future__ import annotations

from typing import List, NamedTuple, Sequence, Tuple

import numpy as np

from tpvformer.config import GridConfig
from tpvformer.data.transforms import frame_of_grid
from tpvformer.data.types import Frame
from tpvformer.geometry import lattice, now_to_past

_NEAREST = 1e-5  # metres, as in model/projection.py


class View(NamedTuple):
    """Hold what the cameras of a frame see, and where the grid was: metres, pixels, seconds."""

    grid2img: np.ndarray  # (N, 4, 4) float64, metres of the frame's grid to (u * depth, v * depth, depth, 1)
    sizes: Tuple[Tuple[int, int], ...]  # N of (width, height)
    grid2global: np.ndarray  # (4, 4) float64
    timestamp: float


class Sight(NamedTuple):
    """Hold what a frame sees, and what the past frames saw that were read for it, newest first."""

    now: View
    past: Tuple[View, ...]


def view_of(frame: Frame, grid: GridConfig, grid2global: np.ndarray, timestamp: float) -> View:
    """Return the view of a frame whose pose is ``grid2global`` (4, 4)."""
    grid2img = frame.lidar2img if grid.frame == "lidar" else frame.lidar2img @ np.linalg.inv(frame_of_grid(frame, grid))
    padded = tuple(frame.images.shape[1:3])
    sizes = tuple((int(w), int(h)) for h, w in frame.valid_sizes or [padded] * len(grid2img))
    return View(grid2img, sizes, grid2global, timestamp)


def seen_only_before(sight: Sight, grid: GridConfig) -> np.ndarray:
    """Return a mask (X, Y, Z), bool, of the voxels that ``sight.now`` does not see and one of ``sight.past`` saw.

    A voxel was seen in a past frame if its middle lay in that frame's grid, too: beyond it nothing is read.
    """
    before = np.zeros(grid.shape, bool)
    for view in sight.past:
        motion = now_to_past(sight.now.grid2global, view.grid2global)
        before |= _in_grid(motion, grid) & _seen(view, motion, grid)
    return before & ~_seen(sight.now, np.eye(4), grid)


def _seen(view: View, motion: np.ndarray, grid: GridConfig) -> np.ndarray:
    """Return which voxels (X, Y, Z) a camera sees; ``motion`` (4, 4) takes the grid's metres to those of the view."""
    seen = np.zeros(grid.shape, bool)
    for matrix, (width, height) in zip(view.grid2img, view.sizes):
        u, v, depth = _forms(matrix @ motion, grid)
        seen |= (depth > _NEAREST) & (u > 0) & (u < width * depth) & (v > 0) & (v < height * depth)
    return seen


def _in_grid(motion: np.ndarray, grid: GridConfig) -> np.ndarray:
    """Return which voxels (X, Y, Z) have their middle inside the grid after the ``motion`` (4, 4)."""
    inside = np.ones(grid.shape, bool)
    for form, low, high in zip(_forms(motion, grid), grid.pc_range[:3], grid.pc_range[3:]):
        inside &= (form >= low) & (form <= high)
    return inside


def _forms(matrix: np.ndarray, grid: GridConfig) -> List[np.ndarray]:
    """Return the first three rows of ``matrix`` (4, 4) times the middle of each voxel: (X, Y, Z) each.

    The middles are a lattice, so each row is a sum of three one-dimensional terms.
    """
    low, pitch = lattice(grid.pc_range, grid.shape)
    axes = [low[i] + (np.arange(n) + 0.5) * pitch[i] for i, n in enumerate(grid.shape)]
    return [_form(row, axes) for row in matrix[:3]]


def _form(row: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
    x, y, z = (factor * axis for factor, axis in zip(row[:3], axes))
    return x[:, None, None] + y[:, None] + (z + row[3])
