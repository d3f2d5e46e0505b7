"""Make a bird's-eye map of all three planes: pool the hidden units of the voxels of each column.

The sum of the planes over heights would be plane hw plus a value for each row and each column of the map. Therefore
each voxel passes the decoder's first layer and its nonlinearity, and the maximum and the mean over heights follow.

Legend: B batch, Q plane cells, C channels of a plane, D decoder width, h, w, z cells of the planes along y, x, z.
"""

from __future__ import annotations

from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer.config import GridConfig

ROWS_VOXELS = 1 << 13  # voxels whose hidden units exist at a time: rows of them stay in a processor's cache


def pooled_columns(grid: GridConfig, planes: Tensor, first: nn.Linear) -> Tensor:
    """Return the maximum and the mean over heights (B,2D,h,w) of each voxel's hidden units.

    planes (B,Q,C). The hidden units of a voxel are Softplus(first(hw + zh + wz)). They are computed for some rows at a
    time, and again in the backward pass.
    """
    hidden = F.linear(planes, first.weight)
    hw, zh, wz = (part.unflatten(1, shape) for part, shape in zip(hidden.split(grid.plane_sizes, 1), grid.plane_shapes))
    step = max(1, ROWS_VOXELS // (grid.w * grid.z))
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # a graph holds the loop unrolled
        step = grid.h
    inputs = (hw + first.bias, zh, wz.transpose(1, 2))
    if torch.is_grad_enabled() and hidden.requires_grad:
        highest, mean = _Pool.apply(*inputs, step)
    else:
        highest, mean = _pool(*inputs, step)
    return torch.cat([highest, mean], -1).permute(0, 3, 1, 2)


def _pool(hw: Tensor, zh: Tensor, wz: Tensor, step: int) -> Tuple[Tensor, Tensor]:
    """Return maximum and mean over z, (B,h,w,D) each, of Softplus(hw + zh + wz), ``step`` rows of y at a time.

    hw (B,h,w,D), zh (B,z,h,D), wz (B,z,w,D). Softplus rises, so it may follow the maximum.
    """
    highest, means = [], []
    for i in range(0, hw.shape[1], step):
        across = zh[:, :, i : i + step, None] + wz[:, :, None]
        rows = hw[:, i : i + step]
        highest.append(rows + across.amax(1))
        means.append(F.softplus(rows[:, None] + across).mean(1))
    return F.softplus(torch.cat(highest, 1)), torch.cat(means, 1)


class _Pool(torch.autograd.Function):
    """``_pool``, whose backward pass computes the hidden units again: half the time of PyTorch's checkpointing."""

    @staticmethod
    def forward(ctx: Any, hw: Tensor, zh: Tensor, wz: Tensor, step: int) -> Tuple[Tensor, Tensor]:
        ctx.save_for_backward(hw, zh, wz)
        ctx.step = step
        return _pool(hw, zh, wz, step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tuple[Tensor, Tensor, Tensor, None]:
        grad_highest, grad_mean = grads
        hw, zh, wz = ctx.saved_tensors
        grad_hw, grad_zh, grad_wz = torch.empty_like(hw), torch.empty_like(zh), torch.zeros_like(wz)
        share = grad_mean / zh.shape[1]
        for i in range(0, hw.shape[1], ctx.step):
            rows = slice(i, i + ctx.step)
            slope = zh[:, :, rows, None] + wz[:, :, None]
            top = slope.max(1, keepdim=True).indices
            slope.add_(hw[:, None, rows]).sigmoid_()  # the slope of Softplus
            of_highest = slope.gather(1, top) * grad_highest[:, None, rows]
            slope.mul_(share[:, None, rows]).scatter_add_(1, top, of_highest)
            grad_hw[:, rows], grad_zh[:, :, rows] = slope.sum(1), slope.sum(3)
            grad_wz += slope.sum(2)
        return grad_hw, grad_zh, grad_wz, None
