"""Run the expensive operations of TPVFormer, one function each, on the best backend for the device.

Sampling convention: bilinear, u in [0, 1] is pixel ``u * width - 0.5``, zeros outside.

``reference`` (plain PyTorch) is the oracle and runs on every device. Kernels use Numba on the CPU, Triton on CUDA and
the Driving SDK on an Ascend NPU (``npu``). ``TPVFORMER_OPS=reference`` forces the oracle. ``numba``, ``triton`` or
``mx_driving`` forces that backend, and is an error if the backend does not support the tensors; float64 always uses the
oracle. The oracle replaces a backend that cannot be imported, with one warning.

Results have the type of ``value`` (attention) or ``weight`` (convolution), whatever the type of the other tensors. Sums
and geometry are float32 or wider. Autocast changes none of this. Kernels have first derivatives only.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer.errors import OpsError
from tpvformer.ops import backends, blocked, fused, library, npu
from tpvformer.ops.asked import REFERENCE, VARIABLE, asked, misfit
from tpvformer.ops.backends import VENDOR_DEVICE, fallback, static_shapes, use_elementwise, use_kernel
from tpvformer.ops.reference import LevelShapes, level_sizes

__all__ = [
    "REFERENCE",
    "VARIABLE",
    "LevelShapes",
    "OpsError",
    "Seen",
    "add_relu",
    "asked",
    "beyond_kernels",
    "bias_relu",
    "cross_view_attention",
    "fuses_bias",
    "image_cross_attention",
    "in_blocks",
    "kernels",
    "max_pool",
    "misfit",
    "modulated_deform_conv2d",
    "modulated_deform_conv2d_gradients",
    "ms_deform_attn",
    "ms_deform_attn_gradients",
    "packed_attention",
    "projected_attention",
    "raw_deform_conv2d",
    "seen_by_kernels",
    "static_shapes",
    "takes_packed",
    "takes_raw",
    "takes_rows",
]


class Seen(NamedTuple):
    """Hold which cameras see a query: visible (B,N,Q) bool; bits (B,Q) int64, bit n: camera n; scale (B,Q) 1/count."""

    visible: Tensor
    bits: Tensor
    scale: Tensor


def seen_by_kernels(value: Tensor, visible: Tensor) -> Union[Tensor, Seen]:
    """Return visible (B,N,Q) as kernels for value (B,N,S,heads,D) take it; itself if there are none for it.

    A caller with several layers needs it once.
    """
    return _seen(visible) if use_kernel(library.ATTENTION, value) else visible


def _everyone(value: Tensor, queries: int) -> Tuple[Tensor, Tensor]:
    """Return camera bits and scale of queries that all read one map."""
    ones = torch.ones(value.shape[0], queries, device=value.device)
    return ones.long(), ones


def _at_origin(value: Tensor, queries: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Return one anchor at (0,0), and camera bits and scale, of queries whose offsets are their locations."""
    return torch.zeros(1, 1, queries, 1, 1, 2, device=value.device), *_everyone(value, queries)


def through_autograd(run: Callable[..., Tensor], inputs: Sequence[Tensor], grad_out: Tensor) -> Any:
    """Return the gradients of ``inputs`` through an operation, which is computed for it."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        out = run(*leaves)
    return torch.autograd.grad(out, leaves, grad_out.to(out.dtype))


def ms_deform_attn(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute multi-scale deformable attention: each query sums weighted bilinear samples of every level.

    value (B,S,heads,D) with S = sum of h*w; level_shapes ((h,w),...) of Python ints; locations (B,Q,heads,L,P,2) as
    (x,y) in [0,1]; weights (B,Q,heads,L,P). Returns (B,Q,heads*D).
    """
    maps = value[:, None]
    if not use_kernel(library.ATTENTION, maps):
        return fallback(value).ms_deform_attn(value, level_shapes, locations, weights)
    origin, bits, scale = _at_origin(value, locations.shape[1])
    offsets = locations * level_sizes(level_shapes, locations)
    return library.anchored_attention(maps, origin, bits, offsets, weights, scale, level_shapes)


