"""Preprocess images as contiguous planes, for devices whose kernels copy strided tensors before they work on them.

The same arithmetic as preprocess_tensor.py, in the same order; one copy brings the bytes into planes. M images = B
samples x N cameras, (H, W) stored, (h, w) scaled.
"""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tpvformer.data.images.preprocess_tensor import cropped, distorted


def network_planes(
    images: Tensor,
    draws: Optional[Tensor],
    mean: Sequence[float],
    inner: Tuple[int, int],
    padded: Tuple[int, int],
    crops: Optional[Tensor] = None,
) -> Tensor:
    """Distort, subtract the mean, scale, pad: images (M, H, W, 3) uint8 to (M, 3, *padded) float32, contiguous.

    ``inner`` is (h, w); draws (M, 8) and crops (M, 5) as for ``preprocess_tensor.fill``.
    """
    channels = images.float().permute(3, 0, 1, 2).contiguous()  # (3, M, H, W), the only strided copy
    if draws is None:
        planes = list(channels.unbind(0))
    else:
        planes = distorted(channels.permute(1, 2, 3, 0), draws.t().contiguous().t())
    out = torch.stack([plane - level for plane, level in zip(planes, mean)], 1)
    if crops is not None:
        out = cropped(out, crops, inner)
    elif out.shape[2:] != inner:
        out = F.interpolate(out, inner, mode="bilinear", align_corners=False)
    bottom, right = padded[0] - inner[0], padded[1] - inner[1]
    return F.pad(out, (0, right, 0, bottom)) if bottom or right else out


def masked(out: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply GridMask to out (B, N, 3, h, w): a pixel stays iff its row or its column is kept, the same for all
    cameras."""
    return out.mul_((rows[:, :, None] | columns[:, None, :])[:, None, None])
