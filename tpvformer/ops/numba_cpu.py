"""Deformable attention on the CPU: Numba kernels that neither materialise sampling locations nor use atomics.

One pair of kernels serves every attention of the model. It reads value (B,N,S,H,D) at

    pixel = anchor * (w,h) - 0.5 + offset,   anchor (Ba,N,Q,La,A,2), offset (B,Q,H,L,P,2), p uses anchor p // (P/A)

for every camera n whose bit is set in ``bits`` (B,Q), and scales by ``scale`` (B,Q). Ba and La are 1 where samples or
levels share the anchors. In the backward pass a task owns one (sample, head, level), hence its slice of every gradient.
Kernels are compiled once and cached on disk. float32 only; the caller falls back to the reference otherwise.
"""

from __future__ import annotations

import math
from typing import Any, Optional, Tuple

import numba
import numpy as np
import torch
from torch import Tensor

from .numba_simd import lanes, vadd_at, vdot, vfma, vload, vscale, vstore, vzero
from .reference import LevelShapes

# fastmath without the flags that assume away NaN and infinity
_FAST = {"contract", "reassoc", "nsz", "arcp"}
_OPTIONS: Any = {"parallel": True, "cache": True, "fastmath": _FAST, "error_model": "numpy"}
_F = np.float32
QUERY_BLOCK = 64  # queries a task of the forward pass


