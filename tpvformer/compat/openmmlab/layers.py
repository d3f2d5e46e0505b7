"""Layers with the constructors and parameter names of mmcv's, computed by ``tpvformer.ops`` on every device."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from tpvformer.ops import modulated_deform_conv2d, ms_deform_attn

Size = Union[int, Tuple[int, int]]


def _number(name: str, size: Size) -> int:
    """Return one number for height and width. Raises ConfigError where they differ."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(set(pair)) != 1:
        raise ValueError(f"DCNv2: {name} is {size}; expected the same in height and width")
    return pair[0]


class ModulatedDeformConv2dPack(nn.Module):
    """DCNv2 with its ``conv_offset``, of whose channels two thirds are offsets, (dy,dx) a tap, the rest mask logits."""

    _version = 2  # in version 1, ``conv_offset`` was stored beside the layer, as ``<layer>_offset``

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: Union[bool, str] = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self._sizes = (_number("stride", stride), _number("padding", padding), _number("dilation", dilation))
        self.stride, self.padding, self.dilation = ((size, size) for size in self._sizes)
        self.groups, self.deform_groups = groups, deform_groups
        self.transposed, self.output_padding = False, (0,)  # mmcv's ConvModule reads them
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.conv_offset = nn.Conv2d(in_channels, 3 * deform_groups * taps, self.kernel_size, *self._sizes)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw weights uniformly within +-1/sqrt(fan-in), set biases to 0; offsets start at 0, the mask at 1/2."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)
        for tensor in (self.bias, self.conv_offset.weight, self.conv_offset.bias):
            if tensor is not None:
                nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) -> (N,out_channels,ho,wo)."""
        predicted = self.conv_offset(x)
        third = predicted.shape[1] // 3
        offset, mask = predicted.split([2 * third, third], dim=1)
        groups = (self.groups, self.deform_groups)
        return modulated_deform_conv2d(x, offset, mask.sigmoid(), self.weight, self.bias, *self._sizes, *groups)

    def _load_from_state_dict(
        self, state_dict: Dict[str, Any], prefix: str, local_metadata: Dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:
            for entry in ("weight", "bias"):
                old, new = f"{prefix[:-1]}_offset.{entry}", f"{prefix}conv_offset.{entry}"
                if old in state_dict and new not in state_dict:
                    state_dict[new] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)


class MultiScaleDeformableAttention(nn.Module):
    """Multi-scale deformable attention: a query samples ``num_heads * num_levels * num_points`` places of the maps.

    It is Deformable DETR's. ``im2col_step``, ``norm_cfg`` and ``init_cfg`` are accepted and ignored.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: Optional[Dict[str, Any]] = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f"embed_dims is {embed_dims}; expected a multiple of num_heads, {num_heads}")
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        self.im2col_step, self.batch_first, self.norm_cfg, self.init_cfg = im2col_step, batch_first, norm_cfg, init_cfg
        places = num_heads * num_levels * num_points
        self.dropout = nn.Dropout(dropout)
        self.sampling_offsets = nn.Linear(embed_dims, 2 * places)
        self.attention_weights = nn.Linear(embed_dims, places)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.init_weights()

    def init_weights(self) -> None:
        """Set equal weights and offsets in another direction for each head, point p at p + 1 steps on a square."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ahead = torch.stack((angles.cos(), angles.sin()), -1)
        ahead = ahead / ahead.abs().max(-1, keepdim=True)[0]
        steps = torch.arange(1.0, self.num_points + 1)
        grid = ahead[:, None, None] * steps[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(grid.expand(-1, self.num_levels, -1, -1).flatten())
        for tensor in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(tensor)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        key: Optional[Tensor] = None,
        value: Optional[Tensor] = None,
        identity: Optional[Tensor] = None,
        query_pos: Optional[Tensor] = None,
        key_padding_mask: Optional[Tensor] = None,
        reference_points: Optional[Tensor] = None,
        spatial_shapes: Optional[Tensor] = None,
        level_start_index: Optional[Tensor] = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the attended queries plus ``identity`` (default: ``query``), with the axes of ``query``.

        query (Q,B,C), or (B,Q,C) with ``batch_first``; value (S,B,C) or (B,S,C), default query; reference_points
        (B,Q,L,2) as (x,y) in [0,1], or (B,Q,L,4) with a box's (w,h); offsets are then in units of half a box;
        spatial_shapes (L,2) rows (h,w), which are copied to the CPU; key_padding_mask (B,S), True is padding. ``key``,
        ``level_start_index`` and ``kwargs`` are ignored.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError("MultiScaleDeformableAttention needs reference_points and spatial_shapes")
        identity = query if identity is None else identity
        value = query if value is None else value
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        shapes = tuple((int(h), int(w)) for h, w in spatial_shapes.tolist())
        tokens = self.value_proj(value)
        if key_padding_mask is not None:
            tokens = tokens.masked_fill(key_padding_mask[..., None], 0.0)
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(query).unflatten(-1, (heads, levels, points, 2))
        weights = self.attention_weights(query).unflatten(-1, (heads, levels * points)).softmax(-1)
        locations = self._locations(reference_points, offsets, shapes)
        weights = weights.unflatten(-1, (levels, points))
        read = ms_deform_attn(tokens.unflatten(-1, (heads, -1)), shapes, locations, weights)
        out = self.output_proj(read)
        return self.dropout(out if self.batch_first else out.transpose(0, 1)) + identity

    @staticmethod
    def _locations(reference: Tensor, offsets: Tensor, shapes: Tuple[Tuple[int, int], ...]) -> Tensor:
        """Return the sampling locations (B,Q,heads,L,P,2) in [0,1]."""
        around = reference[:, :, None, :, None]  # (B,Q,1,L,1,2 or 4)
        if reference.shape[-1] == 2:
            sizes: List[Tuple[int, int]] = [(w, h) for h, w in shapes]
            return around + offsets / offsets.new_tensor(sizes)[:, None]
        if reference.shape[-1] == 4:
            return around[..., :2] + offsets / offsets.shape[-2] * around[..., 2:] * 0.5
        raise ValueError(f"reference_points end in {reference.shape[-1]} numbers; expected 2 (x,y) or 4 (x,y,w,h)")
