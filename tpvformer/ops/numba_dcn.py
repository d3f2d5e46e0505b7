"""Modulated deformable convolution on the CPU: a Numba column kernel around a matrix product.

Channels-last: x (N,H,W,C), offset (N,ho,wo,taps*2) as (dy,dx), mask (N,ho,wo,taps), column (N*ho*wo, taps*C). Only x,
offset, mask and weight are kept for the backward pass, which builds the column again. The product runs in the weight's
type (bf16 under autocast), everything geometric in float32. One group, one deformable group, channels a multiple of 16.
"""

from __future__ import annotations

import math
from typing import Any, Optional, Tuple

import numba
import numpy as np
import torch
from torch import Tensor

from .numba_simd import lanes, vadd_at, vdot, vfma, vload, vscale, vstore, vzero

# fastmath without the flags that assume away NaN and infinity
_FAST = {"contract", "reassoc", "nsz", "arcp"}
_OPTIONS: Any = {"parallel": True, "cache": True, "fastmath": _FAST, "error_model": "numpy"}
_F = np.float32
LANES = 16


def supports(channels: int, groups: int, deform_groups: int) -> bool:
    """Whether these kernels serve a convolution of ``channels`` input channels."""
    return groups == 1 and deform_groups == 1 and channels % LANES == 0


@numba.njit(**_OPTIONS)
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
                    yf, xf = math.floor(y), math.floor(u)
                    y0, x0 = int(yf), int(xf)
                    fy, fx = _F(y - yf), _F(u - xf)
                    gx0 = _F(1) - fx if x0 >= 0 else _F(0)
                    gx1 = fx if x0 + 1 < w_ else _F(0)
                    gy0 = (_F(1) - fy) * mask[k] if y0 >= 0 else _F(0)
                    gy1 = fy * mask[k] if y0 + 1 < h_ else _F(0)
                    xa, xb = max(x0, 0), min(x0 + 1, w_ - 1)
                    ya, yb = (n * h_ + max(y0, 0)) * w_, (n * h_ + min(y0 + 1, h_ - 1)) * w_
                    for c in range(0, c_, LANES):
                        v = vscale(vload(x, (ya + xa) * c_ + c, like), gx0 * gy0)
                        v = vfma(vload(x, (ya + xb) * c_ + c, like), gx1 * gy0, v)
                        v = vfma(vload(x, (yb + xa) * c_ + c, like), gx0 * gy1, v)
                        v = vfma(vload(x, (yb + xb) * c_ + c, like), gx1 * gy1, v)
                        vstore(column, k * c_ + c, v)
                else:
                    for c in range(0, c_, LANES):
                        vstore(column, k * c_ + c, vzero(like))


