"""Augment scenes in space ("BEV augmentation"): one matrix moves points, boxes, dense labels and projections alike.

The matrix A (4, 4) takes points of the grid's frame to those of the augmented one. Images stay as they are: a point A p
is seen where p was, so the projection becomes grid2img inverse(A). All frames of a window have the same A, so a motion
T between two of them becomes A T inverse(A).
"""

from __future__ import annotations

import dataclasses
from typing import Optional

import numpy as np

from tpvformer.config import AugmentConfig, GridConfig
from tpvformer.data.detection.boxes import Boxes
from tpvformer.data.images.crops import draw_crops
from tpvformer.data.types import DenseLabels
from tpvformer.geometry import lattice


def scene_matrix(
    grid: GridConfig, degrees: float = 0.0, scale: float = 1.0, flip_x: bool = False, flip_y: bool = False
) -> np.ndarray:
    """Return A (4, 4) float64: mirrors, then turns about z, then scales.

    The middle of the grid's x and y range stays where it is, and so does the plane z = 0. Degrees are
    counter-clockwise, seen from above.
    """
    angle, low, high = np.radians(degrees), np.array(grid.pc_range[:3]), np.array(grid.pc_range[3:])
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    made, middle = np.eye(4), (low + high) / 2 * (1, 1, 0)
    made[:3, :3] = scale * turn @ np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0])
    made[:3, 3] = middle - made[:3, :3] @ middle
    return made


class Augmentation:
    """Hold what is drawn for one training sample: ``matrix``, for all frames of its window, and crops for each image.

    ``matrix`` is None where nothing moves the scene. The generator is none of those that draw anything else, so all
    else is drawn as without these augmentations.
    """

    def __init__(self, cfg: AugmentConfig, grid: GridConfig, rng: np.random.RandomState) -> None:
        self._cfg, self._rng = cfg, rng
        turn, grow, x, y = rng.random_sample(4)  # always four, so that one setting does not change what another draws
        self.matrix: Optional[np.ndarray] = None
        if cfg.in_space:
            degrees, (low, high) = cfg.rotation * (2 * turn - 1), cfg.scale
            flips = cfg.flip_x and x < 0.5, cfg.flip_y and y < 0.5
            self.matrix = scene_matrix(grid, degrees, low + (high - low) * grow, *flips)

    def crops(self, cameras: int, height: int, width: int) -> Optional[np.ndarray]:
        """Draw the crops (cameras, 5) of one frame whose images would be scaled to (height, width); None for none."""
        if not self._cfg.of_images:
            return None
        low, high = self._cfg.image_resize
        return draw_crops(self._rng, cameras, height, width, (low, high), self._cfg.image_flip)


def moved_boxes(boxes: Boxes, to_grid: np.ndarray, matrix: Optional[np.ndarray]) -> Boxes:
    """Return boxes in the augmented frame; ``to_grid`` (4, 4) takes points there, ``matrix`` is the part A of it.

    Sides grow as lengths do. A mirrored box has the mirrored heading and velocity.
    """
    moved = boxes.transformed(to_grid)
    if matrix is None:
        return moved
    growth = np.cbrt(np.abs(np.linalg.det(matrix[:3, :3])))
    return dataclasses.replace(moved, sizes=(moved.sizes * growth).astype(np.float32))


def moved_labels(dense: DenseLabels, matrix: np.ndarray, grid: GridConfig, ignore: int) -> DenseLabels:
    """Return the labels of the augmented grid: each voxel has that of the voxel in which its centre lies unaugmented.

    For mirrors and, with square voxels and a square grid, quarter turns this is exact. Other turns and scales leave
    some voxels out and take others twice. Voxels that come from outside have the label ``ignore``, and no mask
    observes them.
    """
    back = np.linalg.inv(matrix)
    low, pitch = lattice(grid.pc_range, grid.shape)
    x, y, z = (low[axis] + (np.arange(count) + 0.5) * pitch[axis] for axis, count in enumerate(grid.shape))
    there = (
        back[0, 0] * x[:, None] + back[0, 1] * y[None] + back[0, 3],
        back[1, 0] * x[:, None] + back[1, 1] * y[None] + back[1, 3],
        back[2, 2] * z + back[2, 3],
    )
    cells = [np.floor((place - low[axis]) / pitch[axis]).astype(np.int64) for axis, place in enumerate(there)]
    inside = [(cell >= 0) & (cell < count) for cell, count in zip(cells, grid.shape)]
    known = (inside[0] & inside[1])[..., None] & inside[2]
    columns, rows, heights = (np.clip(cell, 0, count - 1) for cell, count in zip(cells, grid.shape))
    source = columns[..., None], rows[..., None], heights
    mask = None if dense.mask is None else np.where(known, dense.mask[source], np.uint8(0))
    return DenseLabels(np.where(known, dense.classes[source], np.uint8(ignore)), mask)


def augmented_frame(to_grid: np.ndarray, matrix: Optional[np.ndarray]) -> np.ndarray:
    """Return what takes points (4, 4) to the augmented grid's frame, given what takes them to the grid's."""
    return to_grid if matrix is None else matrix @ to_grid


def augmented_motion(motion: np.ndarray, matrix: Optional[np.ndarray]) -> np.ndarray:
    """Return the motion (4, 4) between the augmented frames of two grids, both moved by ``matrix``."""
    return motion if matrix is None else matrix @ motion @ np.linalg.inv(matrix)
