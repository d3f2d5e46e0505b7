"""Compute modulated deformable convolution on the CPU: a Numba column kernel and a matrix product.

Channels-last: x (N,H,W,C), offset (N,ho,wo,taps*2) as (dy,dx), mask (N,ho,wo,taps), weight (taps*C,O). A few images at
a time become columns (pixels, taps*C), which stay in the cache until they are multiplied. The backward pass builds them
again. Columns have the type of x and weight (float32, or bfloat16 under autocast); all geometry is float32.
"""

from __future__ import annotations

from typing import Sequence, Tuple

import numba
import numpy as np
import torch
from torch import Tensor

from tpvformer.ops.numba_options import INLINED, PARALLEL, flat, launch
from tpvformer.ops.numba_simd import lanes, vload, vsplat, vstore, vstore_dots

_F = np.float32
LANES = 16
SLICES = 8  # at most this many tasks share an image in the backward pass, each with its own channels


def supports(x: Tensor, groups: int, deform_groups: int) -> bool:
    """Return whether these kernels support a convolution of x (N,C,H,W)."""
    suits = x.dtype in (torch.float32, torch.bfloat16) and x.shape[1] % LANES == 0
    return suits and groups == 1 and deform_groups == 1


@numba.njit(**INLINED)
def _corners(y, x, h, w):  # type: ignore[no-untyped-def]
    """Return the four pixels (row-major) around a position in (-1,h) x (-1,w), with their weights.

    The weights are of the lower and upper row and column; further results say whether those are inside (1 or 0). A
    pixel outside is replaced by its neighbour inside.
    """
    yf, xf = _F(np.floor(y)), _F(np.floor(x))
    y0, x0 = int(yf), int(xf)
    in_y = _F(y0 >= 0), _F(y0 + 1 < h)
    in_x = _F(x0 >= 0), _F(x0 + 1 < w)
    ya, yb, xa, xb = max(y0, 0) * w, min(y0 + 1, h - 1) * w, max(x0, 0), min(x0 + 1, w - 1)
    fy, fx = y - yf, x - xf
    gy, gx = ((_F(1) - fy) * in_y[0], fy * in_y[1]), ((_F(1) - fx) * in_x[0], fx * in_x[1])
    return (ya + xa, ya + xb, yb + xa, yb + xb), gy, gx, in_y, in_x


