"""Compute initial sampling offsets: the directions in which the heads of each attention sample at first.

c_j = (cos 2*pi*j/n, sin 2*pi*j/n) for head j of n; "square" divides by the larger component. The values are those of
the published code.
"""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor, nn


def circle(heads: int, square: bool) -> Tensor:
    """Return one direction for each head, (heads, 2)."""
    angle = torch.arange(heads, dtype=torch.float32) * (2.0 * math.pi / heads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    return direction / direction.abs().max(-1, keepdim=True)[0] if square else direction


def _directions_3d(heads: int, mode: int) -> Tensor:
    """Return a 3D direction for each head, (heads, 3). Mode 0: rings of four around +z; mode 1: signed z, y, x."""
    if mode == 0:
        rings = -(-heads // 4)  # fewer than four heads share one ring
        j = torch.arange(heads, dtype=torch.float32)
        theta = math.pi * ((j // 4) + 0.5) / rings
        phi = (j % 4) * (math.pi / 2)
        return torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], -1)
    if mode == 1:
        if heads != 6:
            raise ValueError(f"plane_init_mode 1 needs 6 heads, got {heads}")
        return torch.tensor([[0, 0, 1], [0, 0, -1], [0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0]], dtype=torch.float32)
    raise ValueError(f"plane_init_mode is {mode}; known: 0, 1")


def cross_view_offsets(plane: int, heads: int, points: int, init_anchors: int, mode: int) -> Tensor:
    """Return the bias of a plane's offsets, flat (heads * 3 planes * points * 2), in cells.

    On the own plane the offsets grow along the head's circle direction. On the others they follow the projection of the
    head's 3D direction.
    """
    step = torch.arange(points, dtype=torch.float32)
    d = _directions_3d(heads, mode)
    # Component pairs as published; on planes zh and wz they do not match the sampling axes, which is harmless.
    seen = (d[:, [0, 1]], d[:, [2, 0]], d[:, [1, 2]])
    bias = torch.empty(heads, 3, points, 2)
    for level in range(3):
        if level == plane:
            bias[:, level] = circle(heads, square=False)[:, None] * ((step + 1) / 2)[:, None]
        else:
            within = 1 + step % max(1, points // init_anchors)
            bias[:, level] = seen[level][:, None] * (2 * within)[:, None]
    return bias.flatten()


def image_offsets(heads: int, levels: int, points: int, anchors: int) -> Tensor:
    """Return the bias of image offsets, flat (heads * levels * points * 2), in pixels, outwards from each anchor."""
    within = 1 + torch.arange(points, dtype=torch.float32) % (points // anchors)
    bias = circle(heads, square=True)[:, None, None] * within[:, None]
    return bias.expand(heads, levels, points, 2).flatten()


def hw_offsets(heads: int, queues: int, points: int) -> Tensor:
    """Return the bias of the offsets of HWAttention, flat (heads * queues * points * 2), in cells."""
    step = 1 + torch.arange(points, dtype=torch.float32)
    bias = circle(heads, square=True)[:, None, None] * step[:, None]
    return bias.expand(heads, queues, points, 2).flatten()


def history_offsets(heads: int, points: int, anchors: int) -> Tensor:
    """Return the bias of a plane's offsets into the past, flat (heads * 3 planes * points * 2), in cells.

    The first point of every anchor is the anchor itself; further ones go outwards.
    """
    step = (torch.arange(points) % (points // anchors)).float()
    bias = circle(heads, square=True)[:, None, None] * step[:, None]
    return bias.expand(heads, 3, points, 2).flatten()


def constant_linear(linear: nn.Module, bias: Union[Tensor, float]) -> None:
    """Set zero weights and the given bias, so that the linear layer starts as a constant."""
    assert isinstance(linear, nn.Linear)
    nn.init.zeros_(linear.weight)
    with torch.no_grad():
        linear.bias.copy_(torch.as_tensor(bias, dtype=linear.bias.dtype).expand_as(linear.bias))


def projection_linear(linear: nn.Module) -> None:
    """Set Xavier-uniform weights and zero bias."""
    assert isinstance(linear, nn.Linear)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
