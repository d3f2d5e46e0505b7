"""Compute attention together with the layers that predict its offsets and weights, in blocks of queries (CPU).

The predictions for all queries are the largest tensor of the encoder. They are written, normalised, read, and met again
as gradients, so their speed is limited by memory bandwidth. A block of them stays in the cache. The backward pass
predicts each block again, so none of it is stored.
"""

from __future__ import annotations

from typing import Any, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from tpvformer.ops import library
from tpvformer.ops.reference import LevelShapes

BLOCK = 1 << 19  # elements that the largest layer predicts in a block


class Queries(NamedTuple):
    """Hold queries with common layers for offsets and logits, and where they sample (see ``anchored_attention``).

    ``of_levels``: each level has a logit beside those of its points (H,L,P+1), and a weight is softmax over points
    times softmax over levels. Otherwise all logits (H,L*P) of a head share one softmax.
    """

    anchors: Tensor
    bits: Tensor
    scale: Tensor
    points: int
    of_levels: bool


def projected_attention(
    value: Tensor,
    level_shapes: LevelShapes,
    query: Tensor,
    groups: Sequence[Queries],
    layers: Sequence[Sequence[Tensor]],
) -> Tensor:
    """Return (B,Q,H*D) for value (B,N,S,H,D) and query (B,Q,C), which holds all groups one after another.

    layers: for each group weight and bias of the offsets (H*L*P*2,C), then of the logits. All float32 on a CPU with
    kernels for value.
    """
    flat = [tensor for layer in layers for tensor in layer]
    groups = [group._replace(anchors=group.anchors.contiguous()) for group in groups]  # once, instead of once a block
    out: Tensor = _Projected.apply(value, query, tuple(level_shapes), tuple(groups), *flat)
    return out