@torch.no_grad()
def ms_deform_attn_gradients(
    value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor, grad_out: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights of ``ms_deform_attn``, each in the type of its tensor.

    grad_out (B,Q,heads*D). For callers without a graph: kernels need no forward pass, other backends compute one.
    """
    maps, inputs = value[:, None], (value, locations, weights)
    if not use_kernel(library.ATTENTION, maps):
        return through_autograd(lambda v, x, w: ms_deform_attn(v, level_shapes, x, w), inputs, grad_out)
    origin, bits, scale = _at_origin(value, locations.shape[1])
    sizes = level_sizes(level_shapes, locations)
    by_value, by_offsets, by_weights = library.attention_gradients(
        maps, origin, bits, locations * sizes, weights, scale, grad_out, level_shapes
    )
    return by_value[:, 0], (by_offsets * sizes).to(locations.dtype), by_weights


def cross_view_attention(
    value: Tensor, level_shapes: LevelShapes, anchors: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Compute view attention: each query samples around its own anchors on every plane (level).

    value (B,S,heads,D); anchors (Q,L,A,2) as (x,y) in [0,1], the same for every sample, or (B,Q,L,A,2); offsets
    (B,Q,heads,L,P,2) in pixels of the level; weights (B,Q,heads,L,P). Point p belongs to anchor p // (P/A). Returns
    (B,Q,heads*D).
    """
    maps = value[:, None]
    if not use_kernel(library.ATTENTION, maps):
        return fallback(value).cross_view_attention(value, level_shapes, anchors, offsets, weights)
    bits, scale = _everyone(value, offsets.shape[1])
    return library.anchored_attention(maps, _of_samples(anchors), bits, offsets, weights, scale, level_shapes)


def _of_samples(anchors: Tensor) -> Tensor:
    """Return anchors of ``cross_view_attention`` as the kernels take them, (1 or B,1,Q,L,A,2)."""
    return anchors[:, None] if anchors.dim() == 5 else anchors[None, None]


def takes_rows(device: torch.device) -> bool:
    """Return whether ``image_cross_attention`` does less on this device if it is given ``rows``."""
    return device.type == VENDOR_DEVICE and asked() != REFERENCE


def takes_packed(value: Tensor) -> bool:
    """Return whether ``packed_attention`` supports value (B,N,S,heads,D), with as few launches as can be."""
    return use_kernel(library.ATTENTION, value) and fused.has_packed(value.device.type)


def packed_attention(
    value: Tensor,
    level_shapes: LevelShapes,
    anchors: Tensor,
    visible: Union[Tensor, Seen, None],
    packed: Tensor,
    points: int,
) -> Tensor:
    """Compute attention from the offsets and logits that one linear layer predicts.

    Call it only if ``takes_packed`` is true.

    value (B,N,S,heads,D). With ``visible`` as in ``image_cross_attention``, packed (B,Q,W) holds a query's offsets
    (heads,L,P,2) and its logits (heads,L,P), anchors are (B,N,Q,A,2), and weights are the softmax of a head's logits.
    Without it the anchors are those of ``cross_view_attention``, each level has one more logit, the last one, and
    weights are a softmax over points times a softmax over levels. Returns (B,Q,heads*D).
    """
    if visible is None:
        bits, scale = _everyone(value, packed.shape[1])
        anchors = _of_samples(anchors)
    else:
        _, bits, scale = visible if isinstance(visible, Seen) else _seen(visible)
        anchors = anchors[:, :, :, None]
    return fused.packed_attention(value, anchors, bits, packed, scale, level_shapes, points)


def image_cross_attention(
    value: Tensor,
    level_shapes: LevelShapes,
    anchors: Tensor,
    visible: Union[Tensor, Seen],
    offsets: Tensor,
    weights: Tensor,
    rows: Optional[Tensor] = None,
) -> Tensor:
    """Compute image cross-attention: queries sample around projected anchors; mean over the cameras that see them.

    value (B,N,S,heads,D); anchors (B,N,Q,A,2) as (x,y) divided by the image size, also outside [0,1]; visible (B,N,Q)
    bool, or the same from ``seen_by_kernels``; offsets (B,Q,heads,L,P,2) in pixels of the level; weights
    (B,Q,heads,L,P). Point p belongs to anchor p // (P/A). Returns (B,Q,heads*D); a query that no camera sees gets
    zeros.

    rows (B,N,R) int32 lists for each camera at least the queries that it sees, padded with -1; see ``takes_rows``.
    """
    if not use_kernel(library.ATTENTION, value):
        plain = visible.visible if isinstance(visible, Seen) else visible
        if rows is not None and fallback(value) is npu:
            return npu.image_cross_attention(value, level_shapes, anchors, plain, offsets, weights, rows)
        return fallback(value).image_cross_attention(value, level_shapes, anchors, plain, offsets, weights)
    _, bits, scale = visible if isinstance(visible, Seen) else _seen(visible)
    return library.anchored_attention(value, anchors[:, :, :, None], bits, offsets, weights, scale, level_shapes)


def in_blocks(value: Tensor, query: Tensor) -> bool:
    """Return whether ``projected_attention`` supports these: float32 on a CPU with kernels, not traced or compiled."""
    plain = type(value) is Tensor and value.device.type == "cpu" and value.dtype == query.dtype == torch.float32
    if not plain or torch.compiler.is_compiling() or torch.jit.is_tracing() or _casts():
        return False
    return use_kernel(library.ATTENTION, value)


def _casts() -> bool:
    """Return whether autocast sets the type of linear layers on the CPU."""
    newer = hasattr(torch.library, "custom_op")  # PyTorch 2.4; each version lacks or deprecates the other's call
    return torch.is_autocast_enabled("cpu") if newer else torch.is_autocast_cpu_enabled()


def projected_attention(
    value: Tensor,
    level_shapes: LevelShapes,
    query: Tensor,
    places: Sequence[Tuple[Tensor, Union[Tensor, Seen, None]]],
    points: Sequence[int],
    layers: Sequence[Tuple[nn.Module, nn.Module]],
) -> Tensor:
    """Compute attention of queries (B,Q,C), with offsets and weights predicted by linear layers, in blocks.

    The queries consist of successive groups. Each group has its layers (offsets, logits), its points a level, and its
    place. value (B,N,S,heads,D). A place is (anchors, visible) of ``image_cross_attention``: weights are the softmax of
    a head's logits. Or it is (anchors, None) of ``cross_view_attention``: each level has one more logit, the last one,
    and weights are a softmax over points times a softmax over levels. Returns (B,Q,heads*D). Call it only if
    ``in_blocks`` is true.
    """
    groups = []
    for (anchors, visible), count in zip(places, points):
        if visible is None:
            bits, scale = _everyone(value, anchors.shape[-4])
            groups.append(blocked.Queries(_of_samples(anchors).float(), bits, scale, count, True))
        else:
            _, bits, scale = visible if isinstance(visible, Seen) else _seen(visible)
            groups.append(blocked.Queries(anchors[:, :, :, None].float(), bits, scale, count, False))
    tensors = [(*o.parameters(), *w.parameters()) for o, w in layers]
    return blocked.projected_attention(value, level_shapes, query, groups, tensors)


def _seen(visible: Tensor) -> Seen:
    """Return camera bits and scale of queries, for the mean over the cameras that see them; visible (B,N,Q)."""
    camera = torch.arange(visible.shape[1], device=visible.device).view(-1, 1)
    return Seen(visible, (visible.long() << camera).sum(1), 1 / visible.sum(1).clamp(min=1).float())


def modulated_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Compute a DCNv2: a convolution with its taps shifted by ``offset`` and scaled by ``mask``.

    x (N,C,H,W); offset (N,deform_groups*taps*2,ho,wo) as (dy,dx) pairs, taps row-major; mask
    (N,deform_groups*taps,ho,wo) already in [0,1]; weight (O,C/groups,kh,kw), its type is that of the product. Returns
    (N,O,ho,wo).
    """
    x = x.to(weight.dtype)
    if not use_kernel(library.CONVOLUTION, x, groups, deform_groups):
        return fallback(x).modulated_deform_conv2d(
            x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups
        )
    out = library.deform_conv(*_channels_last(x, offset, mask, weight), (*weight.shape[2:], stride, padding, dilation))
    if bias is not None:
        out = out.add_(bias)  # in place: nothing else refers to this tensor
    return out.permute(0, 3, 1, 2)


@torch.no_grad()
def modulated_deform_conv2d_gradients(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    grad_out: Tensor,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, offset, mask and weight of ``modulated_deform_conv2d``, each in its tensor's type.

    grad_out (N,O,ho,wo). For callers without a graph: kernels need no forward pass, other backends compute one.
    """
    typed, sizes = x.to(weight.dtype), (stride, padding, dilation)
    if not use_kernel(library.CONVOLUTION, typed, groups, deform_groups):

        def run(*tensors: Tensor) -> Tensor:
            return modulated_deform_conv2d(*tensors, None, *sizes, groups, deform_groups)

        return through_autograd(run, (x, offset, mask, weight), grad_out)
    last = grad_out.to(weight.dtype).permute(0, 2, 3, 1)
    found = library.convolution_gradients(
        *_channels_last(typed, offset, mask, weight), last, (*weight.shape[2:], *sizes)
    )
    grads = [grad.permute(0, 3, 1, 2).to(tensor.dtype) for grad, tensor in zip(found, (x, offset, mask))]
    o, c, kh, kw = weight.shape
    return grads[0], grads[1], grads[2], found[3].view(kh, kw, c, o).permute(3, 2, 0, 1)


def _channels_last(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, offset, mask with the channels last, and weight (O,C,kh,kw) as (taps*C,O), as kernels take them."""
    x, offset, mask = (t.permute(0, 2, 3, 1) for t in (x, offset.float(), mask.float()))
    return x, offset, mask, weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0])


def takes_raw(x: Tensor) -> bool:
    """Return whether ``raw_deform_conv2d`` supports x (N,C,H,W)."""
    return use_kernel(library.CONVOLUTION, x, 1, 1) and fused.has_raw(x.device.type)


def raw_deform_conv2d(x: Tensor, raw: Tensor, weight: Tensor, padding: int, keep: bool = False) -> Tensor:
    """Compute ``modulated_deform_conv2d`` from what a convolution predicts: raw (N,R,ho,wo), in any type.

    Channels of raw: taps*2 offsets, taps logits of the mask, and any number of ignored ones. ``keep`` trades memory for
    time in the backward pass. Call it only if ``takes_raw`` is true.
    """
    o, _, kh, kw = weight.shape
    rows = weight.permute(2, 3, 1, 0).reshape(-1, o)
    last = [t.permute(0, 2, 3, 1) for t in (x.to(weight.dtype), raw)]
    return fused.deform_conv_raw(*last, rows, (kh, kw, 1, padding, 1), keep).permute(0, 3, 1, 2)


def max_pool(x: Tensor) -> Tensor:
    """Return the maximum over 3x3 windows, stride 2, padding 1: x (N,C,H,W) -> (N,C,ceil(H/2),ceil(W/2))."""
    return npu.max_pool(x) if fallback(x) is npu else F.max_pool2d(x, 3, 2, 1)


def add_relu(x: Tensor, y: Tensor) -> Tensor:
    """Return relu(x + y) of two tensors of one shape. The result overwrites x, so x must not be used elsewhere."""
    return npu.add_relu(x, y) if fallback(x) is npu else F.relu(x.add_(y), inplace=True)


def fuses_bias(x: Tensor) -> bool:
    """Return whether ``bias_relu`` supports x (N,C,H,W): in eager code, where a backend has a kernel for it."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not traced and hasattr(torch.library, "custom_op") and use_elementwise(x)


def bias_relu(x: Tensor, bias: Tensor, shortcut: Optional[Tensor] = None) -> Tensor:
    """Return relu(x + bias + shortcut), channels last in memory: x and shortcut (N,C,H,W), bias (C,) float32.

    The bias gets no gradient. Call it only if ``fuses_bias`` is true.
    """
    last = None if shortcut is None else shortcut.permute(0, 2, 3, 1)
    return fused.bias_relu(x.permute(0, 2, 3, 1), bias, last).permute(0, 3, 1, 2)


def kernels(device: torch.device) -> Dict[str, Optional[str]]:
    """Return the kernels for tensors of ``device`` by name, with the reason if one is not available, else None."""
    return backends.kernels(device.type)


def beyond_kernels(
    device: torch.device, attentions: Sequence[Tuple[int, int, int]], convolutions: Sequence[Tuple[int, ...]]
) -> List[str]:
    """Return the reasons why kernels on ``device`` do not support these operations, one sentence a case.

    attentions: (heads, channels a head, levels); convolutions: the weight shapes (O,C,kh,kw) of deformable ones. The
    kernels are looked up now rather than at the first step, with a warning for each missing one.
    """
    if device.type != VENDOR_DEVICE:
        return []
    npu.find_all()
    cases = [("attention", npu.attention_problem(*case)) for case in dict.fromkeys(attentions)]
    cases += [("a deformable convolution", npu.convolution_problem(case)) for case in dict.fromkeys(convolutions)]
    return [f"{what} has {problem}" for what, problem in cases if problem is not None]
