"""Draw the training targets of 3-D boxes on the head's map (CenterPoint, arXiv:2006.11275).

The map covers the x and y range of the grid. Row is y, column is x, as on plane hw. C classes, Y, X cells.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple

import numpy as np

from tpvformer.config import ConfigError, ModelConfig
from tpvformer.data.detection.boxes import DETECTION_CLASSES, Boxes

MOST_OBJECTS = 500  # of one sample
OVERLAP = 0.1  # of a box at the rim of the Gaussian with the true one
LEAST_RADIUS = 2  # cells


class BoxMap(NamedTuple):
    """Hold the geometry of the map: lower corner (x, y) and cell size (x, y) in metres, and its (rows, columns)."""

    low: Tuple[float, float]
    cell: Tuple[float, float]
    shape: Tuple[int, int]

    @classmethod
    def of(cls, model: ModelConfig) -> BoxMap:
        """Return the map of a model. Raises ConfigError for a model without the head."""
        if model.detection is None:
            raise ConfigError("model.detection is null; expected a head for boxes, for example model.detection.scale=1")
        grid, scale = model.grid, model.detection.scale
        return cls.over(grid.pc_range, (grid.h * scale, grid.w * scale))

    @classmethod
    def over(cls, pc_range: Sequence[float], shape: Tuple[int, int]) -> BoxMap:
        """Return the map of (rows, columns) cells over a range x0, y0, z0, x1, y1, z1 in metres."""
        x0, y0, _, x1, y1, _ = pc_range
        return cls((x0, y0), ((x1 - x0) / shape[1], (y1 - y0) / shape[0]), shape)


class Targets(NamedTuple):
    """Hold the targets of one sample with N boxes."""

    heatmaps: np.ndarray  # (C, Y, X) float32, 1 at the cell of a centre
    cells: np.ndarray  # (N,) int64, row * X + column of each centre
    labels: np.ndarray  # (N,) int64, index of DETECTION_CLASSES
    values: np.ndarray  # (N, 10) float32: see ``draw_targets``


def learnable(boxes: Boxes, area: BoxMap) -> np.ndarray:
    """Return which boxes (N,) bool are learned: of a class, hit by lidar or radar, and with their centre on the map."""
    known = boxes.labels < len(DETECTION_CLASSES)
    if boxes.points is not None:
        known &= boxes.points > 0
    places = (boxes.centres[:, :2] - area.low) / area.cell
    return known & (places >= 0).all(1) & (places < area.shape[::-1]).all(1)


def draw_targets(boxes: Boxes, area: BoxMap) -> Targets:
    """Return the targets of the true boxes of a sample, at most MOST_OBJECTS, in the frame of the grid.

    The values of a box: offset of the centre from its cell's corner along x and y (cells), height z of the centre (m),
    logarithm of length, width, height (m), sine and cosine of the yaw, velocity along x and y (m/s, NaN where unknown).
    """
    boxes = boxes.take(np.flatnonzero(learnable(boxes, area))[:MOST_OBJECTS])
    heatmaps = np.zeros((len(DETECTION_CLASSES), *area.shape), np.float32)
    places = (boxes.centres[:, :2].astype(np.float64) - area.low) / area.cell
    corner = np.floor(places)
    columns, rows = corner.astype(np.int64).T
    wide = boxes.sizes[:, 1] / area.cell[1]
    long = boxes.sizes[:, 0] / area.cell[0]
    radii = np.maximum(LEAST_RADIUS, gaussian_radius(wide, long).astype(np.int64))
    for label, row, column, radius in zip(boxes.labels, rows, columns, radii):
        _draw(heatmaps[label], int(row), int(column), int(radius))
    values = np.concatenate(
        [
            places - corner,
            boxes.centres[:, 2:],
            np.log(boxes.sizes),
            np.sin(boxes.yaws)[:, None],
            np.cos(boxes.yaws)[:, None],
            boxes.velocities,
        ],
        axis=1,
    )
    return Targets(heatmaps, rows * area.shape[1] + columns, boxes.labels, values.astype(np.float32))


def gaussian_radius(width: np.ndarray, length: np.ndarray, overlap: float = OVERLAP) -> np.ndarray:
    """Return the radius in cells up to which a box that is moved there still overlaps the true one.

    The smallest of CornerNet's three cases (arXiv:1808.01244), with the roots as published code computes them. That
    code leaves the division by the quadratic coefficient out, and weights were trained with its radii.
    """
    total, area = width + length, width * length

    def root(b: np.ndarray, a: float, c: np.ndarray) -> np.ndarray:
        return (b + np.sqrt(np.maximum(b * b - 4 * a * c, 0))) / 2

    both = root(total, 1, area * (1 - overlap) / (1 + overlap))
    inner = root(2 * total, 4, (1 - overlap) * area)
    outer = root(-2 * overlap * total, 4 * overlap, (overlap - 1) * area)
    return np.minimum(np.minimum(both, inner), outer)


def _draw(heatmap: np.ndarray, row: int, column: int, radius: int) -> None:
    """Merge a Gaussian around a cell into a class's heatmap (Y, X), by the maximum."""
    rows = slice(max(row - radius, 0), row + radius + 1)
    columns = slice(max(column - radius, 0), column + radius + 1)
    window = heatmap[rows, columns]
    y = np.arange(rows.start, rows.start + window.shape[0])[:, None] - row
    x = np.arange(columns.start, columns.start + window.shape[1])[None] - column
    sigma = (2 * radius + 1) / 6
    np.maximum(window, np.exp(-(x * x + y * y) / (2 * sigma * sigma)), out=window, casting="same_kind")
