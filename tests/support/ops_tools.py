"""Small inputs of every public operation, all served by kernels, for tests of how operations are called."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple

import torch
from torch import Tensor

from tpvformer import ops

SHAPES = ((5, 6), (2, 3), (1, 1))
TOKENS, CAMERAS, HEADS, WIDTH, QUERIES, POINTS, ANCHORS, CHANNELS = 37, 3, 2, 8, 7, 4, 2, 16


class Operation(NamedTuple):
    """``run(*leaves)`` is differentiable by each of the leaves; the first axis of all is the batch, but for weights."""

    run: Callable[..., Tensor]
    leaves: List[Tensor]

    def results(self) -> List[Tensor]:
        """The output, and the gradient of each leaf."""
        leaves = [t.detach().clone().requires_grad_() for t in self.leaves]
        out = self.run(*leaves)
        slope = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
        return [out.detach(), *torch.autograd.grad(out, leaves, slope)]


def operations(module: Any = ops, batch: int = 2) -> Dict[str, Operation]:
    """Every public operation of ``module`` by name; the same numbers each time."""
    generator = torch.Generator().manual_seed(batch)

    def rand(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    samples = (batch, QUERIES, HEADS, len(SHAPES), POINTS)
    value, offsets, weights = rand(batch, CAMERAS, TOKENS, HEADS, WIDTH) - 0.5, rand(*samples, 2) * 3, rand(*samples)
    planes, cameras = rand(QUERIES, len(SHAPES), ANCHORS, 2), rand(batch, CAMERAS, QUERIES, ANCHORS, 2)
    visible = rand(batch, CAMERAS, QUERIES) > 0.4
    image = rand(batch, CHANNELS, 6, 5) - 0.5
    shifts, mask, kernel = rand(batch, 18, 6, 5) * 2 - 1, rand(batch, 9, 6, 5), rand(4, CHANNELS, 3, 3) - 0.5
    return {
        "ms_deform_attn": Operation(
            lambda v, x, w: module.ms_deform_attn(v, SHAPES, x, w), [value[:, 0], offsets / 3, weights]
        ),
        "cross_view_attention": Operation(
            lambda v, o, w: module.cross_view_attention(v, SHAPES, planes, o, w), [value[:, 0], offsets, weights]
        ),
        "image_cross_attention": Operation(
            lambda v, o, w: module.image_cross_attention(v, SHAPES, cameras, visible, o, w), [value, offsets, weights]
        ),
        "modulated_deform_conv2d": Operation(
            lambda x, o, m, w, b: module.modulated_deform_conv2d(x, o, m, w, b, padding=1),
            [image, shifts, mask, kernel, rand(4)],
        ),
    }


NAMES = tuple(operations())
