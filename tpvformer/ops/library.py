"""Register the operations behind all kernels as ``torch.ops.tpvformer.*``.

Registered operators work under ``torch.compile`` and are tested by ``torch.library.opcheck``. PyTorch before 2.4 cannot
register gradients; there the same functions form an ``autograd.Function``. Results are always contiguous, because
compiled code relies on the layout of the fake kernels.

A kernel module has three functions, which neither store nor modify their arguments:

    supports(value) or supports(x, groups, deform_groups) -> bool      value (B,N,S,H,D), x (N,C,H,W), any type
    forward(...)    as ``anchored_attention`` and ``deform_conv``; tensors of any strides; the result is contiguous
    backward(..., grad_out, shapes or geometry)    the gradients, contiguous, each in the type of its tensor

``ATTENTION`` and ``CONVOLUTION`` hold the modules in use; ``backends`` fills them. Autocast is off inside them.
``ELEMENTWISE`` holds modules with ``bias_relu``, of the backends that have it (``fused``).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from tpvformer.ops.reference import LevelShapes

MAX_CAMERAS = 63  # bits of an int64 without the sign
ATTENTION: Dict[str, ModuleType] = {}  # device type -> kernels
CONVOLUTION: Dict[str, ModuleType] = {}
ELEMENTWISE: Dict[str, ModuleType] = {}
REGISTERS = hasattr(torch.library, "custom_op")
_INPUTS = "Tensor value, Tensor anchors, Tensor bits, Tensor offsets, Tensor weights, Tensor scale"


def as_operator(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    if not REGISTERS:
        return kernel
    made = torch.library.custom_op(f"tpvformer::{name}", kernel, mutates_args=(), schema=schema)
    made.register_fake(fake)
    return made


def differentiable(
    operator: Any, derivative: Any, setup: Callable[..., None], gradient: Callable[..., Any]
) -> Callable[..., Tensor]:
    """Return the operator with a gradient that calls the operator ``derivative``, or PyTorch's own if it is None."""
    if REGISTERS:
        operator.register_autograd(gradient, setup_context=setup)
        if derivative is not None:
            derivative.register_autograd(_refuse)
        return operator

    methods = {
        "forward": staticmethod(operator),
        "setup_context": staticmethod(setup),
        "backward": staticmethod(torch.autograd.function.once_differentiable(gradient)),
    }
    function: Any = type("Differentiable", (torch.autograd.Function,), methods)
    return function.apply


def _refuse(*_: Any) -> Any:
    raise RuntimeError("the kernels have first derivatives only; TPVFORMER_OPS=reference has them all")


def contiguous(like: Tensor) -> Tensor:
    """Return the fake gradient of ``like``: contiguous, whatever its strides."""
    return like.new_empty(like.shape)


def pairs(flat: Sequence[int]) -> LevelShapes:
    return tuple(zip(flat[::2], flat[1::2]))


