"""Register further operations that save launches, of backends whose kernels have them.

Beside the functions in ``library`` their modules have ``forward_packed`` and ``backward_packed`` (attention),
``forward_raw`` and ``backward_raw`` (convolution), or ``bias_relu`` (elementwise).
"""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor

from tpvformer.ops.library import (
    ATTENTION,
    CONVOLUTION,
    ELEMENTWISE,
    REGISTERS,
    as_operator,
    contiguous,
    differentiable,
    expect,
    pairs,
)
from tpvformer.ops.reference import LevelShapes

# ---- attention around anchors, with offsets and logits as one linear layer writes them


def _attend_packed(
    value: Tensor, anchors: Tensor, bits: Tensor, packed: Tensor, scale: Tensor, shapes: List[int], points: int
) -> Tuple[Tensor, Tensor]:
    with torch.autocast(value.device.type, enabled=False):
        kernels: Any = ATTENTION[value.device.type]
        return kernels.forward_packed(value, anchors, bits, packed, scale, pairs(shapes), points)


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
        return kernels.backward_packed(*inputs, pairs(shapes))


def _attend_packed_backward_fake(
    value: Tensor, anchors: Any, bits: Any, packed: Tensor, *_: Any
) -> Tuple[Tensor, Tensor]:
    return contiguous(value), contiguous(packed)


_packed = as_operator(
    "packed_attention",
    "(Tensor value, Tensor anchors, Tensor bits, Tensor packed, Tensor scale, int[] shapes, int points)"
    " -> (Tensor, Tensor)",
    _attend_packed,
    _attend_packed_fake,
)
_packed_backward = as_operator(
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


_packed_apply = differentiable(_packed, _packed_backward, _packed_setup, _packed_gradient)


def has_packed(device_type: str) -> bool:
    """Return whether the kernels of this device compute ``packed_attention``; ask ``use_kernel`` first."""
    return REGISTERS and hasattr(ATTENTION.get(device_type), "forward_packed")


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
    expect("packed", packed, (b, queries, packed.shape[2]))
    expect("anchors", anchors, (b if ba != 1 else 1, n, queries, levels if la != 1 else 1, per_query, 2))
    expect("bits", bits, (b, queries))
    expect("scale", scale, (b, queries))
    if points % per_query:
        raise ValueError(f"attention: {points} points a level cannot be shared among {per_query} anchors")
    flat = [n for pair in shapes for n in pair]
    return _packed_apply(value, anchors.float(), bits, packed, scale, flat, points)[0]


# ---- deformable convolution, with offsets and mask as the layer before predicts them


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
    return contiguous(x), contiguous(raw), contiguous(weight)


_raw = as_operator(
    "deform_conv_raw",
    "(Tensor x, Tensor raw, Tensor weight, int[] geometry, bool keep) -> (Tensor, Tensor)",
    _convolve_raw,
    _convolve_raw_fake,
)
_raw_backward = as_operator(
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


_raw_apply = differentiable(_raw, _raw_backward, _raw_setup, _raw_gradient)


def has_raw(device_type: str) -> bool:
    """Return whether the kernels of this device compute ``deform_conv_raw``; ask ``use_kernel`` first."""
    return REGISTERS and hasattr(CONVOLUTION.get(device_type), "forward_raw")


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
    expect("raw", raw, (n, ho, wo, raw.shape[3]))
    expect("weight", weight, (kh * kw * c, weight.shape[1]))
    return _raw_apply(x, raw, weight, list(geometry), keep)[0]


# ---- bias, shortcut and ReLU after a convolution


def _bias_relu(x: Tensor, bias: Tensor, shortcut: Optional[Tensor]) -> Tensor:
    return ELEMENTWISE[x.device.type].bias_relu(x, bias, shortcut)


def _bias_relu_fake(x: Tensor, bias: Tensor, shortcut: Any) -> Tensor:
    return contiguous(x)


_rectify = as_operator("bias_relu", "(Tensor x, Tensor bias, Tensor? shortcut) -> Tensor", _bias_relu, _bias_relu_fake)


def _bias_relu_setup(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.adds = inputs[2] is not None


def _bias_relu_gradient(ctx: Any, grad_out: Tensor) -> Tuple[Any, ...]:
    (out,) = ctx.saved_tensors
    grad = torch.ops.aten.threshold_backward(grad_out, out, 0)
    return grad, None, grad if ctx.adds else None


_bias_relu_apply = differentiable(_rectify, None, _bias_relu_setup, _bias_relu_gradient)


def bias_relu(x: Tensor, bias: Tensor, shortcut: Optional[Tensor]) -> Tensor:
    """Return relu(x + bias + shortcut): x and shortcut (...,C), bias (C,) float32, which gets no gradient.

    Raises ValueError if the shapes do not fit, because kernels would read outside their tensors.
    """
    expect("bias", bias, tuple(x.shape[-1:]))
    if shortcut is not None:
        expect("shortcut", shortcut, tuple(x.shape))
    return _bias_relu_apply(x, bias, shortcut)
