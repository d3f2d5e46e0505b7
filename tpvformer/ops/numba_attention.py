"""Compute deformable attention on the CPU with Numba kernels that neither store sampling locations nor use atomics.

One pair of kernels runs every attention of the model. It reads value (B,N,S,H,D) at

    pixel = anchor * (w,h) - 0.5 + offset,   anchor (Ba,N,Q,La,A,2), offset (B,Q,H,L,P,2), p uses anchor p // (P/A)

for every camera n with its bit set in ``bits`` (B,Q), and multiplies by ``scale`` (B,Q). Ba and La are 1 if samples or
levels share the anchors. Values, offsets and weights may have any float type up to float32; all arithmetic is float32.

Both kernels make two passes over the points of a query and a head. The first pass computes corner addresses and
bilinear weights, a vector of points at a time. The second pass moves the data, a vector of channels at a time. In the
backward pass a task owns one (sample, head, level), and therefore its slice of every gradient.
"""

from __future__ import annotations

import functools
import math
from typing import Tuple

import numba
import numpy as np
import torch
from torch import Tensor

from tpvformer.ops.library import MAX_CAMERAS
from tpvformer.ops.numba_options import INLINED, PARALLEL, flat, launch, vector_width
from tpvformer.ops.numba_simd import (
    fetch,
    lanes,
    put,
    vfloor,
    vload,
    vload_even,
    vload_first,
    vload_fourth,
    vload_odd,
    vload_second,
    vload_third,
    vsplat,
    vstore,
    vstore_dots,
    vstore_index,
    vstore_pairs,
    vwhere_less,
)
from tpvformer.ops.reference import LevelShapes

_F = np.float32
QUERY_BLOCK = 64  # queries of a task in the forward pass
MAX_TOKENS = 1 << 24  # of one camera, so that token indices are exact in float32


def supports(value: Tensor) -> bool:
    """Return whether these kernels support a value (B,N,S,H,D)."""
    _, n, s, h, d = value.shape
    known = value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and n <= MAX_CAMERAS and s < MAX_TOKENS and s * h * d < 2**31


@numba.njit(**INLINED)
def _anchor_pixels(x, y, anchors, base, slots, table, first):  # type: ignore[no-untyped-def]
    """Compute the anchor pixels of len(x) points, starting at number ``first`` over all levels, without offsets."""
    heights = table.shape[0] // 3
    for i in range(len(x)):
        at = 2 * (base + fetch(slots, first + i))
        put(x, i, fetch(anchors, at) * fetch(table, first + i) - _F(0.5))
        put(y, i, fetch(anchors, at + 1) * fetch(table, heights + first + i) - _F(0.5))


@numba.njit(**INLINED)
def _place(px, py, i, offsets, weights, k, table, tk, index, factor, unit, like):  # type: ignore[no-untyped-def]
    """Place a vector of points in their maps; store addresses and factors of their four corners.

    ``unit`` is the address step of a token; a point outside gets the address -unit. Returns for x and for y the weights
    of the lower and the upper corner, and whether each is inside (1 or 0).
    """
    n, lp = len(like), table.shape[0] // 3
    zero, one, minus = vsplat(_F(0), like), vsplat(_F(1), like), vsplat(_F(-1), like)
    w, h, start = vload(table, tk, like), vload(table, lp + tk, like), vload(table, 2 * lp + tk, like)
    x, y = vload(px, i, like) + vload_even(offsets, 2 * k, like), vload(py, i, like) + vload_odd(offsets, 2 * k, like)
    # a point not strictly between -1 and the size touches no pixel; also excludes NaN and infinity
    inside = vwhere_less(minus, x, vwhere_less(x, w, one, zero), zero)
    inside = inside * vwhere_less(minus, y, vwhere_less(y, h, one, zero), zero)
    x, y = vwhere_less(zero, inside, x, zero), vwhere_less(zero, inside, y, zero)
    x0, y0 = vfloor(x), vfloor(y)
    fx, fy = x - x0, y - y0
    in_x = vwhere_less(x0, zero, zero, one), vwhere_less(x0 + one, w, one, zero)
    in_y = vwhere_less(y0, zero, zero, one), vwhere_less(y0 + one, h, one, zero)
    gx0, gx1, gy0, gy1 = (one - fx) * in_x[0], fx * in_x[1], (one - fy) * in_y[0], fy * in_y[1]
    weight = vload(weights, k, like)
    upper, lower = gy0 * weight, gy1 * weight
    at = 4 * i
    vstore(factor, at, gx0 * upper)
    vstore(factor, at + n, gx1 * upper)
    vstore(factor, at + 2 * n, gx0 * lower)
    vstore(factor, at + 3 * n, gx1 * lower)
    # corners outside the map have factor zero and the address of their neighbour inside it
    xa, ya = vwhere_less(x0, zero, zero, x0), start + vwhere_less(y0, zero, zero, y0) * w
    xb, yb = x0 + in_x[1], start + (y0 + in_y[1]) * w
    vstore_index(index, at, vwhere_less(zero, inside, ya + xa, minus), unit)
    vstore_index(index, at + n, ya + xb, unit)
    vstore_index(index, at + 2 * n, yb + xa, unit)
    vstore_index(index, at + 3 * n, yb + xb, unit)
    return gx0, gx1, gy0, gy1, in_x, in_y


