"""The baseline of image cross-attention: spatial cross-attention as BEVFormer describes it (arXiv:2203.17270).

For every camera, the queries in its view are gathered and padded to the largest number of any camera. Offsets and
weights are computed for these rows, sampling locations are stored, every level is read with grid_sample, and rows are
added to their queries and divided by the number of cameras.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from tpvformer.model.grid import split_planes
from tpvformer.model.image_attention import ImageCrossAttention
from tpvformer.model.projection import Projection
from tpvformer.ops import LevelShapes
from tpvformer.ops.reference import ms_deform_attn


class RebatchedImageAttention(ImageCrossAttention):
    """Image cross-attention with the same parameters, computed per camera, for a batch of one sample."""

    def forward(
        self, x: Tensor, tokens: Tensor, level_shapes: LevelShapes, projections: Sequence[Projection]
    ) -> Tensor:
        """Attend: x (1,Q,C), tokens (1,N,S,C) -> (1,Q,C)."""
        cfg = self.cfg
        heads, levels = cfg.image_heads, cfg.num_levels
        value = self.value(tokens[0]).unflatten(-1, (heads, -1))  # (N,S,heads,D)
        sizes = torch.tensor([[w, h] for h, w in level_shapes], dtype=x.dtype, device=x.device)
        sampled = []
        for plane, query in enumerate(split_planes(x, cfg)):
            anchors, visible = projections[plane].anchors[0], projections[plane].query_visible[0]
            points, per_anchor = cfg.image_points[plane], cfg.image_points[plane] // cfg.pillar_anchors[plane]
            rows = [seen.nonzero().squeeze(1) for seen in visible]
            busiest = max(len(r) for r in rows)
            queries = query.new_zeros(len(rows), busiest, cfg.dim)
            centres = anchors.new_zeros(len(rows), busiest, *anchors.shape[2:])
            for camera, r in enumerate(rows):
                queries[camera, : len(r)] = query[0, r]
                centres[camera, : len(r)] = anchors[camera, r]
            shape = (len(rows), busiest, heads, levels, points)
            offset = self.offsets[plane](queries).view(*shape, 2) / sizes[:, None]
            weight = self.logits[plane](queries).view(*shape[:3], -1).softmax(-1).view(shape)
            locations = centres.repeat_interleave(per_anchor, dim=2)[:, :, None, None] + offset
            out = ms_deform_attn(value, level_shapes, locations.to(value.dtype), weight.to(value.dtype))
            total = out.new_zeros(query.shape[1], cfg.dim)
            for camera, r in enumerate(rows):
                total = total.index_add(0, r, out[camera, : len(r)])
            sampled.append(total / visible.sum(0).clamp(min=1)[:, None])
        return x + self.dropout(self.output(torch.cat(sampled)[None]))
