"""Decode all voxels of the grid in slabs that stay in a processor's caches, with a backward pass of its own.

A voxel's hidden units are hw[y,x] + zh[z,y] + wz[x,z], its logits W softplus(hidden) + b. The hidden units of a whole
grid are far larger than the planes and the logits, so no pass keeps them: the backward pass computes those of a slab
again, and adds their gradients to the planes' at once. Autograd over checkpointed slabs does the same through memory:
449 + 640 ms of CPU time, forward and backward, where this takes 110 + 189 (a sample of config/demo_dense.py in fp32,
one thread of an AMD EPYC with AVX2).

Legend: B batch, D decoder width, K classes, X, Y, Z voxels.
"""

from __future__ import annotations

from typing import Any, Iterator, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 1 << 13  # voxels at a time: 2 MiB of hidden units of width 64


def decode_voxels(hw: Tensor, zh: Tensor, wz: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the logits (B,X,Y,Z,K) of all voxels.

    hw (B,X,Y,D), zh (B,Y,Z,D), wz (B,X,Z,D); weight (K,D), bias (K,). All have one type.
    """
    return _Decode.apply(hw.contiguous(), zh.contiguous(), wz.contiguous(), weight, bias)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hw: Tensor, zh: Tensor, wz: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hw, zh, wz, weight)
        logits = hw.new_empty(*hw.shape[:3], zh.shape[2], len(weight))
        for sample, part in _slabs(hw, zh):
            units = F.softplus(_hidden(hw, zh, wz, sample, part))
            torch.addmm(bias, units.flatten(0, 2), weight.t(), out=logits[sample, part].flatten(0, 2))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tuple[Tensor, ...]:
        hw, zh, wz, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        of_hw, of_wz, of_zh = torch.empty_like(hw), torch.empty_like(wz), torch.zeros_like(zh)
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight[:, 0])
        for sample, part in _slabs(hw, zh):
            hidden = _hidden(hw, zh, wz, sample, part)
            rows = grad[sample, part].flatten(0, 2)
            of_weight.addmm_(rows.t(), F.softplus(hidden).flatten(0, 2))
            of_bias += rows.sum(0)
            of_hidden = (rows @ weight).view(hidden.shape).mul_(hidden.sigmoid_())
            torch.sum(of_hidden, 2, out=of_hw[sample, part])
            torch.sum(of_hidden, 1, out=of_wz[sample, part])
            of_zh[sample] += of_hidden.sum(0)
        return of_hw, of_zh, of_wz, of_weight, of_bias


def _slabs(hw: Tensor, zh: Tensor) -> Iterator[Tuple[int, slice]]:
    """Yield the samples and the ranges of x that are decoded at a time."""
    batch, columns = hw.shape[:2]
    step = max(1, ROWS // (zh.shape[1] * zh.shape[2]))
    for sample in range(batch):
        for start in range(0, columns, step):
            yield sample, slice(start, start + step)


def _hidden(hw: Tensor, zh: Tensor, wz: Tensor, sample: int, part: slice) -> Tensor:
    """Return the hidden units (x,Y,Z,D) of a slab before the activation."""
    return (hw[sample, part, :, None] + wz[sample, part, None]).add_(zh[sample])