class _Layers:
    """Hold a group's layers, with separate logits of points and levels: matrix products are faster in these sizes."""

    def __init__(self, group: Queries, heads: int, levels: int, layer: Sequence[Tensor]) -> None:
        self.shape = (heads, levels, group.points)
        weight, bias = layer[2], layer[3]
        self.offsets = (layer[0], layer[1])
        self.of_levels = group.of_levels
        if group.of_levels:
            split = weight.view(heads * levels, group.points + 1, -1), bias.view(heads * levels, group.points + 1)
            self.points = (split[0][:, :-1].flatten(0, 1), split[1][:, :-1].flatten())
            self.levels = (split[0][:, -1].contiguous(), split[1][:, -1].contiguous())
        else:
            self.points = (weight, bias)

    def predict(self, rows: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Map rows (n,C) to offsets (1,n,H,L,P,2), weights (1,n,H,L,P), and the softmax of points alone."""
        n = len(rows)
        offsets = torch.addmm(self.offsets[1], rows, self.offsets[0].t()).view(1, n, *self.shape, 2)
        logits = torch.addmm(self.points[1], rows, self.points[0].t())
        if not self.of_levels:
            weights = logits.view(1, n, self.shape[0], -1).softmax(-1).view(1, n, *self.shape)
            return offsets, weights, weights
        of_point = logits.view(1, n, *self.shape).softmax(-1)
        by_level = torch.addmm(self.levels[1][:, None], self.levels[0], rows.t()).view(*self.shape[:2], n)
        of_level = by_level.softmax(1).permute(2, 0, 1).contiguous()  # softmax over a short last axis is slow
        return offsets, of_point * of_level[None, ..., None], of_point


def _rows(queries: int, layer: Sequence[Tensor]) -> List[Tuple[int, int]]:
    """Split ``queries`` into blocks (start, stop)."""
    size = max(64, BLOCK // len(layer[0]))
    return [(start, min(queries, start + size)) for start in range(0, queries, size)]


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor, query: Tensor, shapes: LevelShapes, groups: Tuple[Queries, ...], *layers: Tensor
    ) -> Tensor:
        ctx.save_for_backward(value, query, *layers)
        ctx.shapes, ctx.groups = shapes, groups
        kernels: Any = library.ATTENTION["cpu"]
        out = query.new_empty(*query.shape[:2], value.shape[3] * value.shape[4])
        first = 0
        with torch.autocast("cpu", enabled=False):
            for index, group in enumerate(groups):
                layer = layers[4 * index : 4 * index + 4]
                made, queries = _Layers(group, value.shape[3], len(shapes), layer), group.bits.shape[1]
                for b in range(len(query)):
                    place = _of_sample(group, b)
                    for start, stop in _rows(queries, layer):
                        offsets, weights, _ = made.predict(query[b, first + start : first + stop])
                        target = out[b : b + 1, first : first + queries]
                        kernels.forward_block(value[b : b + 1], *place, offsets, weights, shapes, start, target)
                first += queries
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Tuple[Any, ...]:  # type: ignore[override]
        value, query, *layers = ctx.saved_tensors
        kernels: Any = library.ATTENTION["cpu"]
        by_head = value.transpose(2, 3).contiguous()
        grad_value, grad_query = torch.zeros_like(by_head), torch.empty_like(query)
        grad_out, grads, first = grad_out.contiguous(), [], 0
        with torch.autocast("cpu", enabled=False):
            for index, group in enumerate(ctx.groups):
                layer = layers[4 * index : 4 * index + 4]
                made, queries = _Layers(group, value.shape[3], len(ctx.shapes), layer), group.bits.shape[1]
                sums = _Gradients(made)
                for b in range(len(query)):
                    place, one = _of_sample(group, b), slice(b, b + 1)
                    for start, stop in _rows(queries, layer):
                        rows = query[b, first + start : first + stop]
                        predicted = made.predict(rows)
                        grad = grad_out[one, first : first + queries]
                        found = kernels.backward_block(
                            by_head[one], *place, *predicted[:2], grad, ctx.shapes, start, grad_value[one]
                        )
                        sums.add(rows, predicted, found, grad_query[b, first + start : first + stop])
                grads += sums.result(layer)
                first += queries
        return (grad_value.transpose(2, 3).contiguous(), grad_query, None, None, *grads)


class _Gradients:
    """Sum the gradients of a group's layers over the blocks."""

    def __init__(self, layers: _Layers) -> None:
        self.layers = layers
        pairs = [layers.offsets, layers.points] + ([layers.levels] if layers.of_levels else [])
        self.pairs = pairs
        self.sums = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in pairs]

    def add(
        self, rows: Tensor, predicted: Tuple[Tensor, Tensor, Tensor], found: Tuple[Tensor, Tensor], out: Tensor
    ) -> None:
        """Add a block, given the gradients of its offsets and weights; write the gradient of ``rows`` to ``out``."""
        n, (_, weights, of_point), (by_offsets, by_weights) = len(rows), predicted, found
        if self.layers.of_levels:  # weight = p * l: dp-logits = weight * (g - <g,p>), dl-logits the same of levels
            inner = (by_weights * of_point).sum(-1)
            of_level = weights.sum(-1)
            share = inner * of_level
            by_level = share - of_level * share.sum(-1, keepdim=True)
            by_logits = weights * (by_weights - inner[..., None])
            parts = [by_offsets.view(n, -1), by_logits.view(n, -1), by_level.view(n, -1)]
        else:
            inner = (by_weights * weights).sum((-2, -1), keepdim=True)
            parts = [by_offsets.view(n, -1), (weights * (by_weights - inner)).view(n, -1)]
        torch.mm(parts[0], self.pairs[0][0], out=out)
        for part, (weight, _) in zip(parts[1:], self.pairs[1:]):
            out.addmm_(part, weight)
        for part, (weight, bias) in zip(parts, self.sums):
            weight.addmm_(part.t(), rows)
            bias.add_(part.sum(0))

    def result(self, layer: Sequence[Tensor]) -> List[Tensor]:
        """Return the gradients of the four tensors of ``layer``."""
        (offsets, offsets_bias), (points, points_bias) = self.sums[:2]
        if not self.layers.of_levels:
            return [offsets, offsets_bias, points, points_bias]
        heads, levels, count = self.layers.shape
        level, level_bias = self.sums[2]
        logits = torch.cat([points.view(heads * levels, count, -1), level[:, None]], 1)
        bias = torch.cat([points_bias.view(heads * levels, count), level_bias[:, None]], 1)
        return [offsets, offsets_bias, logits.view(layer[2].shape), bias.flatten()]


def _of_sample(group: Queries, b: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Return anchors, bits and scale of one sample."""
    anchors = group.anchors if len(group.anchors) == 1 else group.anchors[b : b + 1]
    return anchors, group.bits[b : b + 1], group.scale[b : b + 1]
