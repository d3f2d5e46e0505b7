"""Compute modulated deformable convolution in Triton: a column kernel and the vendor's matrix product.

Channels-last: x (N,H,W,C), offset (N,ho,wo,taps*2) float32 as (dy,dx), mask (N,ho,wo,taps) float32, weight (taps*C,O),
column (N*ho*wo, taps*C) in the weight's type, which is also the product's. Geometry and sums are float32. One group,
one deformable group, any number of channels. The backward pass gets the column, or builds it again.

"Raw" is what the layer before predicts for a pixel, in any float type: taps*2 offsets, taps logits of the mask, and
columns that are ignored, which make rows of 32 numbers out of 27 for 3x3 taps. Without raw, PITCH is 0.

Reason for not using one implicit product: 256 channels at 6x58x100 pixels make a column of 160 MB in bf16. Writing and
reading it costs about 0.08 ms of bandwidth a pass, against 0.07 ms for the product itself, and the library's product
needs no tuning. A program owns its (pixel, tap) samples over all channels, so gradients of offset and mask need no
atomics. Gradients of x are relaxed float32 atomics; their order, and therefore their last bits, vary.

Tested in Triton's interpreter and compiled for sm_90; never run on hardware.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tpvformer.ops.triton_bilinear import corner, footprint, next_power_of_two

Geometry = Tuple[int, int, int, int, int]  # kernel height and width, stride, padding, dilation

# (samples x channels, channels) of one step: 8 values a thread forward (one 16-byte load a corner in bf16), 4 backward
# (one 16-byte atomic a corner). Chosen from the assembler's report for sm_90: no spills, at most 56 registers.
FORWARD_TILE, BACKWARD_TILE, WARPS = (1024, 256), (512, 128), 4


def supports(x: Tensor, groups: int, deform_groups: int) -> bool:
    """Return whether these kernels support a convolution of x (N,C,H,W)."""
    known = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and groups == 1 and deform_groups == 1


@triton.jit
def _places(k, at, tap, TAPS: tl.constexpr, PITCH: tl.constexpr):
    """Return where the offset of sample k (tap of pixel at) and its mask are."""
    if PITCH == 0:
        pair, single = 2 * k, k
    else:
        pair, single = at * PITCH + 2 * tap, at * PITCH + 2 * TAPS + tap
    return pair, single


@triton.jit
def _samples(
    offset, mask, samples, height, width, out_height, out_width,
    TAPS: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    PITCH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Return the footprints of this program's samples; ``pixel`` is the row of x with the first corner."""
    k = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = k < samples
    tap = k % TAPS
    at = k // TAPS
    row = at // out_width
    image = row // out_height
    top = (row - image * out_height) * STRIDE - PADDING + (tap // KW) * DILATION
    start = (at - row * out_width) * STRIDE - PADDING + (tap % KW) * DILATION
    pair, single = _places(k, at, tap, TAPS, PITCH)
    y = top + tl.load(offset + pair, mask=live, other=0.0).to(tl.float32)
    x = start + tl.load(offset + pair + 1, mask=live, other=0.0).to(tl.float32)
    factor = tl.load(mask + single, mask=live, other=0.0).to(tl.float32)
    if PITCH != 0:
        factor = 1.0 / (1.0 + tl.exp(-factor))
    x0, y0, fx, fy, left, right, upper, lower = footprint(x, y, height, width, live)
    pixel = (image * height + y0) * width + x0
    return k, live, factor, pixel, fx, fy, left, right, upper, lower


@triton.jit
def _columns(
    x, offset, mask, column, samples, height, width, out_height, out_width,
    C: tl.constexpr, TAPS: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    k, live, factor, pixel, fx, fy, left, right, upper, lower = _samples(
        offset,
        mask,
        samples,
        height,
        width,
        out_height,
        out_width,
        TAPS,
        KW,
        STRIDE,
        PADDING,
        DILATION,
        PITCH,
        ROWS,
    )
    source = x + pixel.to(tl.int64) * C
    target = column + k.to(tl.int64) * C
    for first in range(0, C, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        total = tl.zeros((ROWS, CHANNELS), tl.float32)
        for i in tl.static_range(4):
            on, gx, gy = corner(fx, fy, left, right, upper, lower, i % 2, i // 2)
            here = on[:, None]
            if C % CHANNELS != 0:
                here = here & (channel < C)[None, :]
            at = (source + ((i // 2) * width + i % 2) * C)[:, None] + channel[None, :]
            total += tl.load(at, mask=here, other=0.0).to(tl.float32) * (gx * gy * factor)[:, None]
        there = live[:, None]
        if C % CHANNELS != 0:
            there = there & (channel < C)[None, :]
        tl.store(target[:, None] + channel[None, :], total.to(column.dtype.element_ty), mask=there)


@triton.jit
def _columns_backward(
    x, offset, mask, grad_column, grad_x, grad_offset, grad_mask, samples, height, width, out_height, out_width,
    C: tl.constexpr, TAPS: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    k, live, factor, pixel, fx, fy, left, right, upper, lower = _samples(
        offset,
        mask,
        samples,
        height,
        width,
        out_height,
        out_width,
        TAPS,
        KW,
        STRIDE,
        PADDING,
        DILATION,
        PITCH,
        ROWS,
    )
    origin = pixel.to(tl.int64) * C
    source = grad_column + k.to(tl.int64) * C
    sum_x = tl.zeros((ROWS,), tl.float32)
    sum_y = tl.zeros((ROWS,), tl.float32)
    sum_m = tl.zeros((ROWS,), tl.float32)
    for first in range(0, C, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        there = live[:, None]
        if C % CHANNELS != 0:
            there = there & (channel < C)[None, :]
        grad = tl.load(source[:, None] + channel[None, :], mask=there, other=0.0).to(tl.float32)
        # all loads before the first atomic: an atomic pins the order, and one load at a time would be in flight
        for i in tl.static_range(4):
            on, gx, gy = corner(fx, fy, left, right, upper, lower, i % 2, i // 2)
            here = on[:, None]
            if C % CHANNELS != 0:
                here = here & (channel < C)[None, :]
            at = (origin + ((i // 2) * width + i % 2) * C)[:, None] + channel[None, :]
            product = tl.sum(tl.load(x + at, mask=here, other=0.0).to(tl.float32) * grad, 1)
            sum_m += product * gx * gy
            sum_x += product * gy * (2 * (i % 2) - 1)
            sum_y += product * gx * (2 * (i // 2) - 1)
        for i in tl.static_range(4):
            on, gx, gy = corner(fx, fy, left, right, upper, lower, i % 2, i // 2)
            here = on[:, None]
            if C % CHANNELS != 0:
                here = here & (channel < C)[None, :]
            at = (origin + ((i // 2) * width + i % 2) * C)[:, None] + channel[None, :]
            tl.atomic_add(grad_x + at, grad * (gx * gy * factor)[:, None], mask=here, sem="relaxed")
    tap = k % TAPS
    pair, single = _places(k, k // TAPS, tap, TAPS, PITCH)
    kind = grad_offset.dtype.element_ty
    if PITCH != 0:
        sum_m *= factor * (1.0 - factor)
        for i in tl.static_range(PITCH - 3 * TAPS):  # of the columns that are ignored
            tl.store(grad_offset + (pair - 2 * tap) + 3 * TAPS + i, tl.zeros((ROWS,), kind), mask=live & (tap == 0))
    tl.store(grad_mask + single, sum_m.to(kind), mask=live)
    tl.store(grad_offset + pair, (sum_y * factor).to(kind), mask=live)
    tl.store(grad_offset + pair + 1, (sum_x * factor).to(kind), mask=live)


def _arguments(
    x: Tensor, pixels: Tensor, geometry: Geometry, tile: Tuple[int, int], raw: bool = False
) -> Tuple[Any, Any, Dict[str, Any]]:
    """Return the launch grid, and the arguments of both kernels after their tensors, by position and by name.

    ``pixels`` (N,ho,wo,taps) is the mask, or (N,ho,wo,numbers) ``raw``.
    """
    _, h, w, c = x.shape
    kh, kw, stride, padding, dilation = geometry
    samples = pixels[..., 0].numel() * kh * kw
    if pixels[..., 0].numel() * max(pixels.shape[3], 2 * kh * kw) >= 2**31 or x[..., 0].numel() >= 2**31:
        raise ValueError(f"deformable convolution: {samples} samples are too many for 32-bit indices; split the batch")
    channels = min(tile[1], next_power_of_two(c))
    rows = tile[0] // channels
    sizes = {"C": c, "TAPS": kh * kw, "KW": kw, "STRIDE": stride, "PADDING": padding, "DILATION": dilation}
    sizes["PITCH"] = pixels.shape[3] if raw else 0
    options = {"num_warps": WARPS, "num_stages": 1, "enable_fp_fusion": True}
    positional = (samples, h, w, pixels.shape[1], pixels.shape[2])
    return ((samples + rows - 1) // rows,), positional, dict(sizes, ROWS=rows, CHANNELS=channels, **options)


def _column(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the column (N*ho*wo, taps*C) in the weight's type; raw if ``offset`` and ``mask`` are the same tensor."""
    n, ho, wo, _ = mask.shape
    column = torch.empty(n * ho * wo, geometry[0] * geometry[1] * x.shape[3], dtype=weight.dtype, device=x.device)
    grid, positional, named = _arguments(x, mask, geometry, FORWARD_TILE, offset is mask)
    with torch.cuda.device_of(x):
        _columns[grid](x, offset, mask, column, *positional, **named)
    return column


def forward(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return (N,ho,wo,O) in the weight's type; ``geometry`` is (kh, kw, stride, padding, dilation). No device sync."""
    x, offset, mask = (t.contiguous() for t in (x, offset, mask))
    return (_column(x, offset, mask, weight, geometry) @ weight).view(*mask.shape[:3], weight.shape[1])


def forward_raw(x: Tensor, raw: Tensor, weight: Tensor, geometry: Geometry, keep: bool) -> Tuple[Tensor, Tensor]:
    """Return (N,ho,wo,O) in the weight's type, and the column, of size (0,) unless it is kept. No device sync."""
    x, raw = x.contiguous(), raw.contiguous()
    column = _column(x, raw, raw, weight, geometry)
    out = (column @ weight).view(*raw.shape[:3], weight.shape[1])
    return out, column if keep else column.new_empty(0)


def _gradients(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, kept: Tensor, grad_out: Tensor, geometry: Geometry
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, offset, mask and weight; the gradient of ``raw`` as those of both offset and mask."""
    grads = grad_out.reshape(-1, weight.shape[1]).to(weight.dtype)
    column = kept if kept.numel() else _column(x, offset, mask, weight, geometry)
    grad_weight = column.t() @ grads
    # what was built here is no longer needed, and its memory holds the gradient
    column = torch.mm(grads, weight.t(), out=torch.empty_like(column) if kept.numel() else column)
    grad_x = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    grad_offset = torch.empty_like(offset)
    grad_mask = grad_offset if mask is offset else torch.empty_like(mask)
    grid, positional, named = _arguments(x, mask, geometry, BACKWARD_TILE, offset is mask)
    with torch.cuda.device_of(x):
        _columns_backward[grid](x, offset, mask, column, grad_x, grad_offset, grad_mask, *positional, **named)
    return grad_x.to(x.dtype), grad_offset, grad_mask, grad_weight


def backward(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, grad_out: Tensor, geometry: Geometry
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, offset, mask and weight, each in the type of its tensor. No device sync."""
    x, offset, mask = (t.contiguous() for t in (x, offset, mask))
    return _gradients(x, offset, mask, weight, x.new_empty(0), grad_out, geometry)


def backward_raw(
    x: Tensor, raw: Tensor, weight: Tensor, column: Tensor, grad_out: Tensor, geometry: Geometry
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, raw and weight, each in the type of its tensor. No device sync."""
    x, raw = x.contiguous(), raw.contiguous()
    grad_x, grad_raw, _, grad_weight = _gradients(x, raw, raw, weight, column, grad_out, geometry)
    return grad_x, grad_raw, grad_weight
