"""The four kernels, opaque to PyTorch as the real ones are, computed by the oracle, documented limits enforced.

STANDIN_DEVICE=cpu accepts tensors of the CPU, to look at calls where there is no pretended card.
"""

from __future__ import annotations

import os
from typing import Any, List, Sequence, Tuple

import torch
import torch.nn.functional as F
import torch_npu
from torch import Tensor

from mx_driving import SDK
from tpvformer.ops import reference

DEVICE = os.environ.get("STANDIN_DEVICE", "npu")
IN_PLACE_FROM = int(os.environ.get("STANDIN_IN_PLACE_FROM", "2000000"))  # elements from which add_relu writes into x
MAX_HEAD_DIM = {"6.0.0": 64, "7.x": 64, "26.x": 256}[SDK]


def _check(ok: bool, text: str) -> None:
    if not ok:
        raise RuntimeError(f"mx_driving {SDK}: {text}")


def _on_device(name: str, tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        _check(tensor.device.type == DEVICE, f"{name}: a tensor is on {tensor.device}")
        _check(tensor.is_contiguous(), f"{name}: a tensor of strides {tensor.stride()} is not contiguous")


def _held(tensor: Tensor) -> Tensor:
    """The memory of a tensor, which a kernel reads without PyTorch's knowledge."""
    return getattr(tensor, "held", tensor)


def _lifted(result: Tensor, like: Tensor) -> Tensor:
    return result if DEVICE == "cpu" else torch_npu.card.on_card(result, like)


class _Opaque(torch.autograd.Function):
    """A function of held tensors, with first derivatives only."""

    @staticmethod
    def forward(ctx: Any, function: Any, *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return _lifted(function(*(_held(t.detach()) for t in inputs)), inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        leaves = [_held(t.detach()).clone().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            out = ctx.function(*leaves)
        gradients = torch.autograd.grad(out, leaves, _held(grad))
        return (None, *(_lifted(g, grad) for g in gradients))


def multi_scale_deformable_attn(*args: Any, **kwargs: Any) -> Tensor:
    """(value, spatial_shapes, level_start_index, sampling_locations, attention_weights), all by position."""
    if kwargs or len(args) != 5:
        raise TypeError(f"five positional arguments are expected, {len(args)} and {sorted(kwargs)} were given")
    value, shapes, starts, locations, weights = args
    _on_device("attention", args)
    _check(value.dtype in (torch.float32, torch.float16), f"attention: value is {value.dtype}")
    _check(locations.dtype == weights.dtype == value.dtype, "attention: the floating types differ")
    _check(shapes.dtype == starts.dtype == torch.int32, f"attention: shapes are {shapes.dtype}")
    b, tokens, heads, dim = value.shape
    levels, points = weights.shape[3:]
    pairs: List[Tuple[int, int]] = [(int(h), int(w)) for h, w in _held(shapes).tolist()]
    sizes = [h * w for h, w in pairs]
    _check(sum(sizes) == tokens and _held(starts).tolist() == [sum(sizes[:i]) for i in range(levels)], "levels")
    _check(tuple(weights.shape) == (b, weights.shape[1], heads, levels, points), "attention: shape of the weights")
    _check(tuple(locations.shape) == (*weights.shape, 2), "attention: shape of the locations")
    _check(heads <= 8, f"attention: {heads} heads")
    _check(dim % 8 == 0 and dim <= MAX_HEAD_DIM, f"attention: {dim} channels a head")
    if SDK != "6.0.0":
        _check(levels * points <= 64, f"attention: levels * points is {levels * points}, at most 64")
    _check(value.numel() > 0 and weights.numel() > 0, "attention: an empty tensor")
    torch_npu.calls.append(("attention", heads, dim, levels, points, b, weights.shape[1]))

    def compute(v: Tensor, where: Tensor, weight: Tensor) -> Tensor:
        return reference.ms_deform_attn(v, pairs, where, weight)

    return _Opaque.apply(compute, value, locations, weights)


def modulated_deform_conv2d(*args: Any, **kwargs: Any) -> Tensor:
    """(x, offset, mask, weight, bias, stride, padding, dilation, groups, deformable_groups), all by position."""
    if kwargs or not 4 <= len(args) <= 10:
        raise TypeError("four to ten positional arguments are expected")
    x, offset, mask, weight, bias, stride, padding, dilation, groups, deformable = (
        *args,
        *(None, 1, 0, 1, 1, 1)[len(args) - 4 :],
    )
    _on_device("convolution", (x, offset, mask, weight))
    _check(all(t.dtype == torch.float32 for t in (x, offset, mask, weight)), "convolution: float32 is expected")
    _check(bias is None, "convolution: the bias would be dropped without a word")
    _check(tuple(weight.shape[2:]) == (3, 3), f"convolution: kernel of {tuple(weight.shape[2:])}")
    _check(weight.shape[0] % 64 == 0 and x.shape[1] % 64 == 0, f"convolution: channels of {tuple(weight.shape)}")
    _check(groups == 1 and deformable == 1, "convolution: one group of each kind is expected")
    torch_npu.calls.append(("convolution", tuple(x.shape), tuple(weight.shape)))

    def compute(*tensors: Tensor) -> Tensor:
        return reference.modulated_deform_conv2d(*tensors, None, stride, padding, dilation, 1, 1).contiguous()

    return _Opaque.apply(compute, x, offset, mask, weight)


def npu_max_pool2d(*args: Any, **kwargs: Any) -> Tensor:
    """(x, 3, 2, 1) by position; there is no backward pass."""
    if kwargs or len(args) != 4:
        raise TypeError("four positional arguments are expected")
    x = args[0]
    _on_device("max_pool", (x,))
    _check(tuple(args[1:]) == (3, 2, 1), f"max_pool: {args[1:]}")
    _check(not x.requires_grad, "max_pool: it has no gradient, and one is wanted")
    step = {torch.float32: 8, torch.float16: 16}.get(x.dtype, 0)
    _check(step > 0 and x.shape[1] % step == 0 and x.shape[1] <= 1024, f"max_pool: {x.dtype}, {x.shape[1]} channels")
    _check(min(x.shape[2:]) > 100 and x.numel() <= 10**9, f"max_pool: maps of {tuple(x.shape[2:])}")
    torch_npu.calls.append(("max_pool", tuple(x.shape)))
    return _lifted(F.max_pool2d(_held(x).float(), 3, 2, 1).to(x.dtype), x)  # old CPUs know no fp16


class _AddRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        out = F.relu(_held(x.detach()) + _held(y.detach()))
        if x.numel() >= IN_PLACE_FROM:
            _held(x.detach()).copy_(out)  # which autograd is not told
        result = _lifted(out, x)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        passed = grad * (ctx.saved_tensors[0] > 0)
        return passed, passed


def npu_add_relu(*args: Any, **kwargs: Any) -> Tensor:
    """(x, y) by position; large x are overwritten."""
    if kwargs or len(args) != 2:
        raise TypeError("two positional arguments are expected")
    x, y = args
    _on_device("add_relu", (x, y))
    _check(x.dtype == y.dtype == torch.float32 and x.shape == y.shape, "add_relu: two float32 tensors of one shape")
    torch_npu.calls.append(("add_relu", tuple(x.shape)))
    return _AddRelu.apply(x, y)
