"""Register the operations behind all kernels as ``torch.ops.tpvformer.*``.

Registered operators work under ``torch.compile`` and are tested by ``torch.library.opcheck``. PyTorch before 2.4 cannot
register gradients; there the same functions form an ``autograd.Function``. Results are always contiguous, because
compiled code relies on the layout of the fake kernels.

A kernel module has three functions, which neither store nor modify their arguments:

    supports(value) or supports(x, groups, deform_groups) -> bool      value (B,N,S,H,D), x (N,C,H,W), any type
    forward(...)    as ``anchored_attention`` and ``deform_conv``; tensors of any strides; the result is contiguous
    backward(..., grad_out, shapes or geometry)    the gradients, contiguous, each in the type of its tensor

``ATTENTION`` and ``CONVOLUTION`` hold the modules in use; ``backends`` fills them. Autocast is off inside them.
``ELEMENTWISE`` holds modules with ``bias_relu``, of the backends that have it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from tpvformer.ops.reference import LevelShapes

MAX_CAMERAS = 63  # bits of an int64 without the sign
ATTENTION: Dict[str, ModuleType] = {}  # device type -> kernels
CONVOLUTION: Dict[str, ModuleType] = {}
ELEMENTWISE: Dict[str, ModuleType] = {}
_REGISTERS = hasattr(torch.library, "custom_op")
_INPUTS = "Tensor value, Tensor anchors, Tensor bits, Tensor offsets, Tensor weights, Tensor scale"


def _operator(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    if not _REGISTERS:
        return kernel
    made = torch.library.custom_op(f"tpvformer::{name}", kernel, mutates_args=(), schema=schema)
    made.register_fake(fake)
    return made


def _differentiable(
    operator: Any, derivative: Any, setup: Callable[..., None], gradient: Callable[..., Any]
) -> Callable[..., Tensor]:
    """Return the operator with a gradient that calls the operator ``derivative``, or PyTorch's own if it is None."""
    if _REGISTERS:
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


def _contiguous(like: Tensor) -> Tensor:
    """Return the fake gradient of ``like``: contiguous, whatever its strides."""
    return like.new_empty(like.shape)


def _pairs(flat: Sequence[int]) -> LevelShapes:
    return tuple(zip(flat[::2], flat[1::2]))


