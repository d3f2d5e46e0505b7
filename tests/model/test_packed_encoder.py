"""The encoder with few launches, as on a GPU: packed offsets and logits, joined weights, in fp32 and in bf16.

Kernels of the CPU do the sampling, and PyTorch makes the weights, which the GPU's kernels do by themselves.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, List, Optional, Sequence, Tuple

import pytest
import torch
from torch import Tensor

from tpvformer.config import GridConfig, HistoryConfig, ModelConfig
from tpvformer.model import together
from tpvformer.model.encoder import TPVEncoder
from tpvformer.model.history import PlaneHistory
from tpvformer.model.history_attention import HistoryReader
from tpvformer.model.image_attention import joined_planes
from tpvformer.ops import fused, library

numba_attention = pytest.importorskip("tpvformer.ops.numba_attention", reason="numba is not installed")
pytestmark = pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="registered from PyTorch 2.4 on")

CONFIG = ModelConfig(
    grid=GridConfig(w=9, h=8, z=3), dim=32, image_heads=2, plane_heads=2, position_dims=(12, 12, 8), num_levels=3,
    pillar_anchors=(4, 8, 8), image_points=(4, 8, 8), plane_points=8, plane_anchors=8, plane_init_anchors=8,
    layers=("self_cross", "self_cross", "self"), dropout=0.0, ffn_dim=64,
)  # fmt: skip
SIZE = (64, 96)


def unpacked(packed: Tensor, heads: int, levels: int, points: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Offsets, softmax over points, softmax over levels (or 1), by PyTorch."""
    b, q, width = packed.shape
    offsets, logits = packed.float().split([2 * heads * levels * points, width - 2 * heads * levels * points], 2)
    offsets = offsets.reshape(b, q, heads, levels, points, 2)
    if width == 3 * heads * levels * points:
        of_point = logits.reshape(b, q, heads, -1).softmax(-1).view(b, q, heads, levels, points)
        return offsets, of_point, torch.ones(())
    logits = logits.reshape(b, q, heads, levels, points + 1)
    return offsets, logits[..., :-1].softmax(-1), logits[..., -1:].softmax(-2)


def forward_packed(
    value: Tensor, anchors: Tensor, bits: Tensor, packed: Tensor, scale: Tensor, shapes: Any, points: int
) -> Tuple[Tensor, Tensor]:
    offsets, of_point, of_level = unpacked(packed, value.shape[3], len(shapes), points)
    weights = of_point * of_level
    return numba_attention.forward(value, anchors, bits, offsets, weights, scale, shapes), weights.to(packed.dtype)


def backward_packed(
    value: Tensor, anchors: Tensor, bits: Tensor, packed: Tensor, kept: Tensor, scale: Tensor, grad: Tensor, shapes: Any
) -> Tuple[Tensor, Tensor]:
    offsets, of_point, of_level = unpacked(packed, value.shape[3], len(shapes), kept.shape[4])
    weights = of_point * of_level
    found = numba_attention.backward(value, anchors, bits, offsets, weights, scale, grad.contiguous(), shapes)
    if of_level.dim():
        inner = (found[2] * of_point).sum(-1, keepdim=True)
        by_level = of_level * (inner - (inner * of_level).sum(-2, keepdim=True))
        logits = torch.cat([weights * (found[2] - inner), by_level], -1)
    else:
        logits = weights * (found[2] - (found[2] * weights).sum((-1, -2), keepdim=True))
    return found[0], torch.cat([found[1].flatten(2), logits.flatten(2)], 2).to(packed.dtype)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPVFORMER_OPS", raising=False)
    names = ("supports", "forward", "backward", "forward_block", "backward_block")
    parts = {name: getattr(numba_attention, name) for name in names}
    module = SimpleNamespace(**parts, forward_packed=forward_packed, backward_packed=backward_packed)
    monkeypatch.setitem(library.ATTENTION, "cpu", module)


def encoder() -> TPVEncoder:
    torch.manual_seed(0)
    made = TPVEncoder(CONFIG)
    for parameter in made.parameters():
        parameter.data += torch.randn(parameter.shape) / 8
    return made


