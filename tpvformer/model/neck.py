"""Define a feature pyramid (Lin et al., arXiv:1612.03144) with extra levels computed from the last output."""

from __future__ import annotations

from typing import List, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """Map features at strides 8, 16, 32 to ``num_levels`` maps (M,C,h_l,w_l), at strides 8, 16, 32, 64, ..."""

    def __init__(self, in_channels: Sequence[int], dim: int, num_levels: int) -> None:
        super().__init__()
        extra = num_levels - len(in_channels)
        self.lateral = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in in_channels)
        self.output = nn.ModuleList(
            [nn.Conv2d(dim, dim, 3, padding=1) for _ in in_channels]
            + [nn.Conv2d(dim, dim, 3, stride=2, padding=1) for _ in range(extra)]
        )
        for conv in (*self.lateral, *self.output):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> List[Tensor]:
        maps = [conv(x) for conv, x in zip(self.lateral, features)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[2:], mode="nearest")
        outputs = [conv(x) for conv, x in zip(self.output, maps)]
        for conv in self.output[len(maps) :]:
            outputs.append(conv(outputs[-1]))
        return outputs
