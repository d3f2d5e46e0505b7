"""Define the attention of a cross_view model to the planes of past frames, and the embedding of their age.

Legend: B batch, F past frames, Q queries, C channels.
"""

from __future__ import annotations

import math
from typing import Callable, List, NamedTuple, Optional

import torch
from torch import Tensor, nn

from tpvformer import ops
from tpvformer.config import ModelConfig
from tpvformer.model import init
from tpvformer.model.activation_checkpoint import checkpoint_except_sampling
from tpvformer.model.grid import query_points
from tpvformer.model.history import CrossViewPast, PlaneHistory, known_past, references
from tpvformer.model.plane_attention import CrossViewAttention
from tpvformer.model.together import Weights

Sample = Callable[[Tensor, Tensor, Tensor], Tensor]
WAVES = 8  # cosines of the age, of 0 to 7 half periods in ``max_seconds``


class HistoryAttention(CrossViewAttention):
    """Attend to the planes of past frames around the places where the past has a query's anchors.

    Its parts are those of ``CrossViewAttention``. The last layer starts at zero, so that a fresh attention changes
    nothing. The first point of every anchor starts at its place itself; all points and planes weigh the same. Values
    are the past planes without positional encoding.
    """

    def reset_parameters(self) -> None:
        cfg = self.cfg
        for plane in range(3):
            bias = init.history_offsets(cfg.plane_heads, cfg.plane_points, cfg.plane_anchors)
            init.constant_linear(self.offsets[plane], bias)
            init.constant_linear(self.logits[plane], 0.0)
            init.projection_linear(self.value[plane])
            init.constant_linear(self.output[plane], 0.0)

    def read(self, x: Tensor, position: Tensor, past: CrossViewPast) -> Tensor:
        """Return what the past adds to x (B,Q,C): zero for a query none of whose anchors was seen."""
        if ops.in_blocks(x[:, None, :, None], x):
            return self.dropout(self._read(x, position, past, self._sample_in_blocks))
        return self.dropout(checkpoint_except_sampling(self.recompute, self._read, x, position, past, self._sample))

    def _read(self, x: Tensor, position: Tensor, past: CrossViewPast, sample: Sample) -> Tensor:
        sampled = sample(self._queries(x, position, past), self._sources(past), past.anchors)
        return self._output(self._mean(sampled, past)) * past.share.sum(1)

    def read_packed(self, x: Tensor, position: Tensor, past: CrossViewPast, weights: Weights) -> Tensor:
        """Return the same as ``read``, with products in the type of ``weights``, those of ``parts``."""
        query, source = self._queries(x, position, past), self._sources(past)
        sampled = self._sample_packed(query, source, past.anchors, weights)
        out = self._linear_packed("output.", self._mean(sampled, past), weights)
        return self.dropout(out * past.share.sum(1))

    @staticmethod
    def _queries(x: Tensor, position: Tensor, past: CrossViewPast) -> Tensor:
        return ((x + position)[:, None] + past.time).flatten(0, 1)

    @staticmethod
    def _sources(past: CrossViewPast) -> Tensor:
        return past.planes + past.time.flatten(0, 1)

    @staticmethod
    def _mean(sampled: Tensor, past: CrossViewPast) -> Tensor:
        b, frames = past.share.shape[:2]
        return (sampled.unflatten(0, (b, frames)) * past.share).sum(1)


class LayerPast(NamedTuple):
    """Hold an encoder layer's attention to the past, and the past itself, the same for all layers."""

    attention: HistoryAttention
    frames: CrossViewPast


class HistoryReader(nn.Module):
    """Hold the parts of a cross_view model that read the past: an attention for each layer that sees the images."""

    points: Tensor
    waves: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.time = nn.Linear(WAVES, cfg.dim, bias=False)
        nn.init.zeros_(self.time.weight)
        self.layers = nn.ModuleList(HistoryAttention(cfg) for kind in cfg.layers if kind == "self_cross")
        self.register_buffer("points", query_points(cfg.grid, cfg.plane_anchors).float(), persistent=False)
        self.register_buffer("waves", torch.arange(WAVES) * math.pi, persistent=False)

    def look(self, history: PlaneHistory) -> List[Optional[LayerPast]]:
        """Return what each layer of the encoder reads; None for a layer that does not see the images."""
        assert self.cfg.history is not None
        past = known_past(history, self.cfg.history.max_seconds)
        anchors, share = references(self.points, past, self.cfg.grid)
        time = self.time(torch.cos(past.seconds[..., None] / self.cfg.history.max_seconds * self.waves))
        frames = CrossViewPast(past.planes.flatten(0, 1), anchors, share, time[:, :, None])
        attentions = iter(self.layers)
        found: List[Optional[LayerPast]] = []
        for kind in self.cfg.layers:
            attention = next(attentions) if kind == "self_cross" else None
            assert attention is None or isinstance(attention, HistoryAttention)
            found.append(None if attention is None else LayerPast(attention, frames))
        return found
