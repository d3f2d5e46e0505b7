"""Project pillar anchors into every camera, once a forward pass, with each sample's calibration."""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from tpvformer import ops

MIN_DEPTH = 1e-5  # metres; nearer anchors are not visible; also keeps the division finite


class Projection(NamedTuple):
    """Hold anchors (B,N,Q,A,2), (u,v) divided by the image size, and visible (B,N,Q,A), in front of and inside it.

    rows (B,N,R): see ``ops.image_cross_attention``; None: not listed. ``seen`` is ``query_visible`` as the operations
    take it, computed once for all layers; None: each layer does.
    """

    anchors: Tensor
    visible: Tensor
    rows: Optional[Tensor] = None
    seen: Union[Tensor, ops.Seen, None] = None

    @property
    def query_visible(self) -> Tensor:
        """Return whether any anchor of a query is visible, (B,N,Q)."""
        return self.visible.any(-1)

    def seen_by(self, value: Tensor) -> "Projection":
        """Return the projection with ``seen`` for a value (B,N,S,heads,D)."""
        return self._replace(seen=ops.seen_by_kernels(value, self.query_visible))

    @property
    def cameras(self) -> Union[Tensor, ops.Seen]:
        """Return what ``ops.image_cross_attention`` takes as ``visible``."""
        return self.query_visible if self.seen is None else self.seen


def project(points: Tensor, pc_range: Tensor, lidar2img: Tensor, image_size: Tuple[int, int]) -> Projection:
    """Project normalised points (Q,A,3) with lidar2img (B,N,4,4) into images of ``image_size`` (H,W) pixels.

    The arithmetic is elementwise in fp32: a matrix product could run in reduced precision and shift image borders.
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