@numba.njit(**PARALLEL)
def _columns(x, offset, mask, column, dims, like):  # type: ignore[no-untyped-def]
    n_, h_, w_, c_, ho, wo, kw, taps, stride, padding, dilation = dims
    for task in numba.prange(n_ * ho):
        n, i = task // ho, task % ho
        for j in range(wo):
            for tap in range(taps):
                k = (task * wo + j) * taps + tap
                y = _F(i * stride - padding + (tap // kw) * dilation) + offset[2 * k]
                u = _F(j * stride - padding + (tap % kw) * dilation) + offset[2 * k + 1]
                if y > _F(-1) and u > _F(-1) and y < _F(h_) and u < _F(w_):
                    pixel, gy, gx, _, _ = _corners(y, u, h_, w_)
                    base = n * h_ * w_
                    i00, i01, i10, i11 = (
                        (base + pixel[0]) * c_, (base + pixel[1]) * c_, (base + pixel[2]) * c_, (base + pixel[3]) * c_,
                    )  # fmt: skip
                    w00, w01 = gy[0] * gx[0] * mask[k], gy[0] * gx[1] * mask[k]
                    w10, w11 = gy[1] * gx[0] * mask[k], gy[1] * gx[1] * mask[k]
                    for c in range(0, c_, LANES):
                        upper = vload(x, i00 + c, like) * w00 + vload(x, i01 + c, like) * w01
                        lower = vload(x, i10 + c, like) * w10 + vload(x, i11 + c, like) * w11
                        vstore(column, k * c_ + c, upper + lower)
                else:
                    for c in range(0, c_, LANES):
                        vstore(column, k * c_ + c, vsplat(_F(0), like))


@numba.njit(**PARALLEL)
def _columns_backward(  # type: ignore[no-untyped-def]
    x, offset, mask, grad_column, grad_x, grad_offset, grad_mask, dims, slices, like
):
    """Compute the gradients; grad_offset and grad_mask (slices, ...) hold a part for each slice of channels."""
    n_, h_, w_, c_, ho, wo, kw, taps, stride, padding, dilation = dims
    share = (c_ // LANES + slices - 1) // slices * LANES
    places = n_ * ho * wo * taps
    for task in numba.prange(n_ * slices):  # a task owns its channels of an image's grad_x
        n, part = task // slices, task % slices
        dots = np.empty(4, np.float32)
        for pixel in range(ho * wo):
            i, j = pixel // wo, pixel % wo
            for tap in range(taps):
                k = (n * ho * wo + pixel) * taps + tap
                at = part * places + k
                y = _F(i * stride - padding + (tap // kw) * dilation) + offset[2 * k]
                u = _F(j * stride - padding + (tap % kw) * dilation) + offset[2 * k + 1]
                if y > _F(-1) and u > _F(-1) and y < _F(h_) and u < _F(w_):
                    corner, gy, gx, in_y, in_x = _corners(y, u, h_, w_)
                    base = n * h_ * w_
                    i00, i01, i10, i11 = (
                        (base + corner[0]) * c_, (base + corner[1]) * c_,
                        (base + corner[2]) * c_, (base + corner[3]) * c_,
                    )  # fmt: skip
                    w00, w01 = gy[0] * gx[0] * mask[k], gy[0] * gx[1] * mask[k]
                    w10, w11 = gy[1] * gx[0] * mask[k], gy[1] * gx[1] * mask[k]
                    v00 = v01 = v10 = v11 = vsplat(_F(0), like)
                    for c in range(part * share, min(c_, part * share + share), LANES):
                        g = vload(grad_column, k * c_ + c, like)
                        v00 = v00 + g * vload(x, i00 + c, like)
                        v01 = v01 + g * vload(x, i01 + c, like)
                        v10 = v10 + g * vload(x, i10 + c, like)
                        v11 = v11 + g * vload(x, i11 + c, like)
                        vstore(grad_x, i00 + c, vload(grad_x, i00 + c, like) + g * w00)
                        vstore(grad_x, i01 + c, vload(grad_x, i01 + c, like) + g * w01)
                        vstore(grad_x, i10 + c, vload(grad_x, i10 + c, like) + g * w10)
                        vstore(grad_x, i11 + c, vload(grad_x, i11 + c, like) + g * w11)
                    vstore_dots(dots, 0, vsplat(_F(1), like), v00, v01, v10, v11)
                    grad_mask[at] = gy[0] * (gx[0] * dots[0] + gx[1] * dots[1]) + gy[1] * (
                        gx[0] * dots[2] + gx[1] * dots[3]
                    )
                    left, right = dots[2] * in_y[1] - dots[0] * in_y[0], dots[3] * in_y[1] - dots[1] * in_y[0]
                    top, bottom = dots[1] * in_x[1] - dots[0] * in_x[0], dots[3] * in_x[1] - dots[2] * in_x[0]
                    grad_offset[2 * at] = mask[k] * (gx[0] * left + gx[1] * right)
                    grad_offset[2 * at + 1] = mask[k] * (gy[0] * top + gy[1] * bottom)
                else:
                    grad_mask[at] = _F(0)
                    grad_offset[2 * at] = _F(0)
                    grad_offset[2 * at + 1] = _F(0)


def _groups(n: int) -> Tuple[int, int]:
    """Return the images at a time, and the tasks an image in the backward pass, so that all threads have work."""
    threads = numba.get_num_threads()
    together = max(1, min(n, -(-threads // SLICES)))
    return together, -(-threads // together)


def _dims(x: Tensor, offset: Tensor, geometry: Sequence[int]) -> Tuple[int, ...]:
    kh, kw, stride, padding, dilation = geometry
    return (*x.shape, *offset.shape[1:3], kw, kh * kw, stride, padding, dilation)


def forward(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: Sequence[int]) -> Tensor:
    """Return (N,ho,wo,O); shapes as in the module's docstring, geometry (kh, kw, stride, padding, dilation)."""
    n, ho, wo, _ = offset.shape
    out = x.new_empty(n, ho, wo, weight.shape[1])
    together, _ = _groups(n)
    column = x.new_empty(together * ho * wo, weight.shape[0])
    for first in range(0, n, together):
        part = slice(first, min(n, first + together))
        rows = column[: (part.stop - first) * ho * wo]
        launch(
            _columns, flat(x[part]), flat(offset[part]), flat(mask[part]), flat(rows),
            _dims(x[part], offset, geometry), lanes(LANES),
        )  # fmt: skip
        torch.mm(rows, weight, out=out[part].view(-1, weight.shape[1]))
    return out


def backward(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, grad_out: Tensor, geometry: Sequence[int]
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, offset, mask and weight, in their types."""
    n, ho, wo, taps = mask.shape
    together, slices = _groups(n)
    column = x.new_empty(together * ho * wo, weight.shape[0])
    grad_x, grad_offset, grad_mask = (t.new_empty(t.shape) for t in (x, offset, mask))
    grad_weight = torch.zeros(weight.shape)
    for first in range(0, n, together):
        part = slice(first, min(n, first + together))
        rows, grad_rows = column[: (part.stop - first) * ho * wo], grad_out[part].reshape(-1, weight.shape[1])
        dims, width = _dims(x[part], offset, geometry), lanes(LANES)
        inputs = [flat(t[part]) for t in (x, offset, mask)]
        launch(_columns, *inputs, flat(rows), dims, width)
        if weight.dtype == torch.float32:
            grad_weight.addmm_(rows.t(), grad_rows)
        else:  # images are summed in float32
            grad_weight += rows.t() @ grad_rows
        torch.mm(grad_rows, weight.t(), out=rows)  # the column's memory now holds its gradient
        sum_x = torch.zeros(x[part].shape)
        parts = torch.empty(slices, *offset[part].shape), torch.empty(slices, *mask[part].shape)
        launch(_columns_backward, *inputs, flat(rows), flat(sum_x), *(flat(t) for t in parts), dims, slices, width)
        grad_x[part] = sum_x
        torch.sum(parts[0], 0, out=grad_offset[part])
        torch.sum(parts[1], 0, out=grad_mask[part])
    return grad_x, grad_offset, grad_mask, grad_weight.to(weight.dtype)
