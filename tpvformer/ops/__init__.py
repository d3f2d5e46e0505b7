"""The operations that TPVFormer spends its time in, one function each, served by the best backend for the tensor's device.

Sampling convention everywhere: bilinear, u in [0, 1] is pixel ``u * width - 0.5``, zeros outside.
``TPVFORMER_OPS=reference`` forces the plain-PyTorch oracle (``ops/reference.py``).
"""

from __future__ import annotations

from typing import Optional

from torch import Tensor

from . import reference
from .reference import LevelShapes

__all__ = ["LevelShapes", "image_cross_attention", "modulated_deform_conv2d", "ms_deform_attn"]


def ms_deform_attn(value: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention: each query sums weighted bilinear samples from every level.

    value (B,S,heads,D) with S = sum of h*w; level_shapes ((h,w),...) of Python ints; locations (B,Q,heads,L,P,2) as
    (x,y) in [0,1]; weights (B,Q,heads,L,P). Returns (B,Q,heads*D).
    """
    return reference.ms_deform_attn(value, level_shapes, locations, weights)


def image_cross_attention(
    value: Tensor, level_shapes: LevelShapes, anchors: Tensor, visible: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Each query samples around its projected anchors in every camera that sees it; the mean over those cameras.

    value (B,N,S,heads,D); anchors (B,N,Q,A,2) as (x,y) normalised by the image size, anywhere outside [0,1] too;
    visible (B,N,Q) bool; offsets (B,Q,heads,L,P,2) in pixels of the level; weights (B,Q,heads,L,P). Point p belongs to
    anchor p // (P/A). Returns (B,Q,heads*D); a query that no camera sees gets zeros.
    """
    return reference.image_cross_attention(value, level_shapes, anchors, visible, offsets, weights)


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

    x (N,C,H,W); offset (N,deform_groups*taps*2,ho,wo) as (dy,dx) pairs, taps row-major; mask (N,deform_groups*taps,ho,wo)
    already in [0,1]; weight (O,C/groups,kh,kw). Returns (N,O,ho,wo).
    """
    return reference.modulated_deform_conv2d(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups)
