"""Define image cross-attention: queries sample camera features around their projected pillars (TPVFormer, section 3.3).

Legend: B batch, N cameras, S image tokens of all levels, Q queries, A_i anchors and P_i points a level of plane i.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor, nn

from tpvformer import ops
from tpvformer.config import ModelConfig
from tpvformer.model import init
from tpvformer.model.activation_checkpoint import checkpoint_except_sampling
from tpvformer.model.dropout import Dropout
from tpvformer.model.grid import split_planes
from tpvformer.model.projection import Projection
from tpvformer.ops import LevelShapes


class ImageCrossAttention(nn.Module):
    """Attend to the images. Each query has the same offsets and weights in all cameras that see any of its anchors."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        per_plane = [cfg.image_heads * cfg.num_levels * p for _, p in zip(cfg.planes, cfg.image_points)]
        self.offsets = nn.ModuleList(nn.Linear(cfg.dim, n * 2) for n in per_plane)
        self.logits = nn.ModuleList(nn.Linear(cfg.dim, n) for n in per_plane)
        self.value = nn.Linear(cfg.dim, cfg.dim)
        self.output = nn.Linear(cfg.dim, cfg.dim)
        self.dropout = Dropout(cfg.dropout)
        self.recompute = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        cfg = self.cfg
        for plane in range(len(cfg.planes)):
            points, anchors = cfg.image_points[plane], cfg.pillar_anchors[plane]
            bias = init.image_offsets(cfg.image_heads, cfg.num_levels, points, anchors)
            init.constant_linear(self.offsets[plane], bias)
            init.constant_linear(self.logits[plane], 0.0)
        init.projection_linear(self.value)
        init.projection_linear(self.output)

    def forward(
        self, x: Tensor, tokens: Tensor, level_shapes: LevelShapes, projections: Sequence[Projection]
    ) -> Tensor:
        """Return (B,Q,C) from x (B,Q,C), tokens (B,N,S,C) and one Projection for each plane."""
        if ops.in_blocks(tokens[:, :, :, None], x):  # the blocks recompute by themselves
            cfg = self.cfg
            value = self.value(tokens).view(*tokens.shape[:3], cfg.image_heads, -1)
            places = [(projection.anchors, projection.query_visible) for projection in projections]
            sampled = ops.projected_attention(
                value, level_shapes, x, places, cfg.image_points, list(zip(self.offsets, self.logits))
            )
            return x + self.dropout(self.output(sampled))
        return x + self.dropout(
            checkpoint_except_sampling(self.recompute, self._attend, x, tokens, level_shapes, projections)
        )

    def _attend(
        self, x: Tensor, tokens: Tensor, level_shapes: LevelShapes, projections: Sequence[Projection]
    ) -> Tensor:
        cfg = self.cfg
        b, heads = x.shape[0], cfg.image_heads
        value = self.value(tokens).view(b, tokens.shape[1], -1, heads, cfg.dim // heads)
        sampled = []
        for plane, query in enumerate(split_planes(x, cfg)):
            shape = (b, query.shape[1], heads, cfg.num_levels, cfg.image_points[plane])
            offset = self.offsets[plane](query).view(*shape, 2)
            weight = self.logits[plane](query).view(*shape[:3], -1).softmax(-1).view(shape)
            projection = projections[plane]
            sampled.append(
                ops.image_cross_attention(
                    value,
                    level_shapes,
                    projection.anchors,
                    projection.query_visible,
                    offset,
                    weight,
                    projection.rows,
                )
            )
        out: Tensor = self.output(torch.cat(sampled, 1))
        return out
