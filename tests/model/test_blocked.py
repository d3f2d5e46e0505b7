"""Attention predicted a block of queries at a time: what the layers and the operation make one after the other."""

from __future__ import annotations

from typing import Any, Callable, List

import pytest
import torch
from torch import Tensor

from tpvformer import ops
from tpvformer.config import GridConfig, ModelConfig
from tpvformer.model.image_attention import ImageCrossAttention
from tpvformer.model.plane_attention import CrossViewAttention
from tpvformer.model.projection import Projection
from tpvformer.ops import blocked

pytest.importorskip("numba", reason="numba is not installed")

CONFIG = ModelConfig(
    grid=GridConfig(w=9, h=8, z=3), dim=32, image_heads=2, plane_heads=2, position_dims=(12, 12, 8), num_levels=3,
    pillar_anchors=(4, 8, 8), image_points=(4, 8, 8), plane_points=8, plane_anchors=8, plane_init_anchors=8,
    dropout=0.0,
)  # fmt: skip
QUERIES = sum(CONFIG.grid.plane_sizes)


def roughened(attention: torch.nn.Module) -> torch.nn.Module:
    """In float32, with weights that make every query's offsets and logits differ."""
    generator = torch.Generator().manual_seed(1)
    for parameter in attention.parameters():
        parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) / 8
    return attention


def results(attention: torch.nn.Module, run: Callable[..., Tensor], leaves: List[Tensor]) -> List[Tensor]:
    attention.zero_grad()
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    out = run(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
    return [out.detach(), *(t.grad.clone() for t in (*leaves, *attention.parameters()))]


@pytest.mark.parametrize("kind", ["planes", "images"])
def test_blocks_are_the_layers_and_the_operation(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPVFORMER_OPS", "numba")
    monkeypatch.setattr(blocked, "BLOCK", 1)  # the fewest queries a block, 64: planes of more than one
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, QUERIES, CONFIG.dim, generator=generator)
    if kind == "planes":
        attention: Any = roughened(CrossViewAttention(CONFIG))
        anchors = CrossViewAttention.geometry(CONFIG)
        leaves = [x, torch.randn(QUERIES, CONFIG.dim, generator=generator)]

        def run(x: Tensor, position: Tensor) -> Tensor:
            return attention(x, position, anchors)
    else:
        attention = roughened(ImageCrossAttention(CONFIG))
        shapes, projections = ((5, 7), (3, 4), (2, 2)), []
        for cells, count in zip(CONFIG.grid.plane_sizes, CONFIG.pillar_anchors):
            places = torch.rand(2, 3, cells, count, 2, generator=generator) * 1.2 - 0.1
            projections.append(Projection(places, torch.rand(2, 3, cells, count, generator=generator) > 0.7))
        leaves = [x, torch.randn(2, 3, 51, CONFIG.dim, generator=generator)]

        def run(x: Tensor, tokens: Tensor) -> Tensor:
            return attention(x, tokens, shapes, projections)

    found = results(attention, run, leaves)
    calls: List[Any] = []
    monkeypatch.setattr(ops, "in_blocks", lambda *args: calls.append(args))
    wanted = results(attention, run, leaves)
    assert calls, "the attention did not ask"
    for ours, theirs in zip(found, wanted):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1e-3)
