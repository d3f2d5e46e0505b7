"""Define the plain PyTorch operations: the oracle of all backends, on any device, any float type, differentiable.

Sampling convention of all operations: bilinear, a normalised coordinate u in [0, 1] is pixel ``u * width - 0.5``,
values outside the map are zero.

Legend: B batch, N cameras, S tokens of all levels, Q queries, L levels, P points a level, A anchors, D channels a head.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

LevelShapes = Sequence[Tuple[int, int]]


def level_sizes(level_shapes: LevelShapes, like: Tensor) -> Tensor:
    """Return width and height (L,1,2) in float32 or wider; narrower types would shift locations by pixels."""
    kind = torch.promote_types(like.dtype, torch.float32)
    return torch.tensor([[[w, h]] for h, w in level_shapes], dtype=kind, device=like.device)


def ms_deform_attn(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute multi-scale deformable attention (Zhu et al., arXiv:2010.04159, eq. 3). See ``ops.ms_deform_attn``."""
    return _sampled(value, level_shapes, locations, weights).to(value.dtype)


def _sampled(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute the attention in float32, or in float64 if any tensor is float64."""
    double = torch.float64 in (value.dtype, locations.dtype, weights.dtype)
    value, locations, weights = (t.to(torch.float64 if double else torch.float32) for t in (value, locations, weights))
    b, _, heads, d = value.shape
    q, p = locations.shape[1], locations.shape[4]
    grids = 2 * locations - 1
    out = value.new_zeros(b * heads, d, q)
    for level, tokens in enumerate(value.split([h * w for h, w in level_shapes], dim=1)):
        h, w = level_shapes[level]
        maps = tokens.permute(0, 2, 3, 1).reshape(b * heads, d, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).reshape(b * heads, q, p, 2)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        out = out + (sampled * weights[:, :, :, level].transpose(1, 2).reshape(b * heads, 1, q, p)).sum(-1)
    return out.view(b, heads * d, q).transpose(1, 2)


def cross_view_attention(
    value: Tensor, level_shapes: LevelShapes, anchors: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Compute view attention. See ``ops.cross_view_attention``."""
    centre = anchors.repeat_interleave(offsets.shape[4] // anchors.shape[-2], dim=-2).unsqueeze(-4)  # (..,Q,1,L,P,2)
    return ms_deform_attn(value, level_shapes, centre + offsets / level_sizes(level_shapes, offsets), weights)


def image_cross_attention(
    value: Tensor, level_shapes: LevelShapes, anchors: Tensor, visible: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Compute image cross-attention. See ``ops.image_cross_attention``."""
    b, n, _, heads, d = value.shape
    q, points = offsets.shape[1], offsets.shape[4]
    normalised = offsets / level_sizes(level_shapes, offsets)  # (B,Q,heads,L,P,2)
    per_anchor = points // anchors.shape[3]
    samples: List[Tensor] = []
    for i in range(b):
        total = value.new_zeros(q, heads * d, dtype=torch.promote_types(value.dtype, torch.float32))
        for camera in range(n):
            rows = visible[i, camera].nonzero().squeeze(1)
            centre = anchors[i, camera, rows].repeat_interleave(per_anchor, dim=1)  # (rows,P,2)
            locations = centre[:, None, None] + normalised[i, rows]
            out = _sampled(value[i, camera][None], level_shapes, locations[None], weights[i, rows][None])
            total = total.index_add(0, rows, out[0].to(total.dtype))
        samples.append(total)
    return (torch.stack(samples) / visible.sum(1).clamp(min=1).unsqueeze(-1)).to(value.dtype)


def modulated_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Compute modulated deformable convolution (Zhu et al., arXiv:1811.11168). See ``ops.modulated_deform_conv2d``.

    The columns are weighted sums of four pixels, which ``embedding_bag`` gathers without storing the corners.
    """
    n, c, h, w = x.shape
    out_c, _, kh, kw = weight.shape
    taps = kh * kw
    ho, wo = offset.shape[2:]
    geometry = offset.dtype if offset.dtype == torch.float64 else torch.float32
    # to (N, G, ho, wo, taps), shifts with a last axis (y, x)
    shifts = offset.to(geometry).view(n, deform_groups, taps, 2, ho, wo).permute(0, 1, 4, 5, 2, 3)
    scale = mask.to(geometry).view(n, deform_groups, taps, ho, wo).permute(0, 1, 3, 4, 2)

    tap = torch.arange(taps, device=x.device)
    rows = torch.arange(ho, device=x.device).view(ho, 1, 1) * stride - padding + (tap // kw) * dilation
    cols = torch.arange(wo, device=x.device).view(1, wo, 1) * stride - padding + (tap % kw) * dilation
    y, x_ = rows + shifts[..., 0], cols + shifts[..., 1]  # (N,G,ho,wo,taps)
    # All corners are zero more than one pixel outside; clamping there avoids integer overflow of huge offsets.
    y0, x0 = y.detach().clamp(-2, h + 1).floor(), x_.detach().clamp(-2, w + 1).floor()
    fy, fx = y - y0, x_ - x0
    corners, factors = [], []
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            iy, ix = (y0 + dy).long(), (x0 + dx).long()
            inside = (iy >= 0) & (iy < h) & (ix >= 0) & (ix < w)
            corners.append(iy.clamp(0, h - 1) * w + ix.clamp(0, w - 1))
            # where(), not a product: outside, wy may be huge and its gradient must vanish
            factors.append(torch.where(inside, wy * wx * scale, torch.zeros((), dtype=geometry, device=x.device)))
    index, factor = torch.stack(corners, -1), torch.stack(factors, -1)  # (N,G,ho,wo,taps,4)
    index = index + (torch.arange(n, device=x.device) * (h * w)).view(n, 1, 1, 1, 1, 1)

    pixels = x.permute(0, 2, 3, 1).reshape(n * h * w, c).to(geometry)
    if factor.requires_grad and not pixels.requires_grad:
        pixels = pixels.detach().requires_grad_()  # PyTorch 2.1 cannot differentiate with respect to the factors alone
    width = c // deform_groups
    columns = [
        F.embedding_bag(
            index[:, g].reshape(-1, 4), pixels[:, g * width : (g + 1) * width].contiguous(), mode="sum",
            per_sample_weights=factor[:, g].reshape(-1, 4),
        ).view(n * ho * wo, taps, width)
        for g in range(deform_groups)
    ]  # fmt: skip
    column = (torch.cat(columns, -1) if deform_groups > 1 else columns[0]).to(weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if groups == 1:
            out = column.reshape(n * ho * wo, taps * c) @ weight.permute(2, 3, 1, 0).reshape(taps * c, out_c)
        else:
            grouped = column.view(n * ho * wo, taps, groups, c // groups)
            kernels = weight.view(groups, out_c // groups, c // groups, taps)
            out = torch.einsum("rtgc,goct->rgo", grouped, kernels).reshape(n * ho * wo, out_c)
    if bias is not None:
        out = out + bias.to(out.dtype)
    return out.view(n, ho, wo, out_c).permute(0, 3, 1, 2)
