"""The backbone with bias, shortcut and ReLU after a convolution in one kernel, as on a GPU; plain PyTorch is in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import List, Optional, Tuple

import pytest
import torch
from torch import Tensor

from tpvformer.config import BackboneConfig
from tpvformer.model.backbone import ResNet
from tpvformer.ops import library

pytestmark = pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="registered from PyTorch 2.4 on")


def plain(x: Tensor, bias: Tensor, shortcut: Optional[Tensor]) -> Tensor:
    total = x.float() + bias
    return (total if shortcut is None else total + shortcut.float()).relu().to(x.dtype).contiguous()


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
    torch.library.opcheck(library._rectify, (x, torch.randn(5), shortcut if adds else None))


def test_shapes_are_checked() -> None:
    x = torch.zeros(1, 2, 2, 4)
    with pytest.raises(ValueError, match="bias has shape"):
        library.bias_relu(x, torch.zeros(3), None)
    with pytest.raises(ValueError, match="shortcut has shape"):
        library.bias_relu(x, torch.zeros(4), x[:, :1])
