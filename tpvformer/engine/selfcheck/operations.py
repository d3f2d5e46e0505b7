"""Compare every public operation on the device with the oracle on the CPU, in the published configurations' sizes."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tpvformer import ops
from tpvformer.ops import reference

QUERIES, CAMERAS = 300, 2
IMAGE_LEVELS = ((29, 50), (15, 25), (8, 13), (4, 7))  # a quarter of the levels' size for nuScenes images
PLANES = ((40, 40), (16, 40), (40, 16))
FORWARD_TOLERANCE, BACKWARD_TOLERANCE = 1e-4, 1e-3  # relative 2-norm; gradients of sampling are discontinuous at pixels

# heads, channels a head, points of image cross-attention on plane hw and the others, planes, points of view attention
PUBLISHED: Dict[str, Tuple[int, int, int, int, int, int]] = {
    "tpv_lidarseg_dim64": (4, 16, 4, 32, 3, 16),
    "tpv_lidarseg": (8, 16, 8, 64, 3, 32),
    "tpv_lidarseg_dim96": (6, 16, 6, 48, 3, 16),
    "tpv04_occupancy": (8, 32, 8, 64, 1, 8),
}

Function = Callable[..., Tensor]


class Case(NamedTuple):
    """Hold one comparison. ``ours`` and ``oracle`` take the leaves, which receive gradients, and then the constants."""

    name: str
    ours: Function
    oracle: Function
    leaves: Sequence[Tensor]
    constants: Sequence[Tensor] = ()


def cases() -> List[Case]:
    """Return the cases with fixed random numbers, on the CPU."""
    made: List[Case] = []
    for name, (heads, dim, near, far, planes, points) in PUBLISHED.items():
        made += [_image_attention(f"{name}, {p} points", heads, dim, p) for p in (near, far)]
        made.append(_plane_attention(f"{name}, {points} points", heads, dim, PLANES[:planes], points))
    return [*made, _sampling(), *(_convolution(width) for width in (256, 512)), _max_pool(), _add_relu(), _plain()]


def _rand(*size: int, low: float = -1.0, high: float = 1.0, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def _tokens(shapes: Sequence[Tuple[int, int]]) -> int:
    return sum(h * w for h, w in shapes)


def _image_attention(name: str, heads: int, dim: int, points: int) -> Case:
    samples = (1, QUERIES, heads, len(IMAGE_LEVELS), points)
    leaves = (
        _rand(1, CAMERAS, _tokens(IMAGE_LEVELS), heads, dim),
        _rand(*samples, 2, low=-3, high=3, seed=1),
        _rand(*samples, low=0, high=1 / points, seed=2),
    )
    constants = (_rand(1, CAMERAS, QUERIES, 2, 2, low=-0.2, high=1.2, seed=3), _rand(1, CAMERAS, QUERIES, seed=4) > 0)

    def call(module: Any) -> Function:
        return lambda v, o, w, anchors, seen: module.image_cross_attention(v, IMAGE_LEVELS, anchors, seen, o, w)

    return Case(f"image attention of {name}", call(ops), call(reference), leaves, constants)


def _plane_attention(name: str, heads: int, dim: int, shapes: Sequence[Tuple[int, int]], points: int) -> Case:
    samples = (1, QUERIES, heads, len(shapes), points)
    leaves = (
        _rand(1, _tokens(shapes), heads, dim),
        _rand(*samples, 2, low=-3, high=3, seed=1),
        _rand(*samples, low=0, high=1 / points, seed=2),
    )
    constants = (_rand(QUERIES, len(shapes), 1, 2, low=0, high=1, seed=3),)

    def call(module: Any) -> Function:
        return lambda v, o, w, anchors: module.cross_view_attention(v, shapes, anchors, o, w)

    return Case(f"plane attention of {name}", call(ops), call(reference), leaves, constants)


def _sampling() -> Case:
    leaves = (
        _rand(1, _tokens(IMAGE_LEVELS), 8, 16),
        _rand(1, QUERIES, 8, 4, 8, 2, low=-0.2, high=1.2, seed=1),
        _rand(1, QUERIES, 8, 4, 8, low=0, high=0.125, seed=2),
    )

    def call(module: Any) -> Function:
        return lambda v, x, w: module.ms_deform_attn(v, IMAGE_LEVELS, x, w)

    return Case("deformable attention", call(ops), call(reference), leaves)


def _convolution(width: int) -> Case:
    """Return a case with a bias, because some kernels drop it."""
    leaves = (
        _rand(1, width, 29, 50),
        _rand(1, 18, 29, 50, low=-2, high=2, seed=1),
        _rand(1, 9, 29, 50, low=0, high=1, seed=2),
        _rand(width, width, 3, 3, low=-(width**-0.5), high=width**-0.5, seed=3),
        _rand(width, seed=4),
    )

    def ours(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.modulated_deform_conv2d(x, offset, mask, weight, bias, padding=1)

    def oracle(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1, 1, 1, 1)

    return Case(f"deformable convolution, {width} channels", ours, oracle, leaves)


def _max_pool() -> Case:
    """Return a case without gradient, as in a frozen stem."""
    return Case("max pooling", ops.max_pool, lambda x: F.max_pool2d(x, 3, 2, 1), (), (_rand(2, 64, 232, 400),))


def _add_relu() -> Case:
    """Return a case that is large enough for kernels that work in place."""
    leaves = (_rand(2, 1024, 29, 50), _rand(2, 1024, 29, 50, seed=1))
    return Case("add and ReLU", lambda x, y: ops.add_relu(x * 2, y), lambda x, y: F.relu(x * 2 + y), leaves)


def _plain() -> Case:
    """Return a case of PyTorch's own operations: convolution, norm, linear, softmax, bilinear sampling, sorting."""

    def run(x: Tensor, weight: Tensor, matrix: Tensor, grid: Tensor) -> Tensor:
        y = F.conv2d(x, weight, padding=1)
        y = F.grid_sample(y, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, :, 0]
        y = F.layer_norm(F.linear(y.transpose(1, 2), matrix), (matrix.shape[0],)).softmax(-1)
        return y.sort(dim=1, descending=True)[0].cumsum(1)

    leaves = (_rand(1, 16, 40, 40), _rand(32, 16, 3, 3, seed=1), _rand(64, 32, seed=2))
    return Case("convolution, linear, norm, softmax, sort", run, run, leaves, (_rand(1, 1, QUERIES, 2, seed=3),))


def compare(case: Case, device: torch.device) -> Tuple[bool, str]:
    """Return whether result and gradients match the oracle in float64 on the CPU, and the relative errors."""
    expected = _results(case.oracle, case, torch.device("cpu"), torch.float64)
    found = _results(case.ours, case, device, torch.float32)
    gaps = [float((ours - theirs).norm() / (theirs.norm() + 1e-12)) for ours, theirs in zip(found, expected)]
    forward, backward = gaps[0], max(gaps[1:], default=0.0)
    text = f"forward {forward:.1e}" + (f", backward {backward:.1e}" if case.leaves else ", no gradient asked for")
    return forward <= FORWARD_TOLERANCE and backward <= BACKWARD_TOLERANCE, text


def _results(function: Function, case: Case, device: torch.device, kind: torch.dtype) -> List[Tensor]:
    leaves = [leaf.to(kind).to(device).requires_grad_() for leaf in case.leaves]
    constants = [(c.to(kind) if c.is_floating_point() else c).to(device) for c in case.constants]
    out = function(*leaves, *constants)
    results = [out.detach()]
    if leaves:
        slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float32).view(out.shape).to(kind).to(device)
        results += torch.autograd.grad(out, leaves, slope)
    return [result.cpu().double() for result in results]