@numba.njit(**_OPTIONS)
def _forward(value, anchors, bits, offsets, weights, scale, out, levels, dims, like):  # type: ignore[no-untyped-def]
    b_, n_, s_, h_, q_, l_, p_, a_, ba, la = dims
    d_ = len(like)
    per_anchor = p_ // a_
    blocks = (q_ + QUERY_BLOCK - 1) // QUERY_BLOCK
    for task in numba.prange(b_ * blocks):
        b = task // blocks
        first = (task % blocks) * QUERY_BLOCK
        for q in range(first, min(q_, first + QUERY_BLOCK)):
            seen = bits[b * q_ + q]
            for h in range(h_):
                row = (b * q_ + q) * h_ + h
                total = vzero(like)
                for n in range(n_):
                    if (seen >> n) & 1:
                        base = (b * n_ + n) * s_
                        corner0 = (((b % ba) * n_ + n) * q_ + q) * la
                        for lv in range(l_):
                            hl, wl, start = levels[lv, 0], levels[lv, 1], base + levels[lv, 2]
                            anchor0 = (corner0 + lv % la) * a_
                            for p in range(p_):
                                k = (row * l_ + lv) * p_ + p
                                at = (anchor0 + p // per_anchor) * 2
                                x = anchors[at] * _F(wl) - _F(0.5) + offsets[2 * k]
                                y = anchors[at + 1] * _F(hl) - _F(0.5) + offsets[2 * k + 1]
                                if x > _F(-1) and y > _F(-1) and x < _F(wl) and y < _F(hl):
                                    xf, yf = math.floor(x), math.floor(y)
                                    x0, y0 = int(xf), int(yf)
                                    fx, fy = _F(x - xf), _F(y - yf)
                                    # corners outside the map get weight zero and a harmless address
                                    gx0 = _F(1) - fx if x0 >= 0 else _F(0)
                                    gx1 = fx if x0 + 1 < wl else _F(0)
                                    gy0 = (_F(1) - fy) * weights[k] if y0 >= 0 else _F(0)
                                    gy1 = fy * weights[k] if y0 + 1 < hl else _F(0)
                                    xa, xb = max(x0, 0), min(x0 + 1, wl - 1)
                                    ya, yb = start + max(y0, 0) * wl, start + min(y0 + 1, hl - 1) * wl
                                    total = vfma(vload(value, ((ya + xa) * h_ + h) * d_, like), gx0 * gy0, total)
                                    total = vfma(vload(value, ((ya + xb) * h_ + h) * d_, like), gx1 * gy0, total)
                                    total = vfma(vload(value, ((yb + xa) * h_ + h) * d_, like), gx0 * gy1, total)
                                    total = vfma(vload(value, ((yb + xb) * h_ + h) * d_, like), gx1 * gy1, total)
                vstore(out, row * d_, vscale(total, scale[b * q_ + q]))


@numba.njit(**_OPTIONS)
def _backward(  # type: ignore[no-untyped-def]
    value, anchors, bits, offsets, weights, scale, grad_out, grad_value, grad_offsets, grad_weights, levels, dims, like
):
    b_, n_, s_, h_, q_, l_, p_, a_, ba, la = dims
    d_ = len(like)
    per_anchor = p_ // a_
    for task in numba.prange(b_ * h_ * l_):
        b, h, lv = task // (h_ * l_), (task // l_) % h_, task % l_
        hl, wl = levels[lv, 0], levels[lv, 1]
        for q in range(q_):
            seen = bits[b * q_ + q]
            row = (b * q_ + q) * h_ + h
            grad = vscale(vload(grad_out, row * d_, like), scale[b * q_ + q])
            for p in range(p_):
                k = (row * l_ + lv) * p_ + p
                weight, ox, oy = weights[k], offsets[2 * k], offsets[2 * k + 1]
                sum_x, sum_y, sum_w = _F(0), _F(0), _F(0)
                for n in range(n_):
                    if (seen >> n) & 1:
                        at = ((((b % ba) * n_ + n) * q_ + q) * la + lv % la) * a_ + p // per_anchor
                        x = anchors[2 * at] * _F(wl) - _F(0.5) + ox
                        y = anchors[2 * at + 1] * _F(hl) - _F(0.5) + oy
                        if x > _F(-1) and y > _F(-1) and x < _F(wl) and y < _F(hl):
                            start = (b * n_ + n) * s_ + levels[lv, 2]
                            xf, yf = math.floor(x), math.floor(y)
                            x0, y0 = int(xf), int(yf)
                            fx, fy = _F(x - xf), _F(y - yf)
                            in_x0 = _F(1) if x0 >= 0 else _F(0)
                            in_x1 = _F(1) if x0 + 1 < wl else _F(0)
                            in_y0 = _F(1) if y0 >= 0 else _F(0)
                            in_y1 = _F(1) if y0 + 1 < hl else _F(0)
                            xa, xb = max(x0, 0), min(x0 + 1, wl - 1)
                            ya, yb = start + max(y0, 0) * wl, start + min(y0 + 1, hl - 1) * wl
                            i00, i01 = ((ya + xa) * h_ + h) * d_, ((ya + xb) * h_ + h) * d_
                            i10, i11 = ((yb + xa) * h_ + h) * d_, ((yb + xb) * h_ + h) * d_
                            v00 = vdot(grad, vload(value, i00, like)) * in_x0 * in_y0
                            v01 = vdot(grad, vload(value, i01, like)) * in_x1 * in_y0
                            v10 = vdot(grad, vload(value, i10, like)) * in_x0 * in_y1
                            v11 = vdot(grad, vload(value, i11, like)) * in_x1 * in_y1
                            gx, gy = _F(1) - fx, _F(1) - fy
                            sum_w += gy * (gx * v00 + fx * v01) + fy * (gx * v10 + fx * v11)
                            sum_x += gy * (v01 - v00) + fy * (v11 - v10)
                            sum_y += gx * (v10 - v00) + fx * (v11 - v01)
                            vadd_at(grad_value, i00, vscale(grad, gx * gy * weight * in_x0 * in_y0))
                            vadd_at(grad_value, i01, vscale(grad, fx * gy * weight * in_x1 * in_y0))
                            vadd_at(grad_value, i10, vscale(grad, gx * fy * weight * in_x0 * in_y1))
                            vadd_at(grad_value, i11, vscale(grad, fx * fy * weight * in_x1 * in_y1))
                grad_weights[k] = sum_w
                grad_offsets[2 * k] = weight * sum_x
                grad_offsets[2 * k + 1] = weight * sum_y


def _flat(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy().reshape(-1)


def _levels(shapes: LevelShapes) -> np.ndarray:
    """(L,3): height, width, first token."""
    starts = np.cumsum([0] + [h * w for h, w in shapes[:-1]])
    return np.array([(h, w, s) for (h, w), s in zip(shapes, starts)], np.int64)


class _AnchoredAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        value: Tensor,
        anchors: Tensor,
        bits: Tensor,
        offsets: Tensor,
        weights: Tensor,
        scale: Tensor,
        shapes: LevelShapes,
    ) -> Tensor:
        b, n, s, heads, d = value.shape
        q, levels, points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
        dims = (b, n, s, heads, q, levels, points, anchors.shape[4], anchors.shape[0], anchors.shape[3])
        out = torch.empty(b, q, heads * d)
        inputs = [_flat(t) for t in (value, anchors, bits, offsets, weights, scale)]
        _forward(*inputs, _flat(out), _levels(shapes), dims, lanes(d))
        ctx.save_for_backward(value, anchors, bits, offsets, weights, scale)
        ctx.dims, ctx.shapes = dims, shapes
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Tuple[Optional[Tensor], ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        value, offsets, weights = saved[0], saved[3], saved[4]
        grads = [torch.zeros(value.shape), torch.empty(offsets.shape), torch.empty(weights.shape)]
        _backward(
            *(_flat(t) for t in saved), _flat(grad_out), *(_flat(g) for g in grads), _levels(ctx.shapes), ctx.dims,
            lanes(value.shape[-1]),
        )  # fmt: skip
        return grads[0], None, None, grads[1], grads[2], None, None


def _everyone(b: int, q: int) -> Tuple[Tensor, Tensor]:
    return torch.ones(b, q, dtype=torch.int64), torch.ones(b, q)


def ms_deform_attn(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """See ``ops.ms_deform_attn``."""
    sizes = torch.tensor([[w, h] for h, w in level_shapes], dtype=locations.dtype)
    origin = torch.zeros(1, 1, locations.shape[1], 1, 1, 2)
    bits, scale = _everyone(value.shape[0], locations.shape[1])
    pixels = locations * sizes[:, None]
    return _AnchoredAttention.apply(value[:, None], origin, bits, pixels, weights, scale, level_shapes)


def cross_view_attention(
    value: Tensor, level_shapes: LevelShapes, anchors: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """See ``ops.cross_view_attention``."""
    bits, scale = _everyone(value.shape[0], offsets.shape[1])
    return _AnchoredAttention.apply(value[:, None], anchors[None, None], bits, offsets, weights, scale, level_shapes)


def image_cross_attention(
    value: Tensor, level_shapes: LevelShapes, anchors: Tensor, visible: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """See ``ops.image_cross_attention``."""
    camera = torch.arange(visible.shape[1]).view(-1, 1)
    bits = (visible.long() << camera).sum(1)
    scale = 1 / visible.sum(1).clamp(min=1).float()
    return _AnchoredAttention.apply(value, anchors[:, :, :, None], bits, offsets, weights, scale, level_shapes)
