"""The operations that TPVFormer spends its time in, one function each, served by the best backend for the device.

Sampling convention everywhere: bilinear, u in [0, 1] is pixel ``u * width - 0.5``, zeros outside.

Backends are modules with the same functions: ``reference`` (plain PyTorch, the oracle, everywhere) and ``numba_cpu``.
``TPVFORMER_OPS=reference`` forces the oracle. A backend that cannot be had is replaced by the oracle, said once.
"""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType
from typing import Optional

import torch
from torch import Tensor

from . import reference
from .reference import LevelShapes

__all__ = ["LevelShapes", "cross_view_attention", "image_cross_attention", "modulated_deform_conv2d", "ms_deform_attn"]

BACKENDS = ("reference", "numba")
MAX_CAMERAS = 63  # the CPU kernels keep a query's cameras in the bits of one integer


@functools.lru_cache(maxsize=None)
def _numba() -> ModuleType:
    """The CPU kernels, or the oracle where Numba is not installed."""
    try:
        from . import numba_cpu
    except ImportError as err:
        logging.getLogger(__name__).warning("CPU kernels are not available (%s); plain PyTorch serves instead", err)
        return reference
    return numba_cpu


def _forced() -> Optional[str]:
    name = os.environ.get("TPVFORMER_OPS")
    if name is not None and name not in BACKENDS:
        raise ValueError(f"TPVFORMER_OPS is {name!r}; expected one of {', '.join(BACKENDS)}, or unset")
    return name


def _attention_backend(value: Tensor, cameras: int = 1) -> ModuleType:
    suits = value.device.type == "cpu" and value.dtype == torch.float32 and cameras <= MAX_CAMERAS
    return _numba() if suits and _forced() != "reference" else reference


def ms_deform_attn(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention: each query sums weighted bilinear samples from every level.

    value (B,S,heads,D) with S = sum of h*w; level_shapes ((h,w),...) of Python ints; locations (B,Q,heads,L,P,2) as
    (x,y) in [0,1]; weights (B,Q,heads,L,P). Returns (B,Q,heads*D).
    """
    return _attention_backend(value).ms_deform_attn(value, level_shapes, locations, weights)


def cross_view_attention(
    value: Tensor, level_shapes: LevelShapes, anchors: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Each query samples around its own anchors on every level: the planes read each other.

    value (B,S,heads,D); anchors (Q,L,A,2) as (x,y) in [0,1], the same for every sample; offsets (B,Q,heads,L,P,2) in
    pixels of the level; weights (B,Q,heads,L,P). Point p belongs to anchor p // (P/A). Returns (B,Q,heads*D).
    """
    return _attention_backend(value).cross_view_attention(value, level_shapes, anchors, offsets, weights)


def image_cross_attention(
    value: Tensor, level_shapes: LevelShapes, anchors: Tensor, visible: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Each query samples around its projected anchors in every camera that sees it; the mean over those cameras.

    value (B,N,S,heads,D); anchors (B,N,Q,A,2) as (x,y) normalised by the image size, anywhere outside [0,1] too;
    visible (B,N,Q) bool; offsets (B,Q,heads,L,P,2) in pixels of the level; weights (B,Q,heads,L,P). Point p belongs to
    anchor p // (P/A). Returns (B,Q,heads*D); a query that no camera sees gets zeros.
    """
    backend = _attention_backend(value, value.shape[1])
    return backend.image_cross_attention(value, level_shapes, anchors, visible, offsets, weights)


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
    """DCNv2: a convolution whose taps are moved by ``offset`` and scaled by ``mask``.

    x (N,C,H,W); offset (N,deform_groups*taps*2,ho,wo) as (dy,dx) pairs, taps row-major; mask
    (N,deform_groups*taps,ho,wo) already in [0,1]; weight (O,C/groups,kh,kw), its type is the product's.
    Returns (N,O,ho,wo).
    """
    on_cpu = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    if on_cpu and _forced() != "reference" and _numba() is not reference:
        from . import numba_dcn

        if numba_dcn.supports(x.shape[1], groups, deform_groups):
            return numba_dcn.modulated_deform_conv2d(x, offset, mask, weight, bias, stride, padding, dilation)
    return reference.modulated_deform_conv2d(
        x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups
    )
