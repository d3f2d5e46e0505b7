"""Define view attention: the queries of a plane sample the planes.

Legend: B batch, Q = HW + ZH + WZ queries, C channels, n_i cells of plane i, P points. Offsets are in cells of the plane
that is sampled.
"""

from __future__ import annotations

from typing import Dict, List, Optional

import torch
from torch import Tensor, nn

from tpvformer import ops
from tpvformer.config import ModelConfig
from tpvformer.model import init
from tpvformer.model.activation_checkpoint import checkpoint_except_sampling
from tpvformer.model.dropout import Dropout
from tpvformer.model.grid import cross_view_points, own_plane_points, split_planes
from tpvformer.model.history import HWPast
from tpvformer.model.together import Weights, linear_by_plane, linear_parts


class CrossViewAttention(nn.Module):
    """Apply cross-view hybrid attention (TPVFormer, section 3.3): every query samples all three planes.

    Values include the positional encoding; the residual does not.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        heads, points = cfg.plane_heads, cfg.plane_points
        self.output = nn.ModuleList(nn.Linear(cfg.dim, cfg.dim) for _ in range(3))
        self.offsets = nn.ModuleList(nn.Linear(cfg.dim, heads * 3 * points * 2) for _ in range(3))
        self.logits = nn.ModuleList(nn.Linear(cfg.dim, heads * 3 * (points + 1)) for _ in range(3))
        self.value = nn.ModuleList(nn.Linear(cfg.dim, cfg.dim) for _ in range(3))
        self.dropout = Dropout(cfg.dropout)
        self.recompute = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        cfg = self.cfg
        for plane in range(3):
            bias = init.cross_view_offsets(
                plane, cfg.plane_heads, cfg.plane_points, cfg.plane_init_anchors, cfg.plane_init_mode
            )
            init.constant_linear(self.offsets[plane], bias)
            level_bias = torch.zeros(cfg.plane_heads, 3, cfg.plane_points + 1)
            level_bias[:, plane, -1] = cfg.plane_own_logit
            init.constant_linear(self.logits[plane], level_bias.flatten())
            init.projection_linear(self.value[plane])
            init.projection_linear(self.output[plane])

    def forward(self, x: Tensor, position: Tensor, anchors: Tensor) -> Tensor:
        """Return (B,Q,C) from x (B,Q,C), position (Q,C) and anchors (Q,3,A,2) of ``cross_view_points``."""
        if ops.in_blocks(x[:, None, :, None], x):  # the blocks recompute by themselves
            query = x + position
            out = self._output(self._sample_in_blocks(query, query, anchors))
        else:
            out = checkpoint_except_sampling(self.recompute, self._attend, x, position, anchors)
        return x + self.dropout(out)

    def parts(self) -> Dict[str, List[Tensor]]:
        """Return the parameters to ``together.prepare`` for ``attend_packed``: offsets and logits of a plane joined."""
        found: Dict[str, List[Tensor]] = {}
        for plane, layers in enumerate(zip(self.offsets, self.logits)):
            found.update(linear_parts(f"{plane}", *layers))
            found.update(linear_parts(f"value.{plane}", self.value[plane]))
            found.update(linear_parts(f"output.{plane}", self.output[plane]))
        return found

    def attend_packed(self, x: Tensor, position: Tensor, anchors: Tensor, weights: Weights) -> Tensor:
        """Return the same as ``forward``, with products in the type of ``weights``, those of ``parts``."""
        query = x + position
        sampled = self._sample_packed(query, query, anchors, weights)
        return x + self.dropout(self._linear_packed("output.", sampled, weights))

    def _linear_packed(self, name: str, x: Tensor, weights: Weights) -> Tensor:
        own = [(weights[f"{name}{plane}.weight"], weights[f"{name}{plane}.bias"]) for plane in range(3)]
        return linear_by_plane(x.to(own[0][0].dtype), self.cfg.grid.plane_sizes, own)

    # All ways to sample take query and source (B,Q,C), which may be the same tensor, and anchors of
    # ``ops.cross_view_attention``, and return (B,Q,C).

    def _sample_packed(self, query: Tensor, source: Tensor, anchors: Tensor, weights: Weights) -> Tensor:
        cfg, kind = self.cfg, weights["0.weight"].dtype
        same, query = source is query, query.to(kind)
        value = self._linear_packed("value.", query if same else source, weights)
        value = value.unflatten(-1, (cfg.plane_heads, -1))[:, None]
        packed = self._linear_packed("", query, weights)
        return ops.packed_attention(value, cfg.grid.plane_shapes, anchors, None, packed, cfg.plane_points)

    def _sample_in_blocks(self, query: Tensor, source: Tensor, anchors: Tensor) -> Tensor:
        cfg = self.cfg
        value = torch.cat([self.value[plane](part) for plane, part in enumerate(split_planes(source, cfg))], 1)
        return ops.projected_attention(
            value.view(len(value), 1, value.shape[1], cfg.plane_heads, -1), cfg.grid.plane_shapes, query,
            [(part, None) for part in anchors.split(cfg.grid.plane_sizes, -4)], (cfg.plane_points,) * 3,
            list(zip(self.offsets, self.logits)),
        )  # fmt: skip

    def _output(self, sampled: Tensor) -> Tensor:
        return torch.cat([self.output[plane](y) for plane, y in enumerate(split_planes(sampled, self.cfg))], 1)

    def _attend(self, x: Tensor, position: Tensor, anchors: Tensor) -> Tensor:
        query = x + position
        return self._output(self._sample(query, query, anchors))

    def _sample(self, query: Tensor, source: Tensor, anchors: Tensor) -> Tensor:
        cfg = self.cfg
        b, heads, points = query.shape[0], cfg.plane_heads, cfg.plane_points
        values, offsets, weights = [], [], []
        queries = split_planes(query, cfg)
        sources = queries if source is query else split_planes(source, cfg)
        for plane, (own, read) in enumerate(zip(queries, sources)):
            n = own.shape[1]
            values.append(self.value[plane](read).view(b, n, heads, cfg.dim // heads))
            offsets.append(self.offsets[plane](own).view(b, n, heads, 3, points, 2))
            logit = self.logits[plane](own).view(b, n, heads, 3, points + 1)
            of_point, of_level = logit[..., :-1].softmax(-1), logit[..., -1:].softmax(-2)
            weights.append(of_point * of_level)
        return ops.cross_view_attention(
            torch.cat(values, 1), cfg.grid.plane_shapes, anchors, torch.cat(offsets, 1), torch.cat(weights, 1)
        )

    @staticmethod
    def geometry(cfg: ModelConfig) -> Tensor:
        return cross_view_points(cfg.grid, cfg.plane_anchors)


class HWAttention(nn.Module):
    """Apply BEVFormer's temporal attention on plane hw; the other planes pass through.

    Without a past the present is the history: both queues sample the same values (without positional encoding) with
    their own offsets and weights. Their mean equals one attention over 2P points with halved weights. With a past,
    queue 0 samples that around the places where it has the cells.
    """

    QUEUES = 2

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        samples = cfg.plane_heads * self.QUEUES * cfg.plane_points
        self.offsets = nn.Linear(2 * cfg.dim, samples * 2)
        self.logits = nn.Linear(2 * cfg.dim, samples)
        self.value = nn.Linear(cfg.dim, cfg.dim)
        self.output = nn.Linear(cfg.dim, cfg.dim)
        self.dropout = Dropout(cfg.dropout)
        self.recompute = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        cfg = self.cfg
        init.constant_linear(self.offsets, init.hw_offsets(cfg.plane_heads, self.QUEUES, cfg.plane_points))
        init.constant_linear(self.logits, 0.0)
        init.projection_linear(self.value)
        init.projection_linear(self.output)

    def forward(self, x: Tensor, position: Tensor, anchors: Tensor, past: Optional[HWPast] = None) -> Tensor:
        """Return (B,Q,C) from x (B,Q,C), position (HW,C) and anchors (HW,2) of ``own_plane_points``."""
        hw, *others = split_planes(x, self.cfg)
        if past is None:
            out = checkpoint_except_sampling(self.recompute, self._attend, hw, position, anchors)
        else:
            out = checkpoint_except_sampling(self.recompute, self._attend_with_past, hw, position, anchors, past)
        return torch.cat([hw + self.dropout(out), *others], 1)

    def _attend(self, hw: Tensor, position: Tensor, anchors: Tensor) -> Tensor:
        cfg = self.cfg
        heads, points = cfg.plane_heads, cfg.plane_points
        b, n, _ = hw.shape
        query = torch.cat([hw, hw + position], -1)
        value = self.value(hw).view(b, n, heads, cfg.dim // heads)
        offset = self.offsets(query).view(b, n, heads, 1, self.QUEUES * points, 2)
        weight = self.logits(query).view(b, n, heads, self.QUEUES, points).softmax(-1) / self.QUEUES
        sampled = ops.cross_view_attention(
            value, cfg.grid.plane_shapes[:1], anchors[:, None, None], offset, weight.view(b, n, heads, 1, -1)
        )
        out: Tensor = self.output(sampled)
        return out

    def _attend_with_past(self, hw: Tensor, position: Tensor, anchors: Tensor, past: HWPast) -> Tensor:
        """Every frame of the past, and the present last, is a level; all frames share the samples of queue 0."""
        cfg = self.cfg
        heads, points = cfg.plane_heads, cfg.plane_points
        b, frames, n, _ = past.planes.shape
        first, share = past.any_known[..., None], past.share
        # the present stands in for a past that a sample lacks, as its first frame
        planes = [torch.where(first[:, 0], past.planes[:, 0], hw), *past.planes[:, 1:].unbind(1), hw]
        places = torch.where(first[..., None], past.places, anchors[:, None, None])
        share = torch.cat([torch.where(past.any_known[:, 0], share[:, :1], 1.0), share[:, 1:]], 1)
        query = torch.cat([torch.where(past.any_known, past.read, hw), hw + position], -1)
        value = self.value(torch.cat(planes, 1)).view(b, (frames + 1) * n, heads, cfg.dim // heads)
        offset = self.offsets(query).view(b, n, heads, self.QUEUES, points, 2)
        weight = self.logits(query).view(b, n, heads, self.QUEUES, points).softmax(-1) / self.QUEUES
        of_past = weight[:, :, :, :1] * share[:, None, None, :, None]
        sampled = ops.cross_view_attention(
            value,
            cfg.grid.plane_shapes[:1] * (frames + 1),
            torch.cat([places, anchors[:, None, None].expand(b, n, 1, 1, 2)], 2),
            torch.cat([offset[:, :, :, :1].expand(-1, -1, -1, frames, -1, -1), offset[:, :, :, 1:]], 3),
            torch.cat([of_past, weight[:, :, :, 1:]], 3),
        )
        out: Tensor = self.output(sampled)
        return out

    @staticmethod
    def geometry(cfg: ModelConfig) -> Tensor:
        return own_plane_points(cfg.grid, 0)
