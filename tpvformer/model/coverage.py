"""Compute how much of the grid each camera sees."""

from __future__ import annotations

from typing import List, Sequence, Tuple

import torch
from torch import Tensor

from tpvformer.config import GridConfig
from tpvformer.model.grid import pillar_points
from tpvformer.model.projection import project


def coverage(grid: GridConfig, grid2img: Tensor, sizes: Sequence[Tuple[int, int]]) -> Tuple[List[float], float]:
    """Return the share of the grid's pillar anchors that each camera sees, and the share that any camera sees.

    grid2img (N,4,4) float64; sizes: N of (width, height) pixels.
    """
    points, pc_range = pillar_points(grid, 0, grid.z), torch.tensor(grid.pc_range)
    seen = [
        project(points, pc_range, matrix[None, None], (height, width)).visible[0, 0]
        for matrix, (width, height) in zip(grid2img, sizes)
    ]
    return [float(v.float().mean()) for v in seen], float(torch.stack(seen).any(0).float().mean())
