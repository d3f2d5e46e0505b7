"""Define the plain operations with shapes that do not depend on values, for export and for compiling devices.

All sampling uses ``grid_sample``. All cameras process all queries; this costs more than in ``reference``, which selects
the queries of each camera, and gives the same result.
"""

from __future__ import annotations

from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from tpvformer.ops import reference
from tpvformer.ops.reference import LevelShapes, cross_view_attention, level_sizes, ms_deform_attn

__all__ = ["cross_view_attention", "image_cross_attention", "modulated_deform_conv2d", "ms_deform_attn"]


def image_cross_attention(
    value: Tensor,
    level_shapes: LevelShapes,
    anchors: Tensor,
    visible: Tensor,
    offsets: Tensor,
    weights: Tensor,
    attend: Callable[[Tensor, LevelShapes, Tensor, Tensor], Tensor] = ms_deform_attn,
    sizes: Optional[Tensor] = None,
) -> Tensor:
    """Compute ``ops.image_cross_attention``. ``attend`` samples one map; ``sizes`` are precomputed ``level_sizes``.

    The cameras become the batch, and each processes all queries. Where a camera does not see a query, the weights are
    zero and the anchors, which may hold any number there, are moved outside the image. No tensor has more than six
    axes.
    """
    b, n = value.shape[:2]
    q, heads, levels, points = weights.shape[1:]
    sizes = level_sizes(level_shapes, offsets) if sizes is None else sizes
    normalised = (offsets.float() / sizes).reshape(b, 1, q, heads * levels, points, 2)
    seen = visible.float()
    parked = torch.where(visible[..., None, None], anchors.float(), -1.0)
    centre = parked.repeat_interleave(points // anchors.shape[3], dim=3)  # (B,N,Q,P,2)
    locations = (centre[:, :, :, None] + normalised).view(b * n, q, heads, levels, points, 2)
    share = seen / seen.sum(1, keepdim=True).clamp(min=1)  # (B,N,Q): mean over the cameras that see the query
    shared = weights.float().reshape(b, 1, q, -1) * share[..., None]
    out = attend(value.float().flatten(0, 1), level_shapes, locations, shared.view(b * n, q, heads, levels, points))
    return out.view(b, n, q, -1).sum(1).to(value.dtype)


def listed_attention(
    value: Tensor,
    level_shapes: LevelShapes,
    anchors: Tensor,
    visible: Tensor,
    offsets: Tensor,
    weights: Tensor,
    rows: Tensor,
    attend: Callable[[Tensor, LevelShapes, Tensor, Tensor], Tensor] = ms_deform_attn,
    sizes: Optional[Tensor] = None,
) -> Tensor:
    """Compute ``image_cross_attention`` where each camera processes its listed queries only.

    rows (B,N,R) int32: queries, each once a camera, padded with -1. A camera's list must contain every query that
    ``visible`` says it sees; what it lists beyond them has weight zero.
    """
    b, n = value.shape[:2]
    q, heads, levels, points = weights.shape[1:]
    r = rows.shape[2]
    sizes = level_sizes(level_shapes, offsets) if sizes is None else sizes
    rows = rows.contiguous()  # a part of a longer list is not
    listed = rows.clamp(min=0).view(b, n * r)
    sample = torch.arange(b, dtype=rows.dtype, device=rows.device)[:, None] * q
    query = (listed + sample).view(-1)  # of all samples' queries
    camera = torch.arange(b * n, dtype=rows.dtype, device=rows.device)[:, None] * q
    pair = (listed.view(b * n, r) + camera).view(-1)  # of all cameras' queries
    seen = visible.float()
    share = (seen / seen.sum(1, keepdim=True).clamp(min=1)).view(-1).index_select(0, pair) * (rows.view(-1) >= 0)
    normalised = (offsets.float() / sizes).reshape(b * q, -1).index_select(0, query)
    parked = torch.where(visible[..., None, None], anchors.float(), -1.0).reshape(b * n * q, -1)
    centre = parked.index_select(0, pair).view(b * n, r, 1, -1, 2).repeat_interleave(points // anchors.shape[3], dim=3)
    locations = normalised.view(b * n, r, heads * levels, points, 2) + centre
    shared = weights.float().reshape(b * q, -1).index_select(0, query) * share[:, None]
    shape = (b * n, r, heads, levels, points)
    out = attend(value.float().flatten(0, 1), level_shapes, locations.view(*shape, 2), shared.view(shape))
    channels = out.shape[-1]
    summed = out.new_zeros(b * q, channels).index_add(0, query, out.reshape(b * n * r, channels))
    return summed.view(b, q, channels).to(value.dtype)


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
    """Compute ``ops.modulated_deform_conv2d``."""
    if (groups, deform_groups) != (1, 1):
        return reference.modulated_deform_conv2d(
            x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups
        )
    out = sampled_convolution(x.float(), offset.float(), mask.float(), weight.float(), stride, padding, dilation)
    out = out.to(weight.dtype)
    return out if bias is None else out + bias.to(out.dtype).view(1, -1, 1, 1)


def sampled_convolution(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    """Compute the convolution by ``grid_sample`` and a matrix product, which every release has; one group each."""
    n, c, h, w = x.shape
    outputs, _, kh, kw = weight.shape
    taps, (ho, wo) = kh * kw, offset.shape[2:]
    tap = torch.arange(taps, device=x.device)
    rows = torch.arange(ho, device=x.device) * stride - padding
    cols = torch.arange(wo, device=x.device) * stride - padding
    shift = offset.view(n, taps, 2, ho, wo)
    y = shift[:, :, 0] + rows[:, None] + ((tap // kw) * dilation)[:, None, None]  # (N,taps,ho,wo) pixels
    x_ = shift[:, :, 1] + cols + ((tap % kw) * dilation)[:, None, None]
    grid = torch.stack([(2 * x_ + 1) / w - 1, (2 * y + 1) / h - 1], -1).view(n, taps * ho, wo, 2)
    columns = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    columns = columns.view(n, c, taps, ho * wo) * mask.view(n, 1, taps, ho * wo)
    return (weight.reshape(outputs, -1) @ columns.view(n, c * taps, ho * wo)).view(n, outputs, ho, wo)
