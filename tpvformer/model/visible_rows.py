"""List the queries that each camera may see, from the calibration alone: work for the loader's processes.

A device that never waits for the host cannot choose them itself, because the number of the chosen is a shape.
"""

from __future__ import annotations

from typing import List, Tuple

import torch
from torch import Tensor

from tpvformer.config import ModelConfig
from tpvformer.model.grid import pillar_points

STEP = 256  # lengths are multiples of it, so that few different shapes occur
_MARGIN = 1e-3  # of the image's size: what rounds differently on the device is listed too
_SLACK = 0.05  # pixels times metres, where the depth is so small that the margin is less than the rounding
_WORTH = 0.9  # share of all queries from which on a list saves nothing


class VisibleRows:
    """List a batch's queries for ``ops.image_cross_attention``; a model with this configuration takes them."""

    def __init__(self, cfg: ModelConfig) -> None:
        low, high = (torch.tensor(edge) for edge in (cfg.grid.pc_range[:3], cfg.grid.pc_range[3:]))
        self._anchors = tuple(cfg.pillar_anchors)[: len(cfg.planes)]
        self._pillars = []  # of each plane (4, Q*A): metres and 1
        for plane, anchors in enumerate(self._anchors):
            metres = (low + pillar_points(cfg.grid, plane, anchors) * (high - low)).flatten(0, 1)
            self._pillars.append(torch.cat([metres, torch.ones(len(metres), 1)], 1).t().contiguous())

    def __call__(self, lidar2img: Tensor, image_size: Tuple[int, int]) -> Tuple[Tensor, List[int]]:
        """Return rows (B,N,R) int32 of all planes one after the other, and each plane's part of R.

        lidar2img (B,N,4,4) on the CPU; image_size (h,w) of the network input. Queries count from 0 in each plane and
        are padded with -1. A part of 0 stands for a plane whose list would save nothing.
        """
        across, down, depth = lidar2img.float()[:, :, :3].unbind(2)  # (B,N,4) each: pixels x depth, depth
        height, width = image_size
        inside = []  # forms of a point that are all positive inside the widened image, and only in front of the camera
        for pixels, size in ((across, width), (down, height)):
            inside += [pixels + _MARGIN * size * depth, (1 + _MARGIN) * size * depth - pixels]
        forms = torch.stack(inside, 2)  # (B,N,4,4)
        parts = [self._plane(points, anchors, forms) for points, anchors in zip(self._pillars, self._anchors)]
        return torch.cat(parts, 2), [part.shape[2] for part in parts]

    def _plane(self, points: Tensor, anchors: int, forms: Tensor) -> Tensor:
        b, n = forms.shape[:2]
        near = (forms.view(-1, 4) @ points).view(b, n, 4, -1, anchors).amin(2).amax(-1) > -_SLACK  # (B,N,Q)
        counts, queries = near.sum(-1), near.shape[2]
        length = min(queries, -(-max(1, int(counts.max())) // STEP) * STEP)
        if length > _WORTH * queries:
            return torch.empty(b, n, 0, dtype=torch.int32)
        rows = torch.full((b, n, length), -1, dtype=torch.int32)
        sample, camera, query = near.nonzero(as_tuple=True)
        rows[sample, camera, (near.cumsum(-1) - 1)[near]] = query.int()
        return rows
