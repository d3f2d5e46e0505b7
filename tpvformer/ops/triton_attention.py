"""Compute deformable attention in Triton: one program a query, all its heads and points in one tile.

For every camera n with its bit set in bits (B,Q), value (B,N,S,H,D) is read at pixel = anchor * (w,h) - 0.5 + offset
with anchor (Ba,N,Q,La,A,2), Ba in {1,B}, La in {1,L}, and offset (B,Q,H,L,P,2). Point p uses anchor p // (P/A). The sum
over cameras, levels and points, weighted by weights (B,Q,H,L,P), is multiplied by scale (B,Q). Values, offsets and
weights may have any float type up to float32; geometry and sums are float32.

Reasons for this design: the cameras that see a query are the same for all lanes of a program, so lanes do not diverge.
A query's offsets, weights and anchors are contiguous. Its heads read neighbouring channels. Values stay (token, head,
channel) as the linear layer writes them: a sample of 16 bf16 channels is one 32-byte sector in either order, so no
transpose is needed. Value gradients are relaxed float32 atomics, so their last bits depend on the order of execution.

Tested in Triton's interpreter and compiled for sm_90; never run on hardware.
"""

from __future__ import annotations

import functools
from typing import Any, Dict, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tpvformer.ops.library import MAX_CAMERAS
from tpvformer.ops.reference import LevelShapes
from tpvformer.ops.triton_bilinear import corner, footprint, next_power_of_two

# Samples x channels of one step: 8 values a thread forward (one 16-byte load a corner in bf16), 4 backward (a 16-byte
# atomic a corner). Chosen from the assembler's report for sm_90: no spills, at most 64 registers at 16 channels.
FORWARD_TILE, BACKWARD_TILE, WARPS = 1024, 512, 4


def supports(value: Tensor) -> bool:
    """Return whether these kernels support a value (B,N,S,H,D)."""
    _, n, s, h, d = value.shape
    known = value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and n <= MAX_CAMERAS and s * h * d < 2**31


@triton.jit
def _samples(row, first, offsets, weights, levels, pitch, H, L, P, HEADS: tl.constexpr, POINTS: tl.constexpr):
    """Load the geometry of one tile that is common to all cameras: lane -> (head, point of all levels)."""
    lane = tl.arange(0, HEADS * POINTS)
    head, point = lane // POINTS, first + lane % POINTS
    live = (head < H) & (point < L * P)
    head, point = tl.where(live, head, 0), tl.where(live, point, 0)
    at = head * (L * P) + point
    base = row * H * L * P
    x = tl.load(offsets + row * pitch + 2 * at, mask=live, other=0.0).to(tl.float32) - 0.5
    y = tl.load(offsets + row * pitch + 2 * at + 1, mask=live, other=0.0).to(tl.float32) - 0.5
    weight = tl.load(weights + base + at, mask=live, other=0.0).to(tl.float32)
    level = point // P
    height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
    token = tl.load(levels + 3 * level + 2)
    return live, head, point, level, at, x, y, weight, height, width, token