@numba.njit(**_OPTIONS)
def _columns_backward(  # type: ignore[no-untyped-def]
    x, offset, mask, grad_column, grad_x, grad_offset, grad_mask, dims, like
):
    n_, h_, w_, c_, ho, wo, kw, taps, stride, padding, dilation = dims
    for n in numba.prange(n_):  # an image's task owns its grad_x
        for pixel in range(ho * wo):
            i, j = pixel // wo, pixel % wo
            for tap in range(taps):
                k = (n * ho * wo + pixel) * taps + tap
                y = _F(i * stride - padding + (tap // kw) * dilation) + offset[2 * k]
                u = _F(j * stride - padding + (tap % kw) * dilation) + offset[2 * k + 1]
                if y > _F(-1) and u > _F(-1) and y < _F(h_) and u < _F(w_):
                    yf, xf = math.floor(y), math.floor(u)
                    y0, x0 = int(yf), int(xf)
                    fy, fx = _F(y - yf), _F(u - xf)
                    gy, gx = _F(1) - fy, _F(1) - fx
                    in_x0 = _F(1) if x0 >= 0 else _F(0)
                    in_x1 = _F(1) if x0 + 1 < w_ else _F(0)
                    in_y0 = _F(1) if y0 >= 0 else _F(0)
                    in_y1 = _F(1) if y0 + 1 < h_ else _F(0)
                    w00, w01 = gx * gy * mask[k] * in_x0 * in_y0, fx * gy * mask[k] * in_x1 * in_y0
                    w10, w11 = gx * fy * mask[k] * in_x0 * in_y1, fx * fy * mask[k] * in_x1 * in_y1
                    xa, xb = max(x0, 0), min(x0 + 1, w_ - 1)
                    ya, yb = (n * h_ + max(y0, 0)) * w_, (n * h_ + min(y0 + 1, h_ - 1)) * w_
                    i00, i01, i10, i11 = (ya + xa) * c_, (ya + xb) * c_, (yb + xa) * c_, (yb + xb) * c_
                    v00, v01, v10, v11 = _F(0), _F(0), _F(0), _F(0)
                    for c in range(0, c_, LANES):
                        g = vload(grad_column, k * c_ + c, like)
                        v00 += vdot(g, vload(x, i00 + c, like))
                        v01 += vdot(g, vload(x, i01 + c, like))
                        v10 += vdot(g, vload(x, i10 + c, like))
                        v11 += vdot(g, vload(x, i11 + c, like))
                        vadd_at(grad_x, i00 + c, vscale(g, w00))
                        vadd_at(grad_x, i01 + c, vscale(g, w01))
                        vadd_at(grad_x, i10 + c, vscale(g, w10))
                        vadd_at(grad_x, i11 + c, vscale(g, w11))
                    v00, v01 = v00 * in_x0 * in_y0, v01 * in_x1 * in_y0
                    v10, v11 = v10 * in_x0 * in_y1, v11 * in_x1 * in_y1
                    grad_mask[k] = gy * (gx * v00 + fx * v01) + fy * (gx * v10 + fx * v11)
                    grad_offset[2 * k] = mask[k] * (gx * (v10 - v00) + fx * (v11 - v01))
                    grad_offset[2 * k + 1] = mask[k] * (gy * (v01 - v00) + fy * (v11 - v10))
                else:
                    grad_mask[k] = _F(0)
                    grad_offset[2 * k] = _F(0)
                    grad_offset[2 * k + 1] = _F(0)


def _flat(x: Tensor) -> np.ndarray:
    return x.contiguous().numpy().reshape(-1)


def _column(x: Tensor, offset: Tensor, mask: Tensor, dims: Tuple[int, ...]) -> Tensor:
    """(N*ho*wo, taps*C) float32."""
    column = torch.empty(dims[0] * dims[4] * dims[5], dims[7] * dims[3])
    _columns(_flat(x), _flat(offset), _flat(mask), _flat(column), dims, lanes(LANES))
    return column


class _DeformConv(torch.autograd.Function):
    """Everything channels-last; weight (taps*C, O)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, dims: Tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, offset, mask, weight)
        ctx.dims = dims
        return _column(x.float(), offset, mask, dims).to(weight.dtype) @ weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Tuple[Optional[Tensor], ...]:  # type: ignore[override]
        x, offset, mask, weight = ctx.saved_tensors
        full = x.float().contiguous()
        column = _column(full, offset, mask, ctx.dims)
        grad_weight = column.to(weight.dtype).t() @ grad_out if ctx.needs_input_grad[3] else None
        if weight.dtype == torch.float32:
            torch.mm(grad_out, weight.t(), out=column)  # the column's memory now holds its gradient
        else:
            column = (grad_out @ weight.t()).float()
        grad_x, grad_offset, grad_mask = torch.zeros_like(full), torch.empty_like(offset), torch.empty_like(mask)
        _columns_backward(
            _flat(full), _flat(offset), _flat(mask), _flat(column), _flat(grad_x), _flat(grad_offset), _flat(grad_mask),
            ctx.dims, lanes(LANES),
        )  # fmt: skip
        return grad_x.to(x.dtype), grad_offset, grad_mask, grad_weight, None


def modulated_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    """See ``ops.modulated_deform_conv2d``; one group, one deformable group."""
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    ho, wo = offset.shape[2:]
    dims = (n, h, w, c, ho, wo, kw, kh * kw, stride, padding, dilation)
    rows = weight.permute(2, 3, 1, 0).reshape(kh * kw * c, o)
    last = [t.permute(0, 2, 3, 1).contiguous() for t in (x, offset.float(), mask.float())]
    out = _DeformConv.apply(*last, rows, dims)
    if bias is not None:
        out = out + bias
    return out.view(n, ho, wo, o).permute(0, 3, 1, 2)
