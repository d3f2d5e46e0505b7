"""mmcv's two compiled operations, with its names, argument names and results in place, computed by ``tpvformer.ops``.

Legend: B batch, Q queries, L levels, P points a level, D channels a head, S sum of h*w; N images, C channels, O output
channels, G deformable groups, k taps of the kernel.
"""

from __future__ import annotations

import weakref
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from tpvformer import ops
from tpvformer.ops.reference import modulated_deform_conv2d as plain_convolution

_LevelShapes = Tuple[Tuple[int, int], ...]


class _Read(NamedTuple):
    """The numbers of a tensor of level shapes, as long as the tensor lives and is not written."""

    tensor: "weakref.ref[Tensor]"
    version: int
    shapes: _LevelShapes


_reads: Dict[int, _Read] = {}  # by the id of the tensor


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Return multi-scale deformable attention (B,Q,heads*D), in the type of ``value``.

    value (B,S,heads,D); value_spatial_shapes (L,2) rows (h,w); value_level_start_index (L,) the sums of h*w before each
    level; sampling_locations (B,Q,heads,L,P,2) as (x,y) in [0,1]; attention_weights (B,Q,heads,L,P). ``im2col_step``
    has no effect. Raises ValueError where the levels do not follow each other in ``value``.
    """
    shapes = _level_shapes(value_spatial_shapes, value_level_start_index)
    return ops.ms_deform_attn(value, shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int = 64,
) -> None:
    """Add the gradient of ``value`` to ``grad_value``; write those of locations and weights. See the forward pass."""
    shapes = _level_shapes(value_spatial_shapes, value_level_start_index)
    by_value, by_location, by_weight = ops.ms_deform_attn_gradients(
        value, shapes, sampling_locations, attention_weights, grad_output
    )
    grad_value.add_(by_value)
    grad_sampling_loc.copy_(by_location)
    grad_attn_weight.copy_(by_weight)


def multi_scale_deformable_attn_pytorch(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Return the same attention, differentiable; mmcv's function of this name, which its models call on a CPU."""
    return ops.ms_deform_attn(value, _level_shapes(value_spatial_shapes), sampling_locations, attention_weights)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write a modulated deformable convolution (DCNv2) to ``output`` (N,O,ho,wo).

    input (N,C,H,W), of any memory format; weight (O,C/group,kernel_h,kernel_w); bias (O,), read if ``with_bias``;
    offset (N,2*G*k,ho,wo), (dy,dx) a tap; mask (N,G*k,ho,wo). ``ones`` and ``columns`` are not used.
    """
    _check_kernel(weight, kernel_h, kernel_w)
    sizes = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    given = (input, offset, mask, weight, *((bias,) if with_bias else ()))
    output.copy_(_convolve(given, sizes, group, deformable_group))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add the gradients of input, weight and bias to their tensors; write those of offset and mask."""
    _check_kernel(weight, kernel_h, kernel_w)
    sizes = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    found = _gradients((input, offset, mask, weight), sizes, group, deformable_group, grad_output)
    grad_input.add_(found[0])
    grad_offset.copy_(found[1])
    grad_mask.copy_(found[2])
    grad_weight.add_(found[3])
    if with_bias:
        grad_bias.add_(grad_output.sum((0, 2, 3)).to(grad_bias.dtype))


def _convolve(given: Sequence[Tensor], sizes: Tuple[int, ...], groups: int, deform_groups: int) -> Tensor:
    """Convolve x, offset, mask, weight and perhaps bias; ``sizes``: stride, padding, dilation, each (height, width)."""
    x, offset, mask, weight = given[:4]
    bias = given[4] if len(given) > 4 else None
    if _square(sizes):
        return ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *sizes[::2], groups, deform_groups)
    moved = offset + _grid(sizes, weight, offset, deform_groups)
    return plain_convolution(x.to(weight.dtype), moved, mask, weight, bias, 1, 0, 1, groups, deform_groups)


def _gradients(
    given: Sequence[Tensor], sizes: Tuple[int, ...], groups: int, deform_groups: int, grad_output: Tensor
) -> Tuple[Tensor, ...]:
    """Return the gradients of x, offset, mask and weight."""
    if _square(sizes):
        x, offset, mask, weight = given
        more = (*sizes[::2], groups, deform_groups)
        return ops.modulated_deform_conv2d_gradients(x, offset, mask, weight, grad_output, *more)
    # plain PyTorch alone has other sizes, and it has no gradient without a forward pass
    return ops.through_autograd(lambda *given: _convolve(given, sizes, groups, deform_groups), given, grad_output)


def _square(sizes: Tuple[int, ...]) -> bool:
    return sizes[::2] == sizes[1::2]


def _grid(sizes: Tuple[int, ...], weight: Tensor, offset: Tensor, deform_groups: int) -> Tensor:
    """Return what to add to offsets (N,2*G*k,ho,wo), so that stride 1, padding 0 and dilation 1 read the same places.

    The operation has one number for height and width.
    """
    kernel, shifts = weight.shape[2:], []
    for axis, (length, taps) in enumerate(zip(offset.shape[2:], kernel)):
        stride, padding, dilation = sizes[axis::2]
        place = torch.arange(length, device=offset.device) * (stride - 1) - padding
        tap = torch.arange(taps, device=offset.device) * (dilation - 1)
        shift = place + tap[:, None]  # (taps, length)
        shape = (taps, 1, length, 1) if axis == 0 else (1, taps, 1, length)
        shifts.append(shift.view(shape).expand(*kernel, *offset.shape[2:]))
    both = torch.stack(shifts, 2).reshape(-1, *offset.shape[2:])  # (k*2,ho,wo)
    return both.repeat(deform_groups, 1, 1).to(offset.dtype)


def _check_kernel(weight: Tensor, height: int, width: int) -> None:
    if tuple(weight.shape[2:]) != (height, width):
        raise ValueError(
            f"modulated_deform_conv: the kernel is {height} x {width}; expected that of weight {tuple(weight.shape)}"
        )


def _level_shapes(shapes: Tensor, starts: Optional[Tensor] = None) -> _LevelShapes:
    """Return the rows (h,w) of level shapes (L,2) as numbers; a tensor on a card is waited for once, not every call.

    Raises ValueError where ``starts`` (L,), if given, are not the sums of h*w before each level.
    """
    kept = _reads.get(id(shapes))
    waits = isinstance(shapes, Tensor) and shapes.device.type != "cpu" and not shapes.is_inference()
    if waits and kept is not None and kept.tensor() is shapes and kept.version == shapes._version:
        return kept.shapes
    rows = shapes.tolist() if isinstance(shapes, Tensor) else shapes
    read = tuple((int(h), int(w)) for h, w in rows)
    expected, total = [], 0
    for h, w in read:
        expected.append(total)
        total += h * w
    if starts is not None and starts.tolist() != expected:
        raise ValueError(f"attention: level_start_index is {starts.tolist()}; expected {expected} for levels {read}")
    if waits:
        key = id(shapes)
        _reads[key] = _Read(weakref.ref(shapes, lambda _: _reads.pop(key, None)), shapes._version, read)
    return read