@triton.jit
def _forward(
    value, anchors, bits, offsets, weights, scale, out, levels, queries, tokens, anchor_stride, pitch,
    N: tl.constexpr, H: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, A: tl.constexpr,
    LA: tl.constexpr, HEADS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    b = (pid // queries).to(tl.int64)
    row = pid.to(tl.int64)
    q = row - b * queries
    seen = tl.load(bits + row)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros((HEADS * POINTS, CHANNELS), tl.float32)
    for first in range(0, L * P, POINTS):
        live, head, point, level, _, ox, oy, weight, height, width, token = _samples(
            row, first, offsets, weights, levels, pitch, H, L, P, HEADS, POINTS
        )
        near = (level % LA) * A + (point % P) // (P // A)
        for n in range(N):
            if ((seen >> n) & 1) != 0:
                centre = anchors + b * anchor_stride + ((n * queries + q) * (LA * A) + near) * 2
                x = tl.load(centre, mask=live, other=0.0) * width + ox
                y = tl.load(centre + 1, mask=live, other=0.0) * height + oy
                x0, y0, fx, fy, left, right, upper, lower = footprint(x, y, height, width, live)
                origin = ((token + y0 * width + x0) * H + head) * D
                camera = value + (b * N + n) * tokens * (H * D)
                for k in tl.static_range(4):
                    on, gx, gy = corner(fx, fy, left, right, upper, lower, k % 2, k // 2)
                    at = origin + ((k // 2) * width + k % 2) * (H * D)
                    here = on[:, None]
                    if CHANNELS != D:
                        here = here & (channel < D)[None, :]
                    read = tl.load(camera + (at[:, None] + channel[None, :]), mask=here, other=0.0)
                    total += read.to(tl.float32) * (gx * gy * weight)[:, None]
    heads = tl.sum(tl.reshape(total, (HEADS, POINTS, CHANNELS)), 1) * tl.load(scale + row)
    h = tl.arange(0, HEADS)
    real = (h < H)[:, None] & (channel < D)[None, :]
    tl.store(out + row * (H * D) + (h[:, None] * D + channel[None, :]), heads.to(out.dtype.element_ty), mask=real)


@triton.jit
def _backward(
    value, anchors, bits, offsets, weights, scale, grad_out, grad_value, grad_offsets, grad_weights, levels,
    queries, tokens, anchor_stride, pitch,
    N: tl.constexpr, H: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, A: tl.constexpr,
    LA: tl.constexpr, HEADS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    b = (pid // queries).to(tl.int64)
    row = pid.to(tl.int64)
    q = row - b * queries
    seen = tl.load(bits + row)
    factor = tl.load(scale + row)
    channel = tl.arange(0, CHANNELS)
    lane_head = tl.arange(0, HEADS * POINTS) // POINTS
    real = (lane_head < H)[:, None] & (channel < D)[None, :]
    grad = tl.load(grad_out + row * (H * D) + (lane_head[:, None] * D + channel[None, :]), mask=real, other=0.0)
    grad = grad.to(tl.float32) * factor
    for first in range(0, L * P, POINTS):
        live, head, point, level, place, ox, oy, weight, height, width, token = _samples(
            row, first, offsets, weights, levels, pitch, H, L, P, HEADS, POINTS
        )
        near = (level % LA) * A + (point % P) // (P // A)
        sum_x = tl.zeros((HEADS * POINTS,), tl.float32)
        sum_y = tl.zeros((HEADS * POINTS,), tl.float32)
        sum_w = tl.zeros((HEADS * POINTS,), tl.float32)
        for n in range(N):
            if ((seen >> n) & 1) != 0:
                centre = anchors + b * anchor_stride + ((n * queries + q) * (LA * A) + near) * 2
                x = tl.load(centre, mask=live, other=0.0) * width + ox
                y = tl.load(centre + 1, mask=live, other=0.0) * height + oy
                x0, y0, fx, fy, left, right, upper, lower = footprint(x, y, height, width, live)
                origin = ((token + y0 * width + x0) * H + head) * D
                camera = (b * N + n) * tokens * (H * D)
                # all loads before the first atomic: an atomic pins the order, and one load at a time would be in flight
                for k in tl.static_range(4):
                    on, gx, gy = corner(fx, fy, left, right, upper, lower, k % 2, k // 2)
                    at = origin + ((k // 2) * width + k % 2) * (H * D)
                    here = on[:, None]
                    if CHANNELS != D:
                        here = here & (channel < D)[None, :]
                    where = at[:, None] + channel[None, :]
                    read = tl.load(value + camera + where, mask=here, other=0.0).to(tl.float32)
                    product = tl.sum(read * grad, 1)
                    sum_w += product * gx * gy
                    sum_x += product * gy * (2 * (k % 2) - 1)
                    sum_y += product * gx * (2 * (k // 2) - 1)
                for k in tl.static_range(4):
                    on, gx, gy = corner(fx, fy, left, right, upper, lower, k % 2, k // 2)
                    at = origin + ((k // 2) * width + k % 2) * (H * D)
                    here = on[:, None]
                    if CHANNELS != D:
                        here = here & (channel < D)[None, :]
                    where = at[:, None] + channel[None, :]
                    tl.atomic_add(
                        grad_value + camera + where, grad * (gx * gy * weight)[:, None], mask=here, sem="relaxed"
                    )
        base = row * H * L * P
        kind = grad_offsets.dtype.element_ty
        tl.store(grad_weights + base + place, sum_w.to(grad_weights.dtype.element_ty), mask=live)
        tl.store(grad_offsets + row * pitch + 2 * place, (sum_x * weight).to(kind), mask=live)
        tl.store(grad_offsets + row * pitch + 2 * place + 1, (sum_y * weight).to(kind), mask=live)


@triton.jit
def _softmax(
    packed, row, pitch, H: tl.constexpr, L: tl.constexpr, P: tl.constexpr, OF_LEVELS: tl.constexpr,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Return the softmax over points and that over levels (or 1), lanes (HEADS, LEVELS, POINTS), and their places."""
    h = tl.arange(0, HEADS)[:, None, None]
    level = tl.arange(0, LEVELS)[None, :, None]
    p = tl.arange(0, POINTS)[None, None, :]
    live = (h < H) & (level < L) & (p < P)
    logits = packed + row * pitch + 2 * H * L * P
    at = (h * L + level) * (P + OF_LEVELS) + p
    x = tl.load(logits + at, mask=live, other=-float("inf")).to(tl.float32)
    if OF_LEVELS:
        last = (h * L + level) * (P + 1) + P
        there = (h < H) & (level < L)
        z = tl.load(logits + last, mask=there, other=-float("inf")).to(tl.float32)  # (HEADS, LEVELS, 1)
        x = tl.where(there, x, 0.0)
        z = tl.where(h < H, z, 0.0)
        e = tl.exp(x - tl.max(x, 2)[:, :, None])
        of_point = e / tl.sum(e, 2)[:, :, None]
        e = tl.exp(z - tl.max(z, 1)[:, None, :])
        of_level = e / tl.sum(e, 1)[:, None, :]
    else:
        x = tl.where(h < H, x, 0.0)
        e = tl.exp(x - tl.max(tl.max(x, 2), 1)[:, None, None])
        of_point = e / tl.sum(tl.sum(e, 2), 1)[:, None, None]
        of_level = tl.full((HEADS, LEVELS, 1), 1.0, tl.float32)
        last = at
        there = (h < 0) & (level < 0)
    return of_point, of_level, at, live, last, there, (h * L + level) * P + p


@triton.jit
def _weights(
    packed, weights, pitch, H: tl.constexpr, L: tl.constexpr, P: tl.constexpr, OF_LEVELS: tl.constexpr,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    of_point, of_level, _, live, _, _, place = _softmax(packed, row, pitch, H, L, P, OF_LEVELS, HEADS, LEVELS, POINTS)
    tl.store(weights + row * (H * L * P) + place, (of_point * of_level).to(weights.dtype.element_ty), mask=live)


@triton.jit
def _weights_backward(
    packed, grad_weights, grad_packed, pitch, H: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    OF_LEVELS: tl.constexpr, HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    of_point, of_level, at, live, last, there, place = _softmax(
        packed, row, pitch, H, L, P, OF_LEVELS, HEADS, LEVELS, POINTS
    )
    grad = tl.load(grad_weights + row * (H * L * P) + place, mask=live, other=0.0)
    of_point = tl.where(live, of_point, 0.0)
    target = grad_packed + row * pitch + 2 * H * L * P
    kind = grad_packed.dtype.element_ty
    if OF_LEVELS:
        inner = tl.sum(grad * of_point, 2)[:, :, None]
        by_level = inner * of_level
        by_level = by_level - of_level * tl.sum(by_level, 1)[:, None, :]
        tl.store(target + last, by_level.to(kind), mask=there)
        tl.store(target + at, (of_point * of_level * (grad - inner)).to(kind), mask=live)
    else:
        inner = tl.sum(tl.sum(grad * of_point, 2), 1)[:, None, None]
        tl.store(target + at, (of_point * (grad - inner)).to(kind), mask=live)


@functools.lru_cache(maxsize=64)
def _levels(shapes: Tuple[Tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return (L,3) int32 on the device: height, width, first token; cached after the first call with these shapes."""
    rows, start = [], 0
    for h, w in shapes:
        rows.append((h, w, start))
        start += h * w
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _arguments(
    value: Tensor, anchors: Tensor, offsets: Tensor, level_shapes: LevelShapes, tile: int, pitch: int = 0
) -> Tuple[Any, Dict[str, Any]]:
    """Return the further arguments of both kernels after their tensors, by position and by name.

    ``pitch``: numbers from the offsets of a query to those of the next; 0: they are contiguous.
    """
    _, n, s, h, d = value.shape
    q, levels, p = offsets.shape[1], offsets.shape[3], offsets.shape[4]
    a, la = anchors.shape[4], anchors.shape[3]
    if s * h * d >= 2**31 or q * h * levels * p >= 2**30:
        raise ValueError(f"attention: value {tuple(value.shape)} is too large for the 32-bit addresses of one camera")
    heads, channels = next_power_of_two(h), next_power_of_two(d)
    points = max(1, min(next_power_of_two(levels * p), tile // (heads * channels)))
    stride = 0 if anchors.shape[0] == 1 else anchors[0].numel()
    table = _levels(tuple((int(y), int(x)) for y, x in level_shapes), value.device)
    sizes = {"N": n, "H": h, "D": d, "L": levels, "P": p, "A": a, "LA": la, "HEADS": heads, "POINTS": points}
    options = {"num_warps": WARPS, "num_stages": 1, "enable_fp_fusion": True}
    return (table, q, s, stride, pitch or 2 * h * levels * p), dict(sizes, CHANNELS=channels, **options)


def forward(
    value: Tensor,
    anchors: Tensor,
    bits: Tensor,
    offsets: Tensor,
    weights: Tensor,
    scale: Tensor,
    shapes: LevelShapes,
) -> Tensor:
    """Return (B,Q,H*D) in the value's type; shapes as in the module's docstring. No device sync."""
    b, q = bits.shape
    out = value.new_empty(b, q, value.shape[3] * value.shape[4])
    positional, named = _arguments(value, anchors, offsets, shapes, FORWARD_TILE)
    tensors = [t.contiguous() for t in (value, anchors, bits, offsets, weights, scale)]
    with torch.cuda.device_of(value):
        _forward[(b * q,)](*tensors, out, *positional, **named)
    return out


def backward(
    value: Tensor,
    anchors: Tensor,
    bits: Tensor,
    offsets: Tensor,
    weights: Tensor,
    scale: Tensor,
    grad_out: Tensor,
    shapes: LevelShapes,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, offsets and weights, in their types. Does not synchronise with the device."""
    b, q = bits.shape
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    grad_offsets = torch.empty(offsets.shape, dtype=offsets.dtype, device=value.device)
    grad_weights = torch.empty(weights.shape, dtype=weights.dtype, device=value.device)
    positional, named = _arguments(value, anchors, offsets, shapes, BACKWARD_TILE)
    tensors = [t.contiguous() for t in (value, anchors, bits, offsets, weights, scale, grad_out)]
    with torch.cuda.device_of(value):
        _backward[(b * q,)](*tensors, grad_value, grad_offsets, grad_weights, *positional, **named)
    return grad_value.to(value.dtype), grad_offsets, grad_weights


def _softmax_arguments(weights: Tensor, packed: Tensor) -> Tuple[Any, Dict[str, Any]]:
    """Return the further arguments of the kernels of logits after their tensors, by position and by name."""
    _, _, h, levels, p = weights.shape
    tile = {"HEADS": next_power_of_two(h), "LEVELS": next_power_of_two(levels), "POINTS": next_power_of_two(p)}
    of_levels = int(packed.shape[2] != 3 * h * levels * p)
    options = {"num_warps": WARPS, "num_stages": 1, "enable_fp_fusion": True}
    return (packed.shape[2],), dict({"H": h, "L": levels, "P": p, "OF_LEVELS": of_levels}, **tile, **options)


def forward_packed(
    value: Tensor, anchors: Tensor, bits: Tensor, packed: Tensor, scale: Tensor, shapes: LevelShapes, points: int
) -> Tuple[Tensor, Tensor]:
    """Return (B,Q,H*D) in the value's type, and the weights (B,Q,H,L,P) in that of ``packed``; see library. No sync."""
    b, q = bits.shape
    h, levels = value.shape[3], len(shapes)
    value, anchors, bits, packed, scale = (t.contiguous() for t in (value, anchors, bits, packed, scale))
    out = value.new_empty(b, q, h * value.shape[4])
    weights = packed.new_empty(b, q, h, levels, points)
    offsets = packed[..., : 2 * h * levels * points].unflatten(2, (h, levels, points, 2))
    positional, named = _arguments(value, anchors, offsets, shapes, FORWARD_TILE, packed.shape[2])
    pitch, sizes = _softmax_arguments(weights, packed)
    with torch.cuda.device_of(value):
        _weights[(b * q,)](packed, weights, *pitch, **sizes)
        _forward[(b * q,)](value, anchors, bits, packed, weights, scale, out, *positional, **named)
    return out, weights


def backward_packed(
    value: Tensor,
    anchors: Tensor,
    bits: Tensor,
    packed: Tensor,
    weights: Tensor,
    scale: Tensor,
    grad_out: Tensor,
    shapes: LevelShapes,
) -> Tuple[Tensor, Tensor]:
    """Return the gradients of value and ``packed``, in their types. Does not synchronise with the device."""
    b, q = bits.shape
    _, _, h, levels, points = weights.shape
    tensors = [t.contiguous() for t in (value, anchors, bits, packed, weights, scale, grad_out)]
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    grad_weights = torch.empty(weights.shape, dtype=torch.float32, device=value.device)
    grad_packed = torch.empty(packed.shape, dtype=packed.dtype, device=value.device)
    offsets = packed[..., : 2 * h * levels * points].unflatten(2, (h, levels, points, 2))
    positional, named = _arguments(value, anchors, offsets, shapes, BACKWARD_TILE, packed.shape[2])
    pitch, sizes = _softmax_arguments(weights, packed)
    with torch.cuda.device_of(value):
        _backward[(b * q,)](*tensors, grad_value, grad_packed, grad_weights, *positional, **named)
        _weights_backward[(b * q,)](tensors[3], grad_weights, grad_packed, *pitch, **sizes)
    return grad_value.to(value.dtype), grad_packed