def _expect(name: str, tensor: Tensor, shape: Tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")


# ---- attention around anchors


def _attend(
    value: Tensor, anchors: Tensor, bits: Tensor, offsets: Tensor, weights: Tensor, scale: Tensor, shapes: List[int]
) -> Tensor:
    with torch.autocast(value.device.type, enabled=False):
        return ATTENTION[value.device.type].forward(value, anchors, bits, offsets, weights, scale, _pairs(shapes))


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
        return ATTENTION[value.device.type].backward(*inputs, _pairs(shapes))


def _attend_backward_fake(
    value: Tensor, anchors: Any, bits: Any, offsets: Tensor, weights: Tensor, *_: Any
) -> Tuple[Tensor, Tensor, Tensor]:
    return _contiguous(value), _contiguous(offsets), _contiguous(weights)


_attention = _operator("anchored_attention", f"({_INPUTS}, int[] shapes) -> Tensor", _attend, _attend_fake)
_attention_backward = _operator(
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


_attention_apply = _differentiable(_attention, _attention_backward, _attention_setup, _attention_gradient)


def anchored_attention(
    value: Tensor, anchors: Tensor, bits: Tensor, offsets: Tensor, weights: Tensor, scale: Tensor, shapes: LevelShapes
) -> Tensor:
    """Return the sum over cameras, levels and points of weighted samples around anchors, times ``scale``.

    value (B,N,S,H,D); anchors (Ba,N,Q,La,A,2), Ba and La 1 if shared, used as float32; bits (B,Q) int64, bit n: camera
    n is read; offsets (B,Q,H,L,P,2) pixels; weights (B,Q,H,L,P); scale (B,Q) float32. Returns (B,Q,H*D) in the type of
    value.

    Raises ValueError if the shapes do not fit, because kernels would read outside their tensors.
    """
    b, n, tokens, heads, _ = value.shape
    queries, levels, points = weights.shape[1], len(shapes), weights.shape[4]
    ba, _, _, la, per_query, _ = anchors.shape
    if sum(h * w for h, w in shapes) != tokens:
        raise ValueError(f"attention: value has {tokens} tokens, expected those of the levels {tuple(shapes)}")
    _expect("weights", weights, (b, queries, heads, levels, points))
    _expect("offsets", offsets, (b, queries, heads, levels, points, 2))
    _expect("anchors", anchors, (b if ba != 1 else 1, n, queries, levels if la != 1 else 1, per_query, 2))
    _expect("bits", bits, (b, queries))
    _expect("scale", scale, (b, queries))
    if points % per_query:
        raise ValueError(f"attention: {points} points a level cannot be shared among {per_query} anchors")
    return _attention_apply(value, anchors.float(), bits, offsets, weights, scale, [n for pair in shapes for n in pair])


# ---- the same, with offsets and logits as one linear layer writes them


def _attend_packed(
    value: Tensor, anchors: Tensor, bits: Tensor, packed: Tensor, scale: Tensor, shapes: List[int], points: int
) -> Tuple[Tensor, Tensor]:
    with torch.autocast(value.device.type, enabled=False):
        kernels: Any = ATTENTION[value.device.type]
        return kernels.forward_packed(value, anchors, bits, packed, scale, _pairs(shapes), points)


def _attend_packed_fake(
    value: Tensor, anchors: Any, bits: Any, packed: Tensor, scale: Any, shapes: List[int], points: int
) -> Tuple[Tensor, Tensor]:
    b, q = packed.shape[:2]
    out = value.new_empty(b, q, value.shape[3] * value.shape[4])
    return out, packed.new_empty(b, q, value.shape[3], len(shapes) // 2, points)


def _attend_packed_backward(
    value: Tensor,
    anchors: Tensor,
    bits: Tensor,
    packed: Tensor,
    weights: Tensor,
    scale: Tensor,
    grad_out: Tensor,
    shapes: List[int],
) -> Tuple[Tensor, Tensor]:
    inputs = (value, anchors, bits, packed, weights, scale, grad_out)
    with torch.autocast(value.device.type, enabled=False):
        kernels: Any = ATTENTION[value.device.type]
        return kernels.backward_packed(*inputs, _pairs(shapes))


def _attend_packed_backward_fake(
    value: Tensor, anchors: Any, bits: Any, packed: Tensor, *_: Any
) -> Tuple[Tensor, Tensor]:
    return _contiguous(value), _contiguous(packed)


_packed = _operator(
    "packed_attention",
    "(Tensor value, Tensor anchors, Tensor bits, Tensor packed, Tensor scale, int[] shapes, int points)"
    " -> (Tensor, Tensor)",
    _attend_packed,
    _attend_packed_fake,
)
_packed_backward = _operator(
    "packed_attention_backward",
    "(Tensor value, Tensor anchors, Tensor bits, Tensor packed, Tensor weights, Tensor scale, Tensor grad_out,"
    " int[] shapes) -> (Tensor, Tensor)",
    _attend_packed_backward,
    _attend_packed_backward_fake,
)


def _packed_setup(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, Tensor]) -> None:
    value, anchors, bits, packed, scale, ctx.shapes, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(value, anchors, bits, packed, output[1], scale)


def _packed_gradient(ctx: Any, grad_out: Tensor, _: Any) -> Tuple[Any, ...]:
    value, packed = _packed_backward(*ctx.saved_tensors, grad_out, ctx.shapes)
    return value, None, None, packed, None, None, None


_packed_apply = _differentiable(_packed, _packed_backward, _packed_setup, _packed_gradient)


def has_packed(device_type: str) -> bool:
    """Return whether the kernels of this device compute ``packed_attention``; ask ``use_kernel`` first."""
    return _REGISTERS and hasattr(ATTENTION.get(device_type), "forward_packed")


def packed_attention(
    value: Tensor, anchors: Tensor, bits: Tensor, packed: Tensor, scale: Tensor, shapes: LevelShapes, points: int
) -> Tensor:
    """Compute ``anchored_attention`` from what a linear layer predicts for each query, packed (B,Q,W).

    Its row holds the offsets (H,L,P,2), then the logits: (H,L,P), with a softmax over a head's L*P, or (H,L,P+1), with
    a softmax over the points of each level times a softmax over the levels of the last logits. ``points`` is P.

    Raises ValueError if the shapes do not fit, because kernels would read outside their tensors.
    """
    b, n, tokens, heads, _ = value.shape
    queries, levels = packed.shape[1], len(shapes)
    ba, _, _, la, per_query, _ = anchors.shape
    if sum(h * w for h, w in shapes) != tokens:
        raise ValueError(f"attention: value has {tokens} tokens, expected those of the levels {tuple(shapes)}")
    widths = [heads * levels * (3 * points + more) for more in (0, 1)]
    if packed.shape[2] not in widths:
        raise ValueError(f"packed has {packed.shape[2]} numbers a query, expected {widths[0]} or {widths[1]}")
    _expect("packed", packed, (b, queries, packed.shape[2]))
    _expect("anchors", anchors, (b if ba != 1 else 1, n, queries, levels if la != 1 else 1, per_query, 2))
    _expect("bits", bits, (b, queries))
    _expect("scale", scale, (b, queries))
    if points % per_query:
        raise ValueError(f"attention: {points} points a level cannot be shared among {per_query} anchors")
    flat = [n for pair in shapes for n in pair]
    return _packed_apply(value, anchors.float(), bits, packed, scale, flat, points)[0]


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
    return _contiguous(x), _contiguous(offset), _contiguous(mask), _contiguous(weight)


_PARTS = "Tensor x, Tensor offset, Tensor mask, Tensor weight"
_convolution = _operator("deform_conv", f"({_PARTS}, int[] geometry) -> Tensor", _convolve, _convolve_fake)
_convolution_backward = _operator(
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


_convolution_apply = _differentiable(_convolution, _convolution_backward, _convolution_setup, _convolution_gradient)


def deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: Tuple[int, ...]) -> Tensor:
    """Compute a modulated deformable convolution, channels-last, one group and one deformable group.

    x (N,H,W,C); offset (N,ho,wo,taps*2) float32 as (dy,dx); mask (N,ho,wo,taps) float32; weight (taps*C,O) in the type
    of x; geometry (kh, kw, stride, padding, dilation). Returns (N,ho,wo,O) in the type of x.

    Raises ValueError if the shapes do not fit, because kernels would read outside their tensors.
    """
    n, _, _, c = x.shape
    kh, kw, stride, padding, dilation = geometry
    ho, wo = ((size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k in zip(x.shape[1:3], (kh, kw)))
    _expect("offset", offset, (n, ho, wo, 2 * kh * kw))
    _expect("mask", mask, (n, ho, wo, kh * kw))
    _expect("weight", weight, (kh * kw * c, weight.shape[1]))
    return _convolution_apply(x, offset, mask, weight, list(geometry))


# ---- the same, with offsets and mask as the layer before predicts them


def _convolve_raw(x: Tensor, raw: Tensor, weight: Tensor, geometry: List[int], keep: bool) -> Tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        kernels: Any = CONVOLUTION[x.device.type]
        return kernels.forward_raw(x, raw, weight, geometry, keep)


def _convolve_raw_fake(x: Tensor, raw: Tensor, weight: Tensor, geometry: Any, keep: bool) -> Tuple[Tensor, Tensor]:
    n, ho, wo, _ = raw.shape
    column = weight.new_empty((n * ho * wo, weight.shape[0]) if keep else (0,))
    return x.new_empty(n, ho, wo, weight.shape[1]), column


def _convolve_raw_backward(
    x: Tensor, raw: Tensor, weight: Tensor, column: Tensor, grad_out: Tensor, geometry: List[int]
) -> Tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        kernels: Any = CONVOLUTION[x.device.type]
        return kernels.backward_raw(x, raw, weight, column, grad_out, geometry)


def _convolve_raw_backward_fake(x: Tensor, raw: Tensor, weight: Tensor, *_: Any) -> Tuple[Tensor, Tensor, Tensor]:
    return _contiguous(x), _contiguous(raw), _contiguous(weight)


_raw = _operator(
    "deform_conv_raw",
    "(Tensor x, Tensor raw, Tensor weight, int[] geometry, bool keep) -> (Tensor, Tensor)",
    _convolve_raw,
    _convolve_raw_fake,
)
_raw_backward = _operator(
    "deform_conv_raw_backward",
    "(Tensor x, Tensor raw, Tensor weight, Tensor column, Tensor grad_out, int[] geometry) -> (Tensor, Tensor, Tensor)",
    _convolve_raw_backward,
    _convolve_raw_backward_fake,
)


def _raw_setup(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.geometry = inputs[3]


def _raw_gradient(ctx: Any, grad_out: Tensor, _: Any) -> Tuple[Any, ...]:
    return (*_raw_backward(*ctx.saved_tensors, grad_out, ctx.geometry), None, None)


_raw_apply = _differentiable(_raw, _raw_backward, _raw_setup, _raw_gradient)


def has_raw(device_type: str) -> bool:
    """Return whether the kernels of this device compute ``deform_conv_raw``; ask ``use_kernel`` first."""
    return _REGISTERS and hasattr(CONVOLUTION.get(device_type), "forward_raw")


def deform_conv_raw(x: Tensor, raw: Tensor, weight: Tensor, geometry: Tuple[int, ...], keep: bool) -> Tensor:
    """Compute ``deform_conv`` from raw (N,ho,wo,R): taps*2 offsets, taps logits of the mask, and ignored numbers.

    The mask is the sigmoid of its logits. ``keep``: the backward pass gets the column instead of building it again,
    for N*ho*wo*taps*C numbers of memory.

    Raises ValueError if the shapes do not fit, because kernels would read outside their tensors.
    """
    n, _, _, c = x.shape
    kh, kw, stride, padding, dilation = geometry
    ho, wo = ((size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k in zip(x.shape[1:3], (kh, kw)))
    if raw.shape[3] < 3 * kh * kw:
        raise ValueError(f"raw has {raw.shape[3]} numbers a pixel, expected {3 * kh * kw} or more")
    _expect("raw", raw, (n, ho, wo, raw.shape[3]))
    _expect("weight", weight, (kh * kw * c, weight.shape[1]))
    return _raw_apply(x, raw, weight, list(geometry), keep)[0]


# ---- bias, shortcut and ReLU after a convolution


def _bias_relu(x: Tensor, bias: Tensor, shortcut: Optional[Tensor]) -> Tensor:
    return ELEMENTWISE[x.device.type].bias_relu(x, bias, shortcut)


def _bias_relu_fake(x: Tensor, bias: Tensor, shortcut: Any) -> Tensor:
    return _contiguous(x)


_rectify = _operator("bias_relu", "(Tensor x, Tensor bias, Tensor? shortcut) -> Tensor", _bias_relu, _bias_relu_fake)


def _bias_relu_setup(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.adds = inputs[2] is not None


def _bias_relu_gradient(ctx: Any, grad_out: Tensor) -> Tuple[Any, ...]:
    (out,) = ctx.saved_tensors
    grad = torch.ops.aten.threshold_backward(grad_out, out, 0)
    return grad, None, grad if ctx.adds else None


_bias_relu_apply = _differentiable(_rectify, None, _bias_relu_setup, _bias_relu_gradient)


def bias_relu(x: Tensor, bias: Tensor, shortcut: Optional[Tensor]) -> Tensor:
    """Return relu(x + bias + shortcut): x and shortcut (...,C), bias (C,) float32, which gets no gradient.

    Raises ValueError if the shapes do not fit, because kernels would read outside their tensors.
    """
    _expect("bias", bias, tuple(x.shape[-1:]))
    if shortcut is not None:
        _expect("shortcut", shortcut, tuple(x.shape))
    return _bias_relu_apply(x, bias, shortcut)
