"""Pillar anchors -> pixels of every camera, once per forward and for every sample by its own calibration."""

from __future__ import annotations

from typing import NamedTuple, Tuple

import torch
from torch import Tensor

MIN_DEPTH = 1e-5  # metres; anchors nearer (or behind) are invisible, and their division stays finite


class Projection(NamedTuple):
    """anchors (B,N,Q,A,2): (u,v) normalised by the image size. visible (B,N,Q,A): in front of and inside the image."""

    anchors: Tensor
    visible: Tensor

    @property
    def query_visible(self) -> Tensor:
        """(B,N,Q): any anchor of the query is visible."""
        return self.visible.any(-1)


def project(points: Tensor, pc_range: Tensor, lidar2img: Tensor, image_size: Tuple[int, int]) -> Projection:
    """Project normalised points (Q,A,3) with lidar2img (B,N,4,4) into images of ``image_size`` (H,W) pixels.

    Elementwise fp32 arithmetic: a matrix product could run in reduced precision on some hardware and move borders.
    """
    lo, hi = pc_range[:3], pc_range[3:]
    x, y, z = (lo + points * (hi - lo)).unbind(-1)  # metres, (Q,A) each
    m = lidar2img.float()[:, :, None, None]  # (B,N,1,1,4,4)
    a, b, depth = (m[..., r, 0] * x + m[..., r, 1] * y + m[..., r, 2] * z + m[..., r, 3] for r in range(3))
    safe = depth.clamp(min=MIN_DEPTH)
    height, width = image_size
    u, v = a / safe / width, b / safe / height
    visible = (depth > MIN_DEPTH) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
    return Projection(torch.stack([u, v], -1), visible)
