"""Compute RayIoU: cast the rays of a simulated lidar into the predicted and the true grid and compare the hits.

Defined by SparseOcc (arXiv:2312.17118, section 4). A ray is correct at a threshold if its first occupied voxels in both
grids have the same class and their distances differ by less than the threshold (1, 2 or 4 m). The IoU of a class is
correct / (rays that truly end in it + rays predicted to end in it - correct). Rays that leave the true grid are left
out.

The distance of a voxel is that of the point where the ray enters it. Ray casting is exact (Amanatides and Woo,
Eurographics 1987: each step crosses the nearest cell face). The number of steps depends on the grid alone, so nothing
synchronises with the device.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

THRESHOLDS = (1.0, 2.0, 4.0)  # metres
AZIMUTHS = 360
STEEP = 10  # downward pitches: their rays meet flat ground 1, 2, ... 10 sensor heights away
HOUSEKEEPING = 16  # steps between two removals of finished rays
HIGHEST = 0.21  # radians; the upper edge of the nuScenes lidar's field of view


def lidar_directions() -> Tensor:
    """Return unit vectors (R,3) float32 of the query rays, x and y horizontal, z up: 360 azimuths, 39 pitches.

    The downward pitches are -atan(1/k), k = 1..10, so that rays meet flat ground at equal spacing. Above them the
    pitches continue with the last difference, up to the first one that reaches ``HIGHEST``.
    """
    pitches = [-math.atan2(1, k) for k in range(1, STEEP + 1)]
    step = pitches[-1] - pitches[-2]
    while pitches[-1] < HIGHEST:
        pitches.append(pitches[-1] + step)
    pitch = torch.tensor(pitches, dtype=torch.float64)[:, None]
    azimuth = torch.arange(AZIMUTHS, dtype=torch.float64) * (2 * math.pi / AZIMUTHS)
    flat = pitch.cos()
    directions = torch.stack((flat * azimuth.cos(), flat * azimuth.sin(), pitch.sin().expand(-1, AZIMUTHS)), -1)
    return directions.view(-1, 3).float()


class Area(NamedTuple):
    """Hold the extent of a grid, (3,) each: lower and upper corner in metres float32, voxels along x, y, z int64."""

    low: Tensor
    high: Tensor
    cells: Tensor

    @classmethod
    def of(cls, voxels: Sequence[int], pc_range: Sequence[float], device: torch.device) -> Area:
        """Build the tensors once; a conversion from a list synchronises with the device."""
        low, high = (torch.tensor(pc_range[i : i + 3], dtype=torch.float32, device=device) for i in (0, 3))
        return cls(low, high, torch.tensor(list(voxels), device=device))


def cast(grids: Tensor, empty: int, origins: Tensor, directions: Tensor, area: Area) -> Tuple[Tensor, Tensor]:
    """Return the first voxel that is not ``empty`` on each ray, in each of V grids.

    grids (V,X,Y,Z) int64 classes over ``area``; origins (R,3) metres, directions (R,3) unit vectors, in its frame.
    Returns classes (V,R) int64, ``empty`` for a ray that hits nothing, and distances (V,R) float32 in metres: where the
    ray enters the voxel or, without a hit, leaves the grid. A ray that starts outside begins where it enters the grid;
    a ray that never enters hits nothing, at distance 0.
    """
    count, device = grids.shape[0], grids.device
    low, high, cells = area
    pitch = (high - low) / cells
    flat, axes = grids.flatten(1), torch.arange(3, device=device)
    forwards, moving = directions >= 0, directions.abs() > 1e-9
    inverse = torch.where(moving, 1.0 / torch.where(moving, directions, 1.0), torch.inf)
    near, far = (torch.where(moving, (wall - origins) * inverse, torch.inf) for wall in (low, high))
    between = (origins >= low) & (origins <= high)  # an axis that the ray does not move along has no crossings
    entry = torch.where(moving, torch.minimum(near, far), torch.where(between, -torch.inf, torch.inf))
    entry = entry.amax(1).clamp(min=0)
    inside = entry < torch.maximum(near, far).amin(1)
    at = torch.where(inside, entry, 0.0)
    start = ((origins + directions * at[:, None] - low) / pitch).floor().long()
    rays = _Rays(torch.minimum(start.clamp(min=0), cells - 1), inside, origins, inverse, forwards, moving)
    hit = torch.full((count, len(origins)), empty, dtype=torch.int64, device=device)
    reach = at.expand(count, -1).clone()
    part, found, distance = torch.arange(len(origins), device=device), hit, reach
    for n in range(sum(grids.shape[1:]) - 2):  # from one corner to the opposite one
        if device.type == "cpu" and n % HOUSEKEEPING == HOUSEKEEPING - 1:  # where reading values needs no sync
            hit[:, part], reach[:, part] = found, distance
            kept = (rays.inside & (found == empty).any(0)).nonzero()[:, 0]
            rays, part = _Rays(*(field[kept] for field in rays)), part[kept]
            found, distance = found[:, kept], distance[:, kept]
            if not len(kept):
                break
        bounded = torch.minimum(rays.cell.clamp(min=0), cells - 1)
        index = (bounded[:, 0] * grids.shape[2] + bounded[:, 1]) * grids.shape[3] + bounded[:, 2]
        going = rays.inside & (found == empty)
        found = torch.where(going, flat[:, index], found)
        walls = (low + (rays.cell + rays.forwards) * pitch - rays.origins) * rays.inverse
        wall, axis = torch.where(rays.moving, walls, torch.inf).min(1)
        distance = torch.where(going & (found == empty), wall, distance)
        cell = rays.cell + (axis[:, None] == axes) * torch.where(rays.forwards, 1, -1)
        rays = rays._replace(cell=cell, inside=rays.inside & ((cell >= 0) & (cell < cells)).all(1))
    hit[:, part], reach[:, part] = found, distance
    return hit, reach


class _Rays(NamedTuple):
    """Hold R rays: the current cell (R,3) of each, whether it is inside the grid (R,), and constants of the ray."""

    cell: Tensor
    inside: Tensor
    origins: Tensor
    inverse: Tensor  # (R,3) 1 / direction
    forwards: Tensor  # (R,3) bool, towards higher cells
    moving: Tensor  # (R,3) bool, the ray moves along this axis


def ray_counts(
    predicted: Tensor,
    target: Tensor,
    empty: int,
    ignore: int,
    origins: Tensor,
    directions: Tensor,
    area: Area,
    num_classes: int,
    edges: Sequence[float] = (),
) -> Tensor:
    """Return the counts of one sample, (rings, thresholds + 2, K) int64: correct at each threshold, true, predicted.

    predicted, target (X,Y,Z) int64. ``ignore`` may be a value above K. Rays that truly end in ``ignore`` are left out,
    as are those that leave the true grid. origins (O,3), directions (R,3): every direction from every origin. ``edges``
    (metres, ascending) divide rays into rings by their true distance.
    """
    starts = origins[:, None].expand(-1, len(directions), -1).reshape(-1, 3)
    ways = directions.repeat(len(origins), 1)
    (guess, truth), (far, true_far) = cast(torch.stack((predicted, target)), empty, starts, ways, area)
    valid = (truth != empty) & (truth != ignore)
    ring = ring_of(true_far, edges)
    error = (far - true_far).abs()
    right = [valid & (guess == truth) & (error < limit) for limit in THRESHOLDS]
    rows = [(truth, mask) for mask in right] + [(truth, valid), (guess, valid)]
    size = (len(edges) + 1) * num_classes
    counts = []
    for classes, mask in rows:
        index = torch.where(mask, ring * num_classes + classes, size)
        bins = torch.zeros(size + 1, dtype=torch.int64, device=target.device)
        counts.append(bins.scatter_add_(0, index, torch.ones_like(index))[:size].view(-1, num_classes))
    return torch.stack(counts, 1)


def ring_of(distance: Tensor, edges: Sequence[float]) -> Tensor:
    """Return the number of ``edges`` (metres, ascending) at or below each distance: 0 for the innermost ring."""
    ring = torch.zeros_like(distance, dtype=torch.int64)
    for edge in edges:
        ring = ring + (distance >= edge)
    return ring