@numba.njit(**PARALLEL)
def _forward(value, anchors, bits, offsets, weights, scale, out, table, slots, dims, like, wide):  # type: ignore[no-untyped-def]
    b_, n_, s_, h_, q_, l_, p_, a_, ba, la, q0, of = dims
    d_, w_, lp = len(like), len(wide), l_ * p_
    unit = np.int32(h_ * d_)
    blocks = (q_ + QUERY_BLOCK - 1) // QUERY_BLOCK
    for task in numba.prange(b_ * blocks):
        px, py = np.empty(lp, np.float32), np.empty(lp, np.float32)
        index, factor = np.empty(4 * lp, np.int32), np.empty(4 * lp, np.float32)
        b = task // blocks
        start = (task % blocks) * QUERY_BLOCK
        for q in range(start, min(q_, start + QUERY_BLOCK)):
            place = b * of + q0 + q
            seen, share, row = fetch(bits, place), fetch(scale, place), (b * q_ + q) * h_
            for h in range(h_):
                vstore(out, (place * h_ + h) * d_, vsplat(_F(0), like))
            for n in range(n_):
                if (seen >> n) & 1:
                    origin = (((b % ba) * n_ + n) * of + q0 + q) * la * a_
                    _anchor_pixels(px, py, anchors, origin, slots, table, 0)
                    for h in range(h_):
                        base = ((b * n_ + n) * s_ * h_ + h) * d_
                        s0 = s1 = s2 = s3 = vsplat(_F(0), like)
                        for i in range(0, lp, w_):
                            k = (row + h) * lp + i
                            _place(px, py, i, offsets, weights, k, table, i, index, factor, unit, wide)
                        for i in range(0, lp, w_):
                            for j in range(4 * i, 4 * i + w_):
                                i00 = fetch(index, j)
                                if i00 >= 0:
                                    i01, i10 = base + fetch(index, j + w_), base + fetch(index, j + 2 * w_)
                                    i11 = base + fetch(index, j + 3 * w_)
                                    s0 = s0 + vload(value, base + i00, like) * fetch(factor, j)
                                    s1 = s1 + vload(value, i01, like) * fetch(factor, j + w_)
                                    s2 = s2 + vload(value, i10, like) * fetch(factor, j + 2 * w_)
                                    s3 = s3 + vload(value, i11, like) * fetch(factor, j + 3 * w_)
                        at = (place * h_ + h) * d_
                        vstore(out, at, vload(out, at, like) + ((s0 + s1) + (s2 + s3)) * share)


