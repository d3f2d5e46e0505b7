"""The backbone with few launches, as on a GPU: kernels of the CPU and plain PyTorch do what the GPU's kernels do.

Bias, shortcut and ReLU after a convolution are one operation; deformable convolutions get offsets and mask unseparated.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List, Optional, Tuple

import pytest
import torch
from torch import Tensor

from tpvformer.config import BackboneConfig
from tpvformer.model.backbone import ModulatedDeformConv3x3, ResNet
from tpvformer.ops import fused, library

numba_dcn = pytest.importorskip("tpvformer.ops.numba_dcn", reason="numba is not installed")

pytestmark = pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="registered from PyTorch 2.4 on")


def plain(x: Tensor, bias: Tensor, shortcut: Optional[Tensor]) -> Tensor:
    total = x.float() + bias
    return (total if shortcut is None else total + shortcut.float()).relu().to(x.dtype).contiguous()


def forward_raw(x: Tensor, raw: Tensor, weight: Tensor, geometry: Any, keep: bool) -> Tuple[Tensor, Tensor]:
    taps = geometry[0] * geometry[1]
    offset, logits = raw.float()[..., : 2 * taps], raw.float()[..., 2 * taps : 3 * taps]
    out = numba_dcn.forward(x, offset.contiguous(), logits.sigmoid(), weight, geometry)
    return out, weight.new_zeros((raw[..., 0].numel(), len(weight)) if keep else 0)


def backward_raw(
    x: Tensor, raw: Tensor, weight: Tensor, column: Tensor, grad: Tensor, geometry: Any
) -> Tuple[Tensor, Tensor, Tensor]:
    taps = geometry[0] * geometry[1]
    mask = raw.float()[..., 2 * taps : 3 * taps].sigmoid()
    offset = raw.float()[..., : 2 * taps].contiguous()
    found = numba_dcn.backward(x, offset, mask, weight, grad.contiguous(), geometry)
    rest = torch.zeros(*raw.shape[:3], raw.shape[3] - 3 * taps)
    return found[0], torch.cat([found[1], found[2] * mask * (1 - mask), rest], 3).to(raw.dtype), found[3]


@pytest.fixture
def raw_kernels(monkeypatch: pytest.MonkeyPatch) -> List[bool]:
    """Whether each deformable convolution kept its column."""
    kept: List[bool] = []

    def noted(x: Tensor, raw: Tensor, weight: Tensor, geometry: Any, keep: bool) -> Tuple[Tensor, Tensor]:
        kept.append(keep)
        assert raw.shape[3] == 32
        return forward_raw(x, raw, weight, geometry, keep)

    monkeypatch.delenv("TPVFORMER_OPS", raising=False)
    parts = {name: getattr(numba_dcn, name) for name in ("supports", "forward", "backward")}
    module = SimpleNamespace(**parts, forward_raw=noted, backward_raw=backward_raw)
    monkeypatch.setitem(library.CONVOLUTION, "cpu", module)
    return kept


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> List[Tuple[int, ...]]:
    monkeypatch.delenv("TPVFORMER_OPS", raising=False)
    shapes: List[Tuple[int, ...]] = []

    def noted(x: Tensor, bias: Tensor, shortcut: Optional[Tensor]) -> Tensor:
        shapes.append(tuple(x.shape))
        return plain(x, bias, shortcut)

    module = SimpleNamespace(supports=lambda x: True, bias_relu=noted)
    monkeypatch.setitem(library.ELEMENTWISE, "cpu", module)
    return shapes


def network(frozen_stages: int) -> ResNet:
    torch.manual_seed(0)
    cfg = BackboneConfig(
        blocks=(1, 1, 2, 1), base_width=8, dcn_stages=(3, 4), frozen_stages=frozen_stages, norm="frozen"
    )
    net = ResNet(cfg).train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                with torch.no_grad():
                    tensor.copy_(torch.rand_like(tensor) + 0.5)
    return net


def outcome(net: ResNet, images: Tensor, half: bool) -> List[Tensor]:
    """The maps, then the gradient of every weight."""
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        maps = net(images)
    torch.stack([(m.float() * torch.linspace(-1, 1, m.shape[1])[:, None, None]).sum() for m in maps]).sum().backward()
    return [*(m.detach() for m in maps), *(p.grad for p in net.parameters() if p.grad is not None)]


def errors(found: List[Tensor], truth: List[Tensor]) -> Tensor:
    return torch.tensor([float((a - b).norm() / b.norm()) for a, b in zip(found, truth)])


@pytest.mark.parametrize("frozen_stages", [0, 1])
def test_same_maps_and_gradients(frozen_stages: int, calls: List[Tuple[int, ...]]) -> None:
    net = network(frozen_stages).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    fused, fused_half = (outcome(net, images, half) for half in (False, True))
    assert len(calls) == 2 * (1 + 3 * 5)
    assert all(module._constants is None for module in net.modules() if hasattr(module, "_constants"))
    del library.ELEMENTWISE["cpu"]
    truth, half = (outcome(net, images, half) for half in (False, True))
    assert len(calls) == 2 * (1 + 3 * 5) and len(fused) == len(truth)
    assert [t.dtype for t in fused_half] == [t.dtype for t in half]
    assert errors(fused, truth).max() < 1e-5
    assert errors(fused_half, truth).mean() < 1.1 * errors(half, truth).mean(), "it rounds less often"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("recompute", ["none", "blocks"])
def test_offsets_and_mask_as_they_are(fused: bool, recompute: str, request: pytest.FixtureRequest) -> None:
    net = network(1).to(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, ModulatedDeformConv3x3):
            torch.nn.init.normal_(module.conv_offset.weight, std=0.05)
    images = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    truth, half = (outcome(net, images, half) for half in (False, True))
    names = list(net.state_dict())
    kept = request.getfixturevalue("raw_kernels")
    if fused:
        request.getfixturevalue("calls")
    for module in net.modules():
        if hasattr(module, "recompute"):
            module.recompute = recompute
    assert errors(outcome(net, images, False), truth).max() < 1e-4
    assert errors(outcome(net, images, True), truth).mean() < 1.2 * errors(half, truth).mean()
    assert set(kept) == {False} and list(net.state_dict()) == names
    columns = 4 * 2 * 9 * (2 * 4 * 6 * 32 + 2 * 3 * 64)  # bytes: two blocks of stage 3, one of stage 4
    for budget in (columns - 1, columns):
        kept.clear()
        net.column_budget = budget
        assert errors(outcome(net, images, False), truth).max() < 1e-4
        assert set(kept) == {budget == columns}


@pytest.mark.usefixtures("raw_kernels")
def test_offsets_and_mask_in_a_graph() -> None:
    net = network(1)
    images = torch.randn(1, 3, 64, 64)
    truth = outcome(net, images, False)
    graph: Any = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        net(images)
    maps = graph(images)
    assert errors([m.detach() for m in maps], truth[:3]).max() < 1e-5


@pytest.mark.usefixtures("raw_kernels")
@pytest.mark.parametrize("keep", [False, True])
def test_the_raw_operator_is_what_it_says(keep: bool) -> None:
    x, raw, weight = (torch.randn(*size).requires_grad_() for size in ((2, 5, 4, 16), (2, 5, 4, 32), (144, 4)))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(fused._raw, (x, raw, weight, [3, 3, 1, 1, 1], keep), test_utils=tests)
    with pytest.raises(ValueError, match="numbers a pixel"):
        fused.deform_conv_raw(x, raw[..., :26], weight, (3, 3, 1, 1, 1), keep)
    with pytest.raises(ValueError, match="raw has shape"):
        fused.deform_conv_raw(x, raw[:, 1:], weight, (3, 3, 1, 1, 1), keep)


def test_norms_that_learn_are_not_fused(calls: List[Tuple[int, ...]]) -> None:
    net = network(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.requires_grad_(True)
    net(torch.randn(1, 3, 64, 64))
    assert not calls


def test_a_graph_has_no_such_kernel(calls: List[Tuple[int, ...]]) -> None:
    """Inductor fuses what follows a convolution by itself."""
    graph = torch.compile(network(1), backend="eager", fullgraph=True, dynamic=False)
    graph(torch.randn(1, 3, 64, 64))
    assert not calls


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("adds", [False, True])
def test_the_operator_is_what_it_says(adds: bool) -> None:
    x, shortcut = (torch.randn(2, 3, 4, 5).transpose(1, 2).requires_grad_() for _ in range(2))
    torch.library.opcheck(fused._rectify, (x, torch.randn(5), shortcut if adds else None))


def test_shapes_are_checked() -> None:
    x = torch.zeros(1, 2, 2, 4)
    with pytest.raises(ValueError, match="bias has shape"):
        fused.bias_relu(x, torch.zeros(3), None)
    with pytest.raises(ValueError, match="shortcut has shape"):
        fused.bias_relu(x, torch.zeros(4), x[:, :1])
