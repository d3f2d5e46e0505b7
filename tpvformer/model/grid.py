"""Compute the reference points of the planes from the grid.

Planes hw, zh, wz are perpendicular to z, x, y. Cell (row, column) of hw is (h, w), of zh (z, h), of wz (w, z); w, h, z
run along lidar x, y, z. Cell i of an axis with n cells has its centre at (i + 0.5) / n. "Normalised" means 0..1 over
``pc_range``.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from tpvformer.config import GridConfig, ModelConfig

PLANES = ("hw", "zh", "wz")
# Axes: 0 = w (x), 1 = h (y), 2 = z. The (row, column) axes of each plane, and the axis across it:
PLANE_AXES = ((1, 0), (2, 1), (0, 2))
ACROSS = (2, 0, 1)


def centres(n: int) -> Tensor:
    """Return the normalised centres of n cells, (n,)."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def sweep(count: int, extent: float) -> Tensor:
    """Return ``count`` positions from 0.5 to extent - 0.5, divided by the extent, (count,)."""
    return torch.linspace(0.5, extent - 0.5, count, dtype=torch.float64) / extent


def _cells_with_sweep(grid: GridConfig, plane: int, positions: Tensor) -> Tensor:
    """Return 3D points (n_plane, A, 3): every cell of the plane, at each of A positions along the axis across it."""
    cells = (grid.w, grid.h, grid.z)
    row, col = PLANE_AXES[plane]
    rows, cols = cells[row], cells[col]
    points = torch.empty(rows, cols, len(positions), 3, dtype=torch.float64)
    points[..., row] = centres(rows).view(rows, 1, 1)
    points[..., col] = centres(cols).view(1, cols, 1)
    points[..., ACROSS[plane]] = positions
    return points.view(rows * cols, len(positions), 3)


def pillar_points(grid: GridConfig, plane: int, anchors: int) -> Tensor:
    """Return the pillars of a plane's queries: normalised (x, y, z), (n_plane, A, 3) float32.

    Along the axis across the plane the anchors run in METRES from 0.5 to extent - 0.5.
    """
    return _cells_with_sweep(grid, plane, sweep(anchors, grid.extent[ACROSS[plane]])).float()


def query_points(grid: GridConfig, anchors: int) -> Tensor:
    """Return the anchors of every query across its own plane: normalised (x, y, z), (Q, A, 3) float64.

    Along the axis across the plane the anchors run in CELLS from 0.5 to n - 0.5.
    """
    cells = (grid.w, grid.h, grid.z)
    sweeps = [sweep(anchors, float(cells[axis])) for axis in ACROSS]
    return torch.cat([_cells_with_sweep(grid, plane, sweeps[plane]) for plane in range(len(PLANES))])


def cross_view_points(grid: GridConfig, anchors: int) -> Tensor:
    """Return the anchors of every query on the three planes: (Q, 3 planes, A, 2) float32 as (column, row), normalised.

    They are those of ``query_points``; on a query's own plane they coincide.
    """
    points = query_points(grid, anchors)
    return torch.stack([points[..., [col, row]] for row, col in PLANE_AXES], dim=1).float()


def own_plane_points(grid: GridConfig, plane: int) -> Tensor:
    """Return the cell centres of a plane's queries: (n_plane, 2) float32 as (column, row), normalised."""
    row, col = PLANE_AXES[plane]
    return _cells_with_sweep(grid, plane, torch.zeros(1, dtype=torch.float64))[:, 0][:, [col, row]].float()


def split_planes(x: Tensor, cfg: ModelConfig) -> Tuple[Tensor, ...]:
    """Split (B, Q, C) into (B, n_plane, C) for each plane of the model."""
    return x.split(cfg.grid.plane_sizes[: len(cfg.planes)], dim=1)