@numba.njit(**PARALLEL)
def _backward(  # type: ignore[no-untyped-def]
    value, anchors, bits, offsets, weights, scale, grad_out, grad_value, grad_offsets, grad_weights, table, slots, dims,
    parts, like, wide,
):  # fmt: skip
    """Compute the gradients. value and grad_value are (B,N,H,S,D) here, so that a task's rows are contiguous."""
    b_, n_, s_, h_, q_, l_, p_, a_, ba, la, q0, of = dims
    d_, w_, lp, count = len(like), len(wide), l_ * p_, l_ * p_ // parts
    unit = np.int32(d_)
    for task in numba.prange(b_ * h_ * parts):
        px, py = np.empty(count, np.float32), np.empty(count, np.float32)
        index, factor = np.empty(4 * count, np.int32), np.empty(4 * count, np.float32)
        cells, dots = np.empty(8 * count, np.float32), np.empty(4 * count, np.float32)
        sums = np.empty(3 * count, np.float32)
        b, h, first = task // (h_ * parts), (task // parts) % h_, (task % parts) * count
        for q in range(q_):
            place = b * of + q0 + q
            seen = fetch(bits, place)
            k0 = ((b * q_ + q) * h_ + h) * lp + first
            grad = vload(grad_out, (place * h_ + h) * d_, like) * fetch(scale, place)
            for i in range(0, 3 * count, w_):
                vstore(sums, i, vsplat(_F(0), wide))
            for n in range(n_):
                if (seen >> n) & 1:
                    origin = (((b % ba) * n_ + n) * of + q0 + q) * la * a_
                    _anchor_pixels(px, py, anchors, origin, slots, table, first)
                    base = ((b * n_ + n) * h_ + h) * s_ * d_
                    for i in range(0, count, w_):
                        gx0, gx1, gy0, gy1, in_x, in_y = _place(
                            px, py, i, offsets, weights, k0 + i, table, first + i, index, factor, unit, wide
                        )
                        vstore(cells, 8 * i, gx0)
                        vstore(cells, 8 * i + w_, gx1)
                        vstore(cells, 8 * i + 2 * w_, gy0)
                        vstore(cells, 8 * i + 3 * w_, gy1)
                        vstore(cells, 8 * i + 4 * w_, in_x[0])
                        vstore(cells, 8 * i + 5 * w_, in_x[1])
                        vstore(cells, 8 * i + 6 * w_, in_y[0])
                        vstore(cells, 8 * i + 7 * w_, in_y[1])
                    for i in range(0, count, w_):
                        for j in range(4 * i, 4 * i + w_):
                            i00 = base + fetch(index, j)
                            if i00 >= base:
                                i01, i10 = base + fetch(index, j + w_), base + fetch(index, j + 2 * w_)
                                i11 = base + fetch(index, j + 3 * w_)
                                vstore_dots(
                                    dots, 4 * (j - 3 * i), grad, vload(value, i00, like), vload(value, i01, like),
                                    vload(value, i10, like), vload(value, i11, like),
                                )  # fmt: skip
                                vstore(grad_value, i00, vload(grad_value, i00, like) + grad * fetch(factor, j))
                                vstore(grad_value, i01, vload(grad_value, i01, like) + grad * fetch(factor, j + w_))
                                vstore(grad_value, i10, vload(grad_value, i10, like) + grad * fetch(factor, j + 2 * w_))
                                vstore(grad_value, i11, vload(grad_value, i11, like) + grad * fetch(factor, j + 3 * w_))
                            else:
                                for corner in range(4):
                                    put(dots, 4 * (j - 3 * i) + corner, _F(0))
                    for i in range(0, count, w_):
                        gx0, gx1 = vload(cells, 8 * i, wide), vload(cells, 8 * i + w_, wide)
                        gy0, gy1 = vload(cells, 8 * i + 2 * w_, wide), vload(cells, 8 * i + 3 * w_, wide)
                        in_x = vload(cells, 8 * i + 4 * w_, wide), vload(cells, 8 * i + 5 * w_, wide)
                        in_y = vload(cells, 8 * i + 6 * w_, wide), vload(cells, 8 * i + 7 * w_, wide)
                        v00, v01 = vload_first(dots, 4 * i, wide), vload_second(dots, 4 * i, wide)
                        v10, v11 = vload_third(dots, 4 * i, wide), vload_fourth(dots, 4 * i, wide)
                        by_x = gy0 * (v01 * in_x[1] - v00 * in_x[0]) + gy1 * (v11 * in_x[1] - v10 * in_x[0])
                        by_y = gx0 * (v10 * in_y[1] - v00 * in_y[0]) + gx1 * (v11 * in_y[1] - v01 * in_y[0])
                        by_w = gy0 * (gx0 * v00 + gx1 * v01) + gy1 * (gx0 * v10 + gx1 * v11)
                        vstore(sums, i, vload(sums, i, wide) + by_x)
                        vstore(sums, count + i, vload(sums, count + i, wide) + by_y)
                        vstore(sums, 2 * count + i, vload(sums, 2 * count + i, wide) + by_w)
            for i in range(0, count, w_):
                weight = vload(weights, k0 + i, wide)
                by_x, by_y = weight * vload(sums, i, wide), weight * vload(sums, count + i, wide)
                vstore_pairs(grad_offsets, 2 * (k0 + i), by_x, by_y)
                vstore(grad_weights, k0 + i, vload(sums, 2 * count + i, wide))


