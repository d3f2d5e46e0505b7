"""What mmcv's files ask torch_npu, its compiled operation and ONNX for: recorded, with stand-ins for all three."""

from __future__ import annotations

import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any, Dict, List

import torch
from report import main, outcome


class _OnDevice(torch.Tensor):
    """A CPU tensor that says it is on an NPU."""

    device = SimpleNamespace(type="npu")  # type: ignore[assignment]


def _told(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return [list(value.shape), str(value.dtype)]
    if isinstance(value, (list, tuple)):
        return [_told(item) for item in value]
    return value


def _numbered(first: int, channels: int) -> torch.Tensor:
    """(1,channels,5,5) whose channels are numbered: what was reordered shows."""
    numbers = torch.arange(first, first + channels, dtype=torch.float32)
    return numbers.view(1, -1, 1, 1).expand(1, channels, 5, 5).as_subclass(_OnDevice)


def interfaces() -> Dict[str, Any]:
    """Calls and results of both deformable convolutions; as if tpvformer were not installed."""
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "tpvformer" else find(name, *rest)  # type: ignore
    deform = importlib.import_module("mmcv.ops.deform_conv")
    modulated = importlib.import_module("mmcv.ops.modulated_deform_conv")
    calls: List[Any] = []

    def forward(*args: Any, **named: Any) -> Any:
        calls.append(["forward", _told(args), named, args[2][0, :, 0, 0].tolist()])
        return torch.zeros(1, 4, 5, 5), torch.zeros(1, 8, 15, 15)

    def backward(*args: Any, **named: Any) -> Any:
        calls.append(["backward", _told(args), named])
        planes = torch.arange(27.0).view(1, -1, 1, 1).expand(1, 27, 5, 5)
        return torch.zeros(1, 8, 5, 5), torch.zeros(4, 8, 3, 3), planes, torch.zeros(4)

    class Context(SimpleNamespace):
        def save_for_backward(self, *tensors: torch.Tensor) -> None:
            self.saved_tensors = tensors

    to = torch.Tensor.to
    torch.npu_deformable_conv2d, torch.npu_deformable_conv2dbk = forward, backward  # type: ignore[attr-defined]
    torch.Tensor.npu = lambda self: self  # type: ignore[attr-defined]
    torch.Tensor.to = lambda self, *a, **k: self if a and isinstance(a[0], SimpleNamespace) else to(self, *a, **k)
    x, weight = torch.zeros(1, 8, 5, 5).as_subclass(_OnDevice), torch.zeros(4, 8, 3, 3).requires_grad_()
    sizes = (1, 2), (3, 4), (1, 2), 1, 1
    functions = {
        "plain": (deform.DeformConv2dFunction, (x, _numbered(0, 18), weight, (1, 1), (1, 1), (1, 1), 1, 1)),
        "modulated": (
            modulated.ModulatedDeformConv2dFunction,
            (x, _numbered(0, 18), _numbered(18, 9), weight, None, *sizes),
        ),
    }
    for name, (function, arguments) in functions.items():
        ctx = Context(needs_input_grad=[True] * 5)
        calls.append([name, _told(function.forward(ctx, *arguments))])
        calls.append(_told(ctx.saved_tensors))
        grads = function._npu_backward(ctx, torch.zeros(1, 4, 5, 5))
        calls.append([None if g is None else [_told(g), g[0, :, 0, 0].tolist()] for g in grads[:5]])
    index = modulated.ModulatedDeformConv2dFunction._calculate_sort_index
    calls.append([[part.tolist() for part in index(*case)] for case in ((3, 3, 1), (3, 3, 2), (2, 3, 1))])

    class Graph:
        def op(self, *args: Any, **named: Any) -> str:
            calls.append([args, sorted(named.items())])
            return "node"

    for bias in ("b", None):
        modulated.ModulatedDeformConv2dFunction.symbolic(Graph(), "x", "o", "m", "w", bias, 1, 2, 3, 4, 5)
    compiled = importlib.import_module("mmcv._ext")
    for name in ("modulated_deform_conv_forward", "modulated_deform_conv_backward"):
        setattr(compiled, name, lambda *a, _n=name, **k: calls.append([_n, _told(a), k]))
    for bias in (None, torch.zeros(4, requires_grad=True)):
        leaf = torch.zeros(1, 8, 5, 5, requires_grad=True)
        parts = torch.zeros(1, 18, 5, 5), torch.zeros(1, 9, 5, 5), torch.zeros(4, 8, 3, 3, requires_grad=True)
        modulated.modulated_deform_conv2d(leaf, *parts, bias, 1, 1, 1, 1, 1).sum().backward()
        calls.append(_told(leaf.grad))
    flat = outcome(lambda: modulated.modulated_deform_conv2d(torch.zeros(8, 5, 5), *parts, None, 1, 1, 1, 1, 1))
    return {"calls": calls, "errors": flat.split(":")[0]}


if __name__ == "__main__":
    main({"interfaces": interfaces})