def expect(name: str, tensor: Tensor, shape: Tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")


# ---- attention around anchors


def _attend(
    value: Tensor, anchors: Tensor, bits: Tensor, offsets: Tensor, weights: Tensor, scale: Tensor, shapes: List[int]
) -> Tensor:
    with torch.autocast(value.device.type, enabled=False):
        return ATTENTION[value.device.type].forward(value, anchors, bits, offsets, weights, scale, pairs(shapes))


def _attend_fake(value: Tensor, anchors: Any, bits: Any, offsets: Any, weights: Tensor, *_: Any) -> Tensor:
    return value.new_empty(weights.shape[0], weights.shape[1], value.shape[3] * value.shape[4])


def _attend_backward(
    value: Tensor,
    anchors: Tensor,
    bits: Tensor,
    offsets: Tensor,
    weights: Tensor,
    scale: Tensor,
    grad_out: Tensor,
    shapes: List[int],
) -> Tuple[Tensor, Tensor, Tensor]:
    inputs = (value, anchors, bits, offsets, weights, scale, grad_out)
    with torch.autocast(value.device.type, enabled=False):
        return ATTENTION[value.device.type].backward(*inputs, pairs(shapes))


def _attend_backward_fake(
    value: Tensor, anchors: Any, bits: Any, offsets: Tensor, weights: Tensor, *_: Any
) -> Tuple[Tensor, Tensor, Tensor]:
    return contiguous(value), contiguous(offsets), contiguous(weights)


_attention = as_operator("anchored_attention", f"({_INPUTS}, int[] shapes) -> Tensor", _attend, _attend_fake)
_attention_backward = as_operator(
    "anchored_attention_backward",
    f"({_INPUTS}, Tensor grad_out, int[] shapes) -> (Tensor, Tensor, Tensor)",
    _attend_backward,
    _attend_backward_fake,
)


def _attention_setup(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.shapes = inputs[6]


def _attention_gradient(ctx: Any, grad_out: Tensor) -> Tuple[Any, ...]:
    value, offsets, weights = _attention_backward(*ctx.saved_tensors, grad_out, ctx.shapes)
    return value, None, None, offsets, weights, None, None


_attention_apply = differentiable(_attention, _attention_backward, _attention_setup, _attention_gradient)


def anchored_attention(
    value: Tensor, anchors: Tensor, bits: Tensor, offsets: Tensor, weights: Tensor, scale: Tensor, shapes: LevelShapes
) -> Tensor:
    """Return the sum over cameras, levels and points of weighted samples around anchors, times ``scale``.

    value (B,N,S,H,D); anchors (Ba,N,Q,La,A,2), Ba and La 1 if shared, used as float32; bits (B,Q) int64, bit n: camera
    n is read; offsets (B,Q,H,L,P,2) pixels; weights (B,Q,H,L,P); scale (B,Q) float32. Returns (B,Q,H*D) in the type of
    value.

    Raises ValueError if the shapes do not fit, because kernels would read outside their tensors.
    """
    inputs = (value, anchors.float(), bits, offsets, weights, scale)
    _check_attention(*inputs, shapes)
    return _attention_apply(*inputs, [n for pair in shapes for n in pair])


def attention_gradients(
    value: Tensor,
    anchors: Tensor,
    bits: Tensor,
    offsets: Tensor,
    weights: Tensor,
    scale: Tensor,
    grad_out: Tensor,
    shapes: LevelShapes,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, offsets and weights of ``anchored_attention``, which is not computed.

    grad_out (B,Q,H*D). Raises ValueError if the shapes do not fit.
    """
    inputs = (value, anchors.float(), bits, offsets, weights, scale)
    _check_attention(*inputs, shapes)
    expect("grad_out", grad_out, (*weights.shape[:2], value.shape[3] * value.shape[4]))
    return _attention_backward(*inputs, grad_out, [n for pair in shapes for n in pair])


def _check_attention(
    value: Tensor, anchors: Tensor, bits: Tensor, offsets: Tensor, weights: Tensor, scale: Tensor, shapes: LevelShapes
) -> None:
    b, n, tokens, heads, _ = value.shape
    queries, levels, points = weights.shape[1], len(shapes), weights.shape[4]
    ba, _, _, la, per_query, _ = anchors.shape
    if sum(h * w for h, w in shapes) != tokens:
        raise ValueError(f"attention: value has {tokens} tokens, expected those of the levels {tuple(shapes)}")
    expect("weights", weights, (b, queries, heads, levels, points))
    expect("offsets", offsets, (b, queries, heads, levels, points, 2))
    expect("anchors", anchors, (b if ba != 1 else 1, n, queries, levels if la != 1 else 1, per_query, 2))
    expect("bits", bits, (b, queries))
    expect("scale", scale, (b, queries))
    if points % per_query:
        raise ValueError(f"attention: {points} points a level cannot be shared among {per_query} anchors")


# ---- deformable convolution


def _convolve(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: List[int]) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return CONVOLUTION[x.device.type].forward(x, offset, mask, weight, geometry)


def _convolve_fake(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: Any) -> Tensor:
    return x.new_empty(*mask.shape[:3], weight.shape[1])


def _convolve_backward(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, grad_out: Tensor, geometry: List[int]
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        return CONVOLUTION[x.device.type].backward(x, offset, mask, weight, grad_out, geometry)


def _convolve_backward_fake(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, grad_out: Any, geometry: Any
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    return contiguous(x), contiguous(offset), contiguous(mask), contiguous(weight)


_PARTS = "Tensor x, Tensor offset, Tensor mask, Tensor weight"
_convolution = as_operator("deform_conv", f"({_PARTS}, int[] geometry) -> Tensor", _convolve, _convolve_fake)
_convolution_backward = as_operator(
    "deform_conv_backward",
    f"({_PARTS}, Tensor grad_out, int[] geometry) -> (Tensor, Tensor, Tensor, Tensor)",
    _convolve_backward,
    _convolve_backward_fake,
)


def _convolution_setup(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.geometry = inputs[4]


def _convolution_gradient(ctx: Any, grad_out: Tensor) -> Tuple[Any, ...]:
    return (*_convolution_backward(*ctx.saved_tensors, grad_out, ctx.geometry), None)


_convolution_apply = differentiable(_convolution, _convolution_backward, _convolution_setup, _convolution_gradient)


def deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: Tuple[int, ...]) -> Tensor:
    """Compute a modulated deformable convolution, channels-last, one group and one deformable group.

    x (N,H,W,C); offset (N,ho,wo,taps*2) float32 as (dy,dx); mask (N,ho,wo,taps) float32; weight (taps*C,O) in the type
    of x; geometry (kh, kw, stride, padding, dilation). Returns (N,ho,wo,O) in the type of x.

    Raises ValueError if the shapes do not fit, because kernels would read outside their tensors.
    """
    _check_convolution(x, offset, mask, weight, geometry)
    return _convolution_apply(x, offset, mask, weight, list(geometry))


def convolution_gradients(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, grad_out: Tensor, geometry: Tuple[int, ...]
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, offset, mask and weight of ``deform_conv``, which is not computed.

    grad_out (N,ho,wo,O) in the type of x. Raises ValueError if the shapes do not fit.
    """
    _check_convolution(x, offset, mask, weight, geometry)
    expect("grad_out", grad_out, (*mask.shape[:3], weight.shape[1]))
    return _convolution_backward(x, offset, mask, weight, grad_out, list(geometry))


def _check_convolution(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: Tuple[int, ...]) -> None:
    n, _, _, c = x.shape
    kh, kw, stride, padding, dilation = geometry
    ho, wo = ((size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k in zip(x.shape[1:3], (kh, kw)))
    expect("offset", offset, (n, ho, wo, 2 * kh * kw))
    expect("mask", mask, (n, ho, wo, kh * kw))
    expect("weight", weight, (kh * kw * c, weight.shape[1]))
