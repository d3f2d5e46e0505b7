"""Detect 3-D boxes on the planes with a CenterPoint head (arXiv:2006.11275): convolutions alone, no custom operator.

Legend: B batch, Q plane cells, C channels of a plane, D decoder width, Y, X cells of the map.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer.config import ModelConfig
from tpvformer.config.detection import BOX_VALUES, GROUP_SIZES
from tpvformer.model.columns import pooled_columns
from tpvformer.model.detection_history import Compared

_FEW = -2.19  # initial bias of the heatmaps: one cell in ten is an object
_NORM_GROUPS = 8


class DetectionMaps(NamedTuple):
    """Hold heatmaps (B,10,Y,X), logits of the classes, and values (B,6,10,Y,X), each group's values of a box.

    ``data/detection/targets.py`` names the values, ``data/detection/decode.py`` makes boxes of both.
    """

    heatmaps: Tensor
    values: Tensor


class DetectionHead(nn.Module):
    """Read boxes from the planes, through the first layer of the decoder of voxels."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        assert cfg.detection is not None
        self.cfg = cfg
        width, own = cfg.detection.channels, cfg.detection.group_channels
        self.reduce = _conv(2 * cfg.decoder_dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(cfg.detection.blocks))
        self.shared = _conv(width, width)
        self.groups = _conv(width, own * len(GROUP_SIZES))
        self.heatmaps = nn.ModuleList(nn.Conv2d(own, size, 1) for size in GROUP_SIZES)
        self.values = nn.ModuleList(nn.Conv2d(own, BOX_VALUES, 1) for _ in GROUP_SIZES)
        for layer in self.heatmaps:
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            nn.init.constant_(layer.bias, _FEW)

    def forward(
        self, planes: Tensor, first: nn.Linear, dtype: Optional[torch.dtype] = None, past: Optional[Compared] = None
    ) -> DetectionMaps:
        """Return the maps, fp32, from plane features (B,Q,C). ``first`` is the decoder's first layer, C -> D.

        ``dtype``: convolutions run under autocast in this type; None: in the planes' type. ``past``: what
        ``DetectionHistory`` returned.
        """
        detection = self.cfg.detection
        assert detection is not None
        x = pooled_columns(self.cfg.grid, planes, first)
        with torch.autocast(planes.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            x = self.reduce(x)
            x = x if past is None else x + past.features.to(x)
            for block in self.blocks:
                x = block(x)
            if detection.scale != 1:
                x = F.interpolate(x, scale_factor=float(detection.scale), mode="bilinear", align_corners=False)
            parts = self.groups(self.shared(x)).chunk(len(GROUP_SIZES), 1)
            heatmaps = torch.cat([layer(part) for layer, part in zip(self.heatmaps, parts)], 1)
            values = torch.stack([layer(part) for layer, part in zip(self.values, parts)], 1)
        values = values.float()
        if past is not None:
            values = values + self._of_velocities(past.velocities)
        return DetectionMaps(heatmaps.float(), values)

    def _of_velocities(self, velocities: Tensor) -> Tensor:
        """Return values (B,6,10,Y,X), zero but for the velocities (B,6,2,h,w)."""
        detection = self.cfg.detection
        assert detection is not None
        found = velocities.flatten(1, 2)
        if detection.scale != 1:
            found = F.interpolate(found, scale_factor=float(detection.scale), mode="bilinear", align_corners=False)
        return F.pad(found.unflatten(1, (-1, 2)), (0, 0, 0, 0, BOX_VALUES - 2, 0))


class _Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _conv(inputs: int, outputs: int, relu: bool = True) -> nn.Sequential:
    """Return a 3x3 convolution and a group norm, which needs no statistics of other samples, and a ReLU."""
    groups = _NORM_GROUPS if outputs % _NORM_GROUPS == 0 else 1
    layers: Sequence[nn.Module] = (
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(groups, outputs),
        *((nn.ReLU(inplace=True),) if relu else ()),
    )
    return nn.Sequential(*layers)