@functools.lru_cache(maxsize=64)
def _tables(shapes: Tuple[Tuple[int, int], ...], points: int, anchors: int, own: bool) -> Tuple[np.ndarray, np.ndarray]:
    """Return tables of the L*P points: (3*L*P,) float32 width, height, first token of the level; (L*P,) int64 anchor.

    ``own``: whether each level has its own anchors.
    """
    starts = np.cumsum([0] + [h * w for h, w in shapes[:-1]])
    rows = np.array([(w, h, s) for (h, w), s in zip(shapes, starts)], np.float32)
    level, point = np.divmod(np.arange(len(shapes) * points), points)
    return rows[level].T.reshape(-1), level * anchors * own + point // (points // anchors)


def _widest(points: int) -> Tuple[np.float32, ...]:
    return lanes(math.gcd(points, vector_width()))


def _layout(anchors: Tensor, weights: Tensor, shapes: LevelShapes) -> Tuple[np.ndarray, np.ndarray]:
    return _tables(tuple(shapes), weights.shape[4], anchors.shape[4], anchors.shape[3] > 1)


def _dims(value: Tensor, anchors: Tensor, offsets: Tensor, first: int, of: int) -> Tuple[int, ...]:
    b, n, s, heads, _ = value.shape
    q, levels, points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
    return (b, n, s, heads, q, levels, points, anchors.shape[4], anchors.shape[0], anchors.shape[3], first, of)


def forward(
    value: Tensor, anchors: Tensor, bits: Tensor, offsets: Tensor, weights: Tensor, scale: Tensor, shapes: LevelShapes
) -> Tensor:
    """Compute the attention; shapes as in the module's docstring; returns (B,Q,H*D) in the type of value."""
    b, q, heads, _, _ = weights.shape
    out = torch.empty(b, q, heads * value.shape[4])
    forward_block(value.float(), anchors, bits, scale, offsets.float(), weights.float(), shapes, 0, out)
    return out.to(value.dtype)


def forward_block(
    value: Tensor, anchors: Tensor, bits: Tensor, scale: Tensor, offsets: Tensor, weights: Tensor, shapes: LevelShapes,
    first: int, out: Tensor,
) -> None:  # fmt: skip
    """Fill rows of ``out`` (B,Q,H*D) from query ``first`` on; offsets and weights belong to these queries; float32."""
    levels, points = weights.shape[3:]
    launch(
        _forward, *(flat(t) for t in (value, anchors, bits, offsets, weights, scale, out)),
        *_layout(anchors, weights, shapes), _dims(value, anchors, offsets, first, bits.shape[1]),
        lanes(value.shape[4]), _widest(levels * points),
    )  # fmt: skip


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
    """Return the gradients of value, offsets and weights, each in the type of its tensor."""
    by_head = value.transpose(2, 3).float().contiguous()
    sums = torch.zeros_like(by_head)
    by_offsets, by_weights = backward_block(
        by_head, anchors, bits, scale, offsets.float(), weights.float(), grad_out.float(), shapes, 0, sums
    )
    grad_value = value.new_empty(value.shape).copy_(sums.transpose(2, 3))
    return grad_value, by_offsets.to(offsets.dtype), by_weights.to(weights.dtype)


def backward_block(
    by_head: Tensor, anchors: Tensor, bits: Tensor, scale: Tensor, offsets: Tensor, weights: Tensor, grad_out: Tensor,
    shapes: LevelShapes, first: int, grad_by_head: Tensor,
) -> Tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of offsets and weights, which belong to the queries from ``first`` on; all float32.

    by_head is the value as (B,N,H,S,D). Its gradient through these queries is added to ``grad_by_head``.
    """
    b, n, heads, s, d = by_head.shape
    levels, points = weights.shape[3:]
    parts = 1 if b * heads % numba.get_num_threads() == 0 else levels  # enough tasks for all threads
    grads = torch.empty(offsets.shape), torch.empty(weights.shape)
    inputs = (by_head, anchors, bits, offsets, weights, scale, grad_out, grad_by_head, *grads)
    launch(
        _backward, *(flat(t) for t in inputs), *_layout(anchors, weights, shapes),
        _dims(by_head.transpose(2, 3), anchors, offsets, first, bits.shape[1]), parts, lanes(d),
        _widest(levels // parts * points),
    )  # fmt: skip
    return grads
