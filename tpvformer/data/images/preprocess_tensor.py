"""Preprocess images by tensor operations on any device. M images = B samples x N cameras, (H, W) stored, (h, w) scaled.

Operations and shapes do not depend on the drawn parameters, and no operation synchronises: a graph can capture them.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = torch.finfo(torch.float32).eps  # what OpenCV adds to a denominator


def fill(
    out: Tensor,
    images: Tensor,
    draws: Optional[Tensor],
    mean: Sequence[float],
    crops: Optional[Tensor] = None,
) -> None:
    """Distort, subtract the mean, scale: images (M, H, W, 3) uint8 into out (M, h, w, 3) float32.

    draws (M, 8): parameters of ``photometric.draw_photometric``; None applies no distortion. crops (M, 5) as
    ``crops.draw_crops`` makes them; None scales whole images. What crops leave free is zero.
    """
    planes = list(images.unbind(-1)) if draws is None else distorted(images, draws)
    if crops is None and out.shape == images.shape:
        for plane, level, view in zip(planes, mean, out.unbind(-1)):
            view.copy_(plane - level)
        return
    centred = torch.stack([plane - level for plane, level in zip(planes, mean)], 1)
    inner = (out.shape[1], out.shape[2])
    if crops is None:
        scaled = F.interpolate(centred, inner, mode="bilinear", align_corners=False)
    else:
        scaled = cropped(centred, crops, inner)
    out.copy_(scaled.permute(0, 2, 3, 1))


def cropped(planes: Tensor, crops: Tensor, inner: Tuple[int, int]) -> Tensor:
    """Return what crops (M, 5) show of planes (M, 3, H, W), (M, 3, *inner); zero beyond the image."""
    rows, columns, top, left, flipped = crops.float()[..., None].unbind(1)  # (M, 1) each
    v = torch.arange(inner[0], device=planes.device) + 0.5 + top
    u = torch.arange(inner[1], device=planes.device) + 0.5 + left
    u = torch.where(flipped > 0, columns - u, u)
    known = ((v > 0) & (v < rows))[:, :, None] & ((u > 0) & (u < columns))[:, None]
    height, width = (2 * v / rows - 1)[:, :, None], (2 * u / columns - 1)[:, None]
    places = torch.stack(torch.broadcast_tensors(width, height), -1)  # border: half a pixel at the rim, as in a scaling
    return F.grid_sample(planes, places, mode="bilinear", padding_mode="border", align_corners=False) * known[:, None]


def distorted(images: Tensor, draws: Tensor) -> List[Tensor]:
    """Return the three channels (M, H, W) float32 of images (M, H, W, 3) after the distortion ``draws`` (M, 8).

    Saturation and hue change in OpenCV's cylinder: value v = max, saturation s = (max - min) / |v|, and a channel is
    v - v s f(k) with f(k) = clamp(min(k, 4 - k), 0, 1), k its place on the circle of six as seen from the hue. Values
    below 0 therefore come back changed, as they do from OpenCV.
    """
    brightness, contrast, saturation, degrees, contrast_after = (d[:, None, None] for d in draws[:, :5].unbind(1))
    blue, green, red = (torch.add(channel, brightness).mul_(contrast) for channel in images.unbind(-1))
    value = torch.maximum(torch.maximum(blue, green), red)
    spread = value - torch.minimum(torch.minimum(blue, green), red)
    slope = (spread + _TINY).reciprocal_()
    hue = torch.where(
        value == red,
        (green - blue) * slope,
        torch.where(value == green, (blue - red) * slope + 2, (red - green) * slope + 4),
    )
    hue += degrees / 60
    chroma = spread.mul_(saturation * contrast_after).div_(value.abs().add_(_TINY)).mul_(value)
    floor = value.mul_(contrast_after).sub_(chroma, alpha=2)
    places = 2 * draws[:, 5:] + 1  # of blue, green, red on the circle, in the order of the channels asked for
    planes = []
    for place in places.unbind(1):
        k = torch.add(hue, place[:, None, None]).remainder_(6)
        planes.append(torch.addcmul(floor, chroma, k.sub_(2).abs_().clamp_(1, 2)))  # the last is 2 - f(k)
    return planes


def mask(out: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Apply GridMask to out (B, N, h, w, 3): a pixel stays iff its row or its column is kept, the same for all
    cameras."""
    out *= (rows[:, :, None] | columns[:, None, :])[:, None, :, :, None]