def inputs(batch: int) -> Tuple[List[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn(batch, 2, 32, h, w, generator=generator) for h, w in ((8, 12), (4, 6), (2, 3))]
    front = torch.tensor([[48.0, -20, 0, 0], [32.0, 0, -30, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    back = front * torch.tensor([-1.0, -1, 1, 1])
    shift = torch.rand(batch, 2, 4, 4, generator=generator)
    return maps, torch.stack([front, back])[None] + shift * torch.tensor([1.0, 1, 1, 0]).view(4, 1)


def outcome(model: TPVEncoder, batch: int, kind: Optional[torch.dtype] = None, run: Any = None) -> List[Tensor]:
    """Planes, then the gradients of the maps and of every parameter."""
    model.zero_grad()
    maps, rigs = inputs(batch)
    leaves = [m.requires_grad_() for m in maps]
    out = (run or model)(leaves, rigs, SIZE, product_type=kind)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None), *grads]


def errors(found: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in truth]
    return torch.tensor([float((a - b).norm() / b.norm().clamp(min=1e-6)) for a, b in zip(found, truth)])


@pytest.mark.parametrize("batch", [1, 2])
def test_the_same_with_fewer_launches(batch: int, request: pytest.FixtureRequest) -> None:
    model = encoder()
    truth = outcome(model, batch)
    request.getfixturevalue("kernels")
    assert errors(outcome(model, batch), truth).max() < 1e-4
    half = errors(outcome(model, batch, torch.bfloat16), truth)
    assert 1e-4 < half[0] < 2e-2 and half.median() < 0.1, half  # a gradient of an offset jumps where pixels change
    model.recompute = True
    assert errors(outcome(model, batch), truth).max() < 1e-4
    for layer in model.layers:
        layer.plane_attn.recompute = True  # "cheap": keeps less, and is as before
    assert errors(outcome(model, batch, torch.bfloat16), truth).max() < 1e-4


def test_the_past_with_fewer_launches(request: pytest.FixtureRequest) -> None:
    """Two samples, two frames, all of them moved in another way; planes, and gradients of the reader too."""
    model, reader = encoder(), HistoryReader(replace(CONFIG, history=HistoryConfig(frames=2))).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in reader.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) / 8
    moves = torch.eye(4).repeat(2, 2, 1, 1)
    moves[..., :2, 3] = torch.randn(2, 2, 2, generator=generator) * 8
    planes = torch.randn(2, 2, CONFIG.grid.num_queries, CONFIG.dim, generator=generator)
    history = PlaneHistory(planes, moves, torch.tensor([[0.5, 1.0], [0.4, torch.inf]]))

    def found(kind: Optional[torch.dtype] = None) -> List[Tensor]:
        reader.zero_grad()
        results = outcome(model, 2, kind, lambda *args, **named: model(*args, **named, pasts=reader.look(history)))
        return results + [p.grad.clone() for p in reader.parameters() if p.grad is not None]

    truth, without = found(), outcome(model, 2)
    assert errors(truth[:1], without[:1]).max() > 1e-2
    request.getfixturevalue("kernels")
    assert errors(found(), truth).max() < 1e-4
    half = errors(found(torch.bfloat16), truth)
    assert 1e-4 < half[0] < 2e-2 and half.median() < 0.1, half
    model.recompute = True
    assert errors(found(), truth).max() < 1e-4


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("replaced", [False, True])
def test_hooks_and_replaced_layers_are_called(replaced: bool) -> None:
    """Joined weights would pass over them: a hook that looks for NaN, an adapter in the place of a linear layer."""
    model, called = encoder(), []
    layer: Any = model.layers[1]
    if replaced:
        layer.ffn.linear1 = torch.nn.Sequential(layer.ffn.linear1)
        layer.ffn.linear1[0].register_forward_hook(lambda *_: called.append(1))
    else:
        layer.image_attn.output.register_forward_pre_hook(lambda *_: called.append(1))
    outcome(model, 1, torch.bfloat16)
    assert called == [1]


@pytest.mark.usefixtures("kernels")
def test_compiled_as_one_graph() -> None:
    model = encoder()
    truth = outcome(model, 1, torch.bfloat16)
    graph = torch.compile(model.forward, backend="aot_eager", fullgraph=True, dynamic=False)
    assert errors(outcome(model, 1, torch.bfloat16, graph), truth).max() < 2e-2


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("more", [0, 1])
def test_the_operator_is_what_it_says(more: int) -> None:
    shapes, q, heads, points = [2, 3, 1, 2], 5, 2, 4
    value, packed = torch.rand(1, 2, 8, heads, 4), torch.rand(1, q, heads * 2 * (3 * points + more))
    anchors, bits, scale = torch.rand(1, 2, q, 1, 2, 2), torch.randint(0, 4, (1, q)), torch.rand(1, q)
    leaves = (value.requires_grad_(), anchors, bits, packed.requires_grad_(), scale, shapes, points)
    torch.library.opcheck(fused._packed, leaves)
    with pytest.raises(ValueError, match="numbers a query, expected"):
        fused.packed_attention(value, anchors, bits, packed[..., 1:], scale, ((2, 3), (1, 2)), points)
    with pytest.raises(ValueError, match="value has 8 tokens"):
        fused.packed_attention(value, anchors, bits, packed, scale, ((2, 3), (1, 1)), points)


def test_planes_with_as_many_points_are_joined() -> None:
    assert joined_planes(CONFIG) == [[0], [1, 2]]


def test_joined_weights_without_all_gradients() -> None:
    a, b, c = (torch.randn(n, 3, requires_grad=True) for n in (2, 4, 1))
    first, second = together.prepare([{"ab": [a, b]}, {"c": [c]}], torch.float32)
    assert torch.equal(first["ab"], torch.cat([a, b])) and torch.equal(second["c"], c)
    (first["ab"] * 2).sum().backward()
    assert a.grad is not None and b.grad is not None and c.grad is None
    assert torch.equal(a.grad, torch.full((2, 3), 2.0)) and b.grad.shape == (4, 3)


def test_joined_weights_keep_their_memory_format_and_are_padded() -> None:
    weight = torch.randn(5, 4, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    bias = torch.randn(5, requires_grad=True)
    (made,) = together.prepare([{"weight": [weight], "bias": [bias]}], torch.bfloat16, 8)
    assert made["weight"].shape == (8, 4, 3, 3) and made["weight"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made["weight"][:5], weight.bfloat16()) and torch.equal(made["bias"][:5], bias.bfloat16())
    assert not made["weight"][5:].any() and not made["bias"][5:].any()
    (made["weight"].sum() + made["bias"].sum() * 3).backward()
    assert weight.grad is not None and weight.grad.stride() == weight.stride() and bias.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight)) and torch.equal(bias.grad, torch.full((5,), 3.0))
