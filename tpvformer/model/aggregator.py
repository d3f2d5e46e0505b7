"""Decode planes to classes: the feature of a position is the sum of its three plane features, decoded by an MLP.

Legend: B batch, Q plane cells, C channels, D decoder width, K classes, X, Y, Z voxels, P points, M chosen voxels.

Two exact rewrites save work. The first linear layer is applied to the planes instead of the voxels, because it commutes
with sums and with bilinear sampling. The last two linear layers, with nothing between them, are merged into one matrix.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tpvformer.config import ModelConfig
from tpvformer.model.dense_decoder import decode_voxels
from tpvformer.ops import REFERENCE, asked

DENSE_ROWS = 1 << 16  # voxels decoded at a time; limits the hidden activations of the dense head


class TPVAggregator(nn.Module):
    """Decode plane features (B,Q,C) to logits of voxels and of points."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.decoder = nn.Sequential(
            nn.Linear(cfg.dim, cfg.decoder_dim), nn.Softplus(), nn.Linear(cfg.decoder_dim, cfg.dim)
        )
        self.classifier = nn.Linear(cfg.dim, cfg.num_classes)

    def _linears(self) -> Tuple[nn.Linear, nn.Linear]:
        """Return the decoder's first and last layer."""
        first, _, last = self.decoder
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        return first, last

    @property
    def first_layer(self) -> nn.Linear:
        """Return the decoder's first layer, which hidden units of voxels come from."""
        return self._linears()[0]

    def three_planes(self, x: Tensor) -> Tensor:
        """Return the features (B,Q,C) of all three planes, given those of the model's planes."""
        return x

    def plane_maps(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Apply the first linear layer, without bias, and the configured up-sampling: three maps (B,D,rows,cols)."""
        x, grid = self.three_planes(x), self.cfg.grid
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
        """Decode the summed first-layer output (..., D), without its bias, to logits (..., K)."""
        return F.linear(F.softplus(hidden + self.first_layer.bias), *self._merged())

    def _merged(self) -> Tuple[Tensor, Tensor]:
        """Return the weight (K,D) and bias (K,) of the last two linear layers as one."""
        _, last = self._linears()
        return self.classifier.weight @ last.weight, F.linear(last.bias, self.classifier.weight, self.classifier.bias)

    def at_voxels(self, maps: Sequence[Tensor], voxels: Tensor) -> Tensor:
        """Return logits (B,K,M) of the voxels (B,M,3), given as integers (x,y,z)."""
        x, y, z = voxels.unbind(-1)
        cells = (y * maps[0].shape[3] + x, z * maps[1].shape[3] + y, x * maps[2].shape[3] + z)
        hidden = torch.zeros((), device=voxels.device)
        for m, cell in zip(maps, cells):
            index = cell[:, None].expand(-1, m.shape[1], -1)
            hidden = hidden + m.flatten(2).gather(2, index)
        return self._decode(hidden.transpose(1, 2)).transpose(1, 2)

    def at_points(self, maps: Sequence[Tensor], points: Tensor) -> Tensor:
        """Return logits (B,K,P) at grid positions (B,P,3), x, y, z in voxels.

        Position i is sampled at i / n of the plane, half a cell before the centre of voxel i, as in the published
        model.
        """
        x, y, z = (axis / cells * 2 - 1 for axis, cells in zip(points.unbind(-1), self.cfg.grid.shape))
        hidden = torch.zeros((), device=points.device)
        for m, (u, v) in zip(maps, ((x, y), (y, z), (z, x))):
            grid = torch.stack([u, v], -1)[:, None]  # (B,1,P,2)
            sampled = F.grid_sample(m, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            hidden = hidden + sampled[:, :, 0]
        return self._decode(hidden.transpose(1, 2)).transpose(1, 2)

    def dense(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B,K,X,Y,Z) of the whole grid, decoded in slabs; the backward pass recomputes the slabs."""
        hw, zh, wz = maps
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        casts = hw.dtype != self.first_layer.weight.dtype
        if hw.device.type == "cpu" and not casts and not traced and asked() != REFERENCE:
            parts = hw.permute(0, 3, 2, 1), zh.permute(0, 3, 2, 1), wz.permute(0, 2, 3, 1) + self.first_layer.bias
            return decode_voxels(*parts, *self._merged()).permute(0, 4, 1, 2, 3)
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
        """Decode plane features (B,Q,C) to (voxel logits, point logits); ``voxels`` selects the sparse head."""
        maps = self.plane_maps(x)
        voxel_logits = self.dense(maps) if voxels is None else self.at_voxels(maps, voxels)
        return voxel_logits, None if points is None else self.at_points(maps, points)


class BEVAggregator(TPVAggregator):
    """Decode plane hw alone: the feature of a voxel is hw[h,w] + height[z], decoded as in TPVAggregator.

    Plane hw has the same feature at all heights. ``height`` (Z,C), one learned vector for each height, distinguishes
    them. This equals the sum of three planes with zh constant along h and wz zero, so the model differs from TPVFormer
    only in its planes. The decoder sees both terms and decides what is at which height. Channel-to-height (FlashOcc,
    arXiv:2311.12058) is an alternative: a layer that computes Z voxels from the feature of every column.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.height = nn.Parameter(torch.randn(cfg.grid.z, cfg.dim))  # same scale as a plane after LayerNorm

    def three_planes(self, x: Tensor) -> Tensor:
        """Return the features of three planes, from those (B,HW,C) of plane hw."""
        batch, grid = x.shape[0], self.cfg.grid
        zh = self.height[:, None].expand(batch, -1, grid.h, -1).flatten(1, 2)
        wz = x.new_zeros(batch, grid.w * grid.z, x.shape[2])
        return torch.cat([x, zh, wz], 1)
