"""Planes -> semantics: the feature of a place is the sum of its three plane features, decoded by a small perceptron.

Legend: B batch, Q plane cells, C channels, D decoder width, K classes, X, Y, Z voxels, P points, M chosen voxels.
Exact rewrites used here: the first linear layer is applied to the planes instead of the voxels (it commutes with sums
and with bilinear sampling), and the last two linear layers, which have nothing between them, are one matrix.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tpvformer.config import ModelConfig

DENSE_ROWS = 1 << 16  # voxels decoded at a time: bounds the hidden activations of the dense head


class TPVAggregator(nn.Module):
    """Plane features (B,Q,C) -> logits of voxels and of points."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.decoder = nn.Sequential(
            nn.Linear(cfg.dim, cfg.decoder_dim), nn.Softplus(), nn.Linear(cfg.decoder_dim, cfg.dim)
        )
        self.classifier = nn.Linear(cfg.dim, cfg.num_classes)

    def _linears(self) -> Tuple[nn.Linear, nn.Linear]:
        """The decoder's first and last layer."""
        first, _, last = self.decoder
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        return first, last

    def plane_maps(self, x: Tensor) -> Tuple[Tensor, ...]:
        """First linear layer (without bias) on the planes, up-sampled where asked: three (B,D,rows,cols)."""
        grid = self.cfg.grid
        scale = (grid.scale_w, grid.scale_h, grid.scale_z)
        up = ((scale[1], scale[0]), (scale[2], scale[1]), (scale[0], scale[2]))
        hidden = F.linear(x, self._linears()[0].weight)
        maps: List[Tensor] = []
        for plane, (h, w), (sh, sw) in zip(hidden.split(grid.plane_sizes, 1), grid.plane_shapes, up):
            m = plane.transpose(1, 2).unflatten(2, (h, w))
            if (sh, sw) != (1, 1):
                m = F.interpolate(m, size=(h * sh, w * sw), mode="bilinear", align_corners=False)
            maps.append(m)
        return tuple(maps)

    def _decode(self, hidden: Tensor) -> Tensor:
        """Summed first-layer output (..., D) without its bias -> logits (..., K)."""
        first, last = self._linears()
        weight = self.classifier.weight @ last.weight
        bias = F.linear(last.bias, self.classifier.weight, self.classifier.bias)
        return F.linear(F.softplus(hidden + first.bias), weight, bias)

    def at_voxels(self, maps: Sequence[Tensor], voxels: Tensor) -> Tensor:
        """Logits (B,K,M) of the voxels (B,M,3) given as integer (x,y,z)."""
        x, y, z = voxels.unbind(-1)
        cells = (y * maps[0].shape[3] + x, z * maps[1].shape[3] + y, x * maps[2].shape[3] + z)
        hidden = torch.zeros((), device=voxels.device)
        for m, cell in zip(maps, cells):
            index = cell[:, None].expand(-1, m.shape[1], -1)
            hidden = hidden + m.flatten(2).gather(2, index)
        return self._decode(hidden.transpose(1, 2)).transpose(1, 2)

    def at_points(self, maps: Sequence[Tensor], points: Tensor) -> Tensor:
        """Logits (B,K,P) at grid positions (B,P,3), x, y, z in voxels.

        Index i is sampled at i / n of the plane, half a cell towards the origin of voxel i: the published model's way.
        """
        x, y, z = (axis / cells * 2 - 1 for axis, cells in zip(points.unbind(-1), self.cfg.grid.shape))
        hidden = torch.zeros((), device=points.device)
        for m, (u, v) in zip(maps, ((x, y), (y, z), (z, x))):
            grid = torch.stack([u, v], -1)[:, None]  # (B,1,P,2)
            sampled = F.grid_sample(m, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            hidden = hidden + sampled[:, :, 0]
        return self._decode(hidden.transpose(1, 2)).transpose(1, 2)

    def dense(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B,K,X,Y,Z) of the whole grid, decoded slab by slab; slabs are recomputed in the backward pass."""
        hw, zh, wz = maps
        n_y, n_x, n_z = hw.shape[2], hw.shape[3], wz.shape[3]
        slab = max(1, DENSE_ROWS // (n_y * n_z))

        def decode(hw_part: Tensor, zh_all: Tensor, wz_part: Tensor) -> Tensor:
            # (B,D,y,x), (B,D,z,y), (B,D,x,z) -> (B,x,y,z,D)
            hidden = hw_part.permute(0, 3, 2, 1)[:, :, :, None] + zh_all.permute(0, 3, 2, 1)[:, None]
            return self._decode(hidden + wz_part.permute(0, 2, 3, 1)[:, :, None])

        slabs = []
        for start in range(0, n_x, slab):
            part = (hw[..., start : start + slab], zh, wz[:, :, start : start + slab])
            recompute = torch.is_grad_enabled() and slab < n_x
            slabs.append(checkpoint(decode, *part, use_reentrant=False) if recompute else decode(*part))
        return torch.cat(slabs, 1).permute(0, 4, 1, 2, 3)

    def forward(self, x: Tensor, points: Optional[Tensor], voxels: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        """Plane features (B,Q,C) -> (voxel logits, point logits); ``voxels`` chooses the sparse head."""
        maps = self.plane_maps(x)
        voxel_logits = self.dense(maps) if voxels is None else self.at_voxels(maps, voxels)
        return voxel_logits, None if points is None else self.at_points(maps, points)


class BEVAggregator(TPVAggregator):
    """The aggregator of a model with the plane hw alone: a voxel's feature is hw[h,w] + height[z], decoded as above.

    The plane from above says the same of all heights; ``height``, one learned vector a height (Z,C), tells them apart.
    That is the sum of three planes with zh constant along h and wz zero, and so nothing but the planes differs from the
    model it is compared with. What stands at a height is up to the decoder, which sees both terms. Channel-to-height
    (FlashOcc, arXiv:2311.12058) is another answer: a layer that makes Z voxels of every column's feature.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.height = nn.Parameter(torch.randn(cfg.grid.z, cfg.dim))  # of the size that a LayerNorm gives a plane

    def plane_maps(self, x: Tensor) -> Tuple[Tensor, ...]:
        """As of three planes, from plane hw's features (B,HW,C)."""
        batch, grid = x.shape[0], self.cfg.grid
        zh = self.height[:, None].expand(batch, -1, grid.h, -1).flatten(1, 2)
        wz = x.new_zeros(batch, grid.w * grid.z, x.shape[2])
        return super().plane_maps(torch.cat([x, zh, wz], 1))
