"""Define image cross-attention: queries sample camera features around their projected pillars (TPVFormer, section 3.3).

Legend: B batch, N cameras, S image tokens of all levels, Q queries, A_i anchors and P_i points a level of plane i.
"""

from __future__ import annotations

from typing import Dict, List, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer import ops
from tpvformer.config import ModelConfig
from tpvformer.model import init
from tpvformer.model.activation_checkpoint import checkpoint_except_sampling
from tpvformer.model.dropout import Dropout
from tpvformer.model.grid import split_planes
from tpvformer.model.projection import Projection
from tpvformer.model.together import Weights, linear_by_plane, linear_parts
from tpvformer.ops import LevelShapes


def split_sizes(cfg: ModelConfig) -> Sequence[int]:
    return cfg.grid.plane_sizes[: len(cfg.planes)]


def joined_planes(cfg: ModelConfig) -> List[List[int]]:
    """Return successive planes with as many points and anchors, which one operation can process."""
    kinds = list(zip(cfg.image_points, cfg.pillar_anchors))[: len(cfg.planes)]
    groups = [[0]]
    for plane in range(1, len(kinds)):
        if kinds[plane] == kinds[plane - 1]:
            groups[-1].append(plane)
        else:
            groups.append([plane])
    return groups


def join(projections: Sequence[Projection], cfg: ModelConfig) -> List[Projection]:
    """Return one Projection for each of ``joined_planes``."""
    return [
        Projection(*(torch.cat(parts, 2) for parts in zip(*(projections[plane][:2] for plane in planes))))
        for planes in joined_planes(cfg)
    ]


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
            places = [(projection.anchors, projection.cameras) for projection in projections]
            sampled = ops.projected_attention(
                value, level_shapes, x, places, cfg.image_points, list(zip(self.offsets, self.logits))
            )
            return x + self.dropout(self.output(sampled))
        return x + self.dropout(
            checkpoint_except_sampling(self.recompute, self._attend, x, tokens, level_shapes, projections)
        )

    def parts(self) -> Dict[str, List[Tensor]]:
        """Return the parameters to ``together.prepare`` for ``attend_packed``: offsets and logits of a plane joined."""
        found = {**linear_parts("value", self.value), **linear_parts("output", self.output)}
        for plane, layers in enumerate(zip(self.offsets, self.logits)):
            found.update(linear_parts(f"{plane}", *layers))
        return found

    def attend_packed(
        self,
        x: Tensor,
        tokens: Tensor,
        level_shapes: LevelShapes,
        projections: Sequence[Projection],
        weights: Weights,
    ) -> Tensor:
        """Return the same as ``forward``. Planes with as many points are one operation, their ``projections`` joined.

        x (B,Q,C); tokens (B,N,S,C) in the type of ``weights``, those of ``parts``.
        """
        cfg, sizes = self.cfg, split_sizes(self.cfg)
        value = F.linear(tokens, weights["value.weight"], weights["value.bias"])
        value = value.unflatten(-1, (cfg.image_heads, -1))
        query, first, sampled = x.to(tokens.dtype), 0, []
        for planes, projection in zip(joined_planes(cfg), projections):
            own = [sizes[plane] for plane in planes]
            layers = [(weights[f"{plane}.weight"], weights[f"{plane}.bias"]) for plane in planes]
            packed = linear_by_plane(query[:, first : first + sum(own)], own, layers)
            points = cfg.image_points[planes[0]]
            sampled.append(
                ops.packed_attention(value, level_shapes, projection.anchors, projection.cameras, packed, points)
            )
            first += sum(own)
        out = F.linear(torch.cat(sampled, 1), weights["output.weight"], weights["output.bias"])
        return x + self.dropout(out)

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
                    value, level_shapes, projection.anchors, projection.cameras, offset, weight, projection.rows
                )
            )
        out: Tensor = self.output(torch.cat(sampled, 1))
        return out
