"""Run the operations on an Ascend NPU: Driving SDK's kernels within their limits, plain PyTorch otherwise.

The SDK (module mx_driving) is imported when a tensor on an NPU first needs a kernel. An earlier import would occupy a
card and, in newer releases, redirect ``torch.cuda``. Kernels are looked up by name, because wheels of the same version
contain different ones. All calls are positional, in float32, with autocast off, on contiguous NCHW or (B,S,heads,D)
tensors. Shapes never depend on values on the device, so nothing synchronises with it: image cross-attention passes to
every camera the queries that the loader's workers list for it (``rows``) or, without a list, every query, with weight
zero for cameras that do not see it.

Limits: Driving SDK 6.0.0, 7.x and 26.x. Written from its documentation; not run on hardware yet.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from typing import Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tpvformer.errors import OpsError
from tpvformer.ops import reference, static
from tpvformer.ops.asked import asked
from tpvformer.ops.reference import LevelShapes

BACKEND = "mx_driving"  # its name in TPVFORMER_OPS
# Where each kernel is: in the package since 7.0 (the sub-package then warns), in the sub-package of 6.0.0.
NAMES: Dict[str, Tuple[Tuple[str, str], ...]] = {
    "attention": (
        ("mx_driving", "multi_scale_deformable_attn"),
        ("mx_driving.fused", "npu_multi_scale_deformable_attn_function"),
    ),
    "convolution": (("mx_driving", "modulated_deform_conv2d"), ("mx_driving.fused", "modulated_deform_conv2d")),
    "max_pool": (("mx_driving", "npu_max_pool2d"), ("mx_driving.fused", "npu_max_pool2d")),
    "add_relu": (("mx_driving", "npu_add_relu"), ("mx_driving.fused", "npu_add_relu")),
}
MAX_SAMPLES = 64  # levels x points of one attention call, from 7.0 on
MAX_HEAD_DIM, HEAD_DIM_STEP, MAX_HEADS = 64, 8, 8  # limits of all releases, forward and backward
FAST_SAMPLES, FAST_CHANNELS = 64, 2048  # heads x levels x points, and that times channels a head, of its fast path
CHANNEL_STEP = 64  # input and output channels of a deformable convolution
POOL_MIN_SIZE, POOL_MAX_CHANNELS, POOL_MAX_ELEMENTS = 100, 1024, 10**9
MAX_ELEMENTS = 2**31 - 1  # add_relu uses int32 indices

_missing: Dict[str, str] = {}  # kernel -> why it is not available; filled by ``find``


# ---- finding kernels


@functools.lru_cache(maxsize=None)
def find(name: str) -> Optional[Callable[..., Tensor]]:
    """Return the kernel called ``name`` in NAMES; None, with one warning, if it is not available."""
    try:
        package = importlib.import_module("mx_driving")
        for module, attribute in NAMES[name]:
            # from 7.0 on the package has the name; the sub-package, which warns, is imported only without it
            holder = package if module == package.__name__ else importlib.import_module(module)
            kernel = getattr(holder, attribute, None)
            if kernel is not None:
                found: Callable[..., Tensor] = kernel
                return found
        reason = "it has no such kernel"
    except Exception as err:  # a package without its card raises AssertionError, RuntimeError, OSError or ImportError
        reason = str(err) or type(err).__name__
    _give_up(name, reason)
    return None


def _give_up(name: str, reason: str) -> None:
    _missing[name] = reason
    if os.environ.get("RANK", "0") == "0":  # one warning a machine
        text = "mx_driving's %s is not available (%s); plain PyTorch is used instead"
        logging.getLogger(__name__).warning(text, name, reason)


def find_all() -> Dict[str, str]:
    """Look up every kernel now; return the missing ones with the reason."""
    return {name: _missing[name] for name in NAMES if find(name) is None}


def _kernel(name: str, problem: Optional[str]) -> Optional[Callable[..., Tensor]]:
    """Return the kernel, or None if this case has a ``problem``. Raises OpsError if TPVFORMER_OPS forces the kernel."""
    kernel = None if problem is not None else find(name)
    if kernel is None and asked() == BACKEND:
        reason = problem or _missing[name]
        raise OpsError(f"TPVFORMER_OPS={BACKEND} is set, but does not support {name}: {reason}")
    return kernel


# ---- limits


def attention_problem(heads: int, head_dim: int, levels: int) -> Optional[str]:
    """Return why the attention kernel does not support such heads; None if it does."""
    if heads > MAX_HEADS:
        return f"{heads} heads, at most {MAX_HEADS} are supported"
    if head_dim > MAX_HEAD_DIM or head_dim % HEAD_DIM_STEP:
        return f"{head_dim} channels a head, multiples of {HEAD_DIM_STEP} up to {MAX_HEAD_DIM} are supported"
    return f"{levels} levels, at most {MAX_SAMPLES} are supported" if levels > MAX_SAMPLES else None


def convolution_problem(weight: Tuple[int, ...], groups: int = 1, deform_groups: int = 1) -> Optional[str]:
    """Return why the deformable convolution does not support a ``weight`` (O,C/groups,kh,kw); None if it does."""
    outputs, inputs, kh, kw = weight
    if (kh, kw) != (3, 3):
        return f"a {kh}x{kw} kernel, 3x3 is supported"
    if groups != 1 or deform_groups != 1:
        return f"{groups} groups and {deform_groups} deformable groups, one of each is supported"
    if inputs % CHANNEL_STEP or outputs % CHANNEL_STEP:
        return f"{inputs} channels in and {outputs} out, multiples of {CHANNEL_STEP} are supported"
    return None


def _pool_problem(x: Tensor) -> Optional[str]:
    step = {torch.float32: 8, torch.float16: 16}.get(x.dtype)
    if x.requires_grad:
        return "a gradient is wanted, and the kernel has none"
    if step is None or x.shape[1] % step or x.shape[1] > POOL_MAX_CHANNELS:
        return f"{x.dtype} with {x.shape[1]} channels"
    if min(x.shape[2:]) <= POOL_MIN_SIZE or x.numel() > POOL_MAX_ELEMENTS:
        return f"maps of {tuple(x.shape[2:])}"
    return None


def _add_relu_problem(x: Tensor, y: Tensor) -> Optional[str]:
    if not (x.dtype == y.dtype == torch.float32):
        return f"{x.dtype} and {y.dtype}, float32 is supported"
    if x.shape != y.shape or x.numel() > MAX_ELEMENTS or not (x.is_contiguous() and y.is_contiguous()):
        return f"tensors of {tuple(x.shape)} and {tuple(y.shape)}, or not contiguous"
    return None


# ---- attention


@functools.lru_cache(maxsize=64)
def _levels(level_shapes: LevelShapes, device: torch.device) -> Tuple[Tensor, Tensor, Tensor]:
    """Return device tensors: (L,2) int32 rows and columns, (L,) int32 first tokens, (L,1,2) float32 width, height."""
    sizes = [h * w for h, w in level_shapes]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    with torch.inference_mode(False):  # cached for later calls with gradients
        return (
            torch.tensor(level_shapes, dtype=torch.int32).to(device),
            torch.tensor(starts, dtype=torch.int32).to(device),
            torch.tensor([[[w, h]] for h, w in level_shapes], dtype=torch.float32).to(device),
        )


def points_a_call(levels: int) -> int:
    """Return the points a level of one call: the largest power of two within the limit."""
    return 1 << ((MAX_SAMPLES // levels).bit_length() - 1)


def fast_points(heads: int, head_dim: int, levels: int, points: int) -> int:
    """Return the points a level with which a call takes the kernel's fast path (from 7.0 on), a divisor of ``points``.

    ``points`` itself if such a call takes it anyway, or if none does.
    """
    most = min(FAST_SAMPLES, FAST_CHANNELS // (-(-head_dim // 8) * 8)) // (heads * levels)
    return next((p for p in range(min(most, points), 0, -1) if points % p == 0), points)


def has_fast_path() -> bool:
    """Return whether the SDK is 7.0 or newer, which has the kernel in the package itself."""
    module, name = NAMES["attention"][0]
    return hasattr(sys.modules.get(module), name)


def fold(tensor: Tensor, points: int) -> Tensor:
    """Make groups of ``points`` points queries of their own: (B,Q,heads,L,P,...) to (B,Q*P/points,heads,L,points,...).

    The attention of a query is the sum of those of its groups, because the operation is linear in the weights.
    """
    b, q, heads, levels, total = tensor.shape[:5]
    groups = total // points
    parts = tensor.reshape(b * q, heads * levels, groups, -1).transpose(1, 2)
    return parts.reshape(b, q * groups, heads, levels, points, *tensor.shape[5:])


def ms_deform_attn(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute ``ops.ms_deform_attn``. The operation is linear in the weights, so that points can be divided.

    From 7.0 on, groups of points become queries of their own where the kernel then takes its fast path. Points above a
    call's limit are split otherwise.
    """
    heads, head_dim = value.shape[2:]
    kernel = _kernel("attention", attention_problem(heads, head_dim, len(level_shapes)))
    if kernel is None:
        return reference.ms_deform_attn(value, level_shapes, locations, weights)
    shapes, starts, _ = _levels(tuple(level_shapes), value.device)
    points, total = points_a_call(len(level_shapes)), locations.shape[4]
    fast = fast_points(heads, head_dim, len(level_shapes), total) if has_fast_path() else total
    out: Optional[Tensor] = None
    with torch.autocast(value.device.type, enabled=False):
        maps = value.float().contiguous()
        if fast < total:
            where, weight = fold(locations.float(), fast), fold(weights.float(), fast)
            parts = kernel(maps, shapes, starts, where.contiguous(), weight.contiguous())
            return parts.unflatten(1, (-1, total // fast)).sum(2).to(value.dtype)
        for where, weight in zip(locations.float().split(points, 4), weights.float().split(points, 4)):
            part = kernel(maps, shapes, starts, where.contiguous(), weight.contiguous())
            out = part if out is None else out + part
    assert out is not None
    return out.to(value.dtype)


def cross_view_attention(
    value: Tensor, level_shapes: LevelShapes, anchors: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Compute ``ops.cross_view_attention``."""
    centre = anchors.float().repeat_interleave(offsets.shape[4] // anchors.shape[-2], dim=-2)  # (..,Q,L,P,2)
    sizes = _levels(tuple(level_shapes), value.device)[2]
    return ms_deform_attn(value, level_shapes, centre.unsqueeze(-4) + offsets.float() / sizes, weights)


def image_cross_attention(
    value: Tensor,
    level_shapes: LevelShapes,
    anchors: Tensor,
    visible: Tensor,
    offsets: Tensor,
    weights: Tensor,
    rows: Optional[Tensor] = None,
) -> Tensor:
    """Compute ``ops.image_cross_attention``, of the queries in ``rows`` alone if they are given."""
    sizes = _levels(tuple(level_shapes), value.device)[2]
    if rows is not None:
        return static.listed_attention(
            value, level_shapes, anchors, visible, offsets, weights, rows, ms_deform_attn, sizes
        )
    return static.image_cross_attention(value, level_shapes, anchors, visible, offsets, weights, ms_deform_attn, sizes)


# ---- convolution


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
    """Compute ``ops.modulated_deform_conv2d``. The kernel silently ignores a bias, so it is added here."""
    kernel = _kernel("convolution", convolution_problem(tuple(weight.shape), groups, deform_groups))
    geometry = (stride, padding, dilation, groups, deform_groups)
    if kernel is None and (groups, deform_groups) != (1, 1):
        return reference.modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)
    with torch.autocast(x.device.type, enabled=False):
        inputs = [tensor.float().contiguous() for tensor in (x, offset, mask, weight)]
        if kernel is None:
            out = static.sampled_convolution(*inputs, stride, padding, dilation)
        else:
            out = kernel(*inputs, None, *geometry)
    out = out.to(weight.dtype)
    return out if bias is None else out + bias.to(out.dtype).view(1, -1, 1, 1)


# ---- elementwise and pooling


def max_pool(x: Tensor) -> Tensor:
    """Compute ``ops.max_pool``. The kernel has no backward pass, so it is used in frozen stems only."""
    kernel = None if _pool_problem(x) or "max_pool" in _missing else find("max_pool")
    try:
        if kernel is not None:
            return kernel(x.contiguous(), 3, 2, 1)
    except NotImplementedError as err:  # newer releases, on chips they do not support
        _give_up("max_pool", str(err))
    return F.max_pool2d(x, 3, 2, 1)


def add_relu(x: Tensor, y: Tensor) -> Tensor:
    """Compute ``ops.add_relu``. The kernel writes into x without autograd's knowledge."""
    kernel = None if _add_relu_problem(x, y) else find("add_relu")
    return F.relu(x.add_(y), inplace=True) if kernel is None else kernel(x, y)
