"""The two operations that mmcv compiles, by ``grid_sample`` of PyTorch: oracles that share nothing with ours."""

from __future__ import annotations

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = Tuple[Tuple[int, int], ...]  # of levels; or stride, padding, dilation: each (height, width)


def attention(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sizes) -> Tensor:
    """What each query reads, by ``grid_sample``: an oracle that shares nothing with ours."""
    b, _, heads, d = value.shape
    queries, levels = locations.shape[1], zip(value.split([h * w for h, w in shapes], 1), shapes)
    out = value.new_zeros(b, queries, heads, d)
    for level, (tokens, (h, w)) in enumerate(levels):
        maps = tokens.permute(0, 2, 3, 1).reshape(b * heads, d, h, w)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        read = F.grid_sample(maps, grid, align_corners=False).view(b, heads, d, queries, -1)
        out = out + torch.einsum("bhdqp,bqhp->bqhd", read, weights[:, :, :, level])
    return out.flatten(2)


def convolution(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, sizes: Sizes, groups: int, g: int) -> Tensor:
    """DCNv2, one tap and one deformable group after the other, by ``grid_sample``."""
    (n, _, h, w), (o, _, kh, kw) = x.shape, weight.shape
    ho, wo = offset.shape[2:]
    (sh, sw), (ph, pw), (dh, dw) = sizes
    out = x.new_zeros(n, o, ho, wo)
    for tap in range(kh * kw):
        parts = []
        for i, part in enumerate(x.chunk(g, 1)):
            dy, dx = offset[:, 2 * (i * kh * kw + tap)], offset[:, 2 * (i * kh * kw + tap) + 1]
            y = torch.arange(ho)[:, None] * sh - ph + tap // kw * dh + dy
            x_ = torch.arange(wo) * sw - pw + tap % kw * dw + dx
            grid = torch.stack(((2 * x_ + 1) / w - 1, (2 * y + 1) / h - 1), -1)
            parts.append(F.grid_sample(part, grid, align_corners=False) * mask[:, i * kh * kw + tap, None])
        out = out + F.conv2d(torch.cat(parts, 1), weight[:, :, tap // kw, tap % kw, None, None], groups=groups)
    return out
