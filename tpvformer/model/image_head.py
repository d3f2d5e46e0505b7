"""What one camera's features say by themselves: in training alone, a direct lesson for the image network.

The classes of voxels are also read from the finest map at the pixels where their centres project (the perspective
supervision of BEVFormer v2, arXiv:2211.10439). A network that starts from random weights learns to see much sooner.
Legend: B batch, N cameras, C channels, K classes, M voxels.
"""

from __future__ import annotations

from typing import NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpvformer.config import ModelConfig
from tpvformer.model.projection import project


class ImageLogits(NamedTuple):
    """logits (B,N,K,M) of voxels in every camera, visible (B,N,M): whether the centre of the voxel is in its image."""

    logits: Tensor
    visible: Tensor


class ImageHead(nn.Module):
    """One linear layer on the finest feature map."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.classifier = nn.Linear(cfg.dim, cfg.num_classes)

    def forward(
        self, features: Tensor, voxels: Tensor, pc_range: Tensor, lidar2img: Tensor, image_size: Tuple[int, int]
    ) -> ImageLogits:
        """features (B,N,C,h,w) of the finest level, voxels (B,M,3) x, y, z, lidar2img (B,N,4,4), image (H,W) pixels."""
        b, n = features.shape[:2]
        cells = torch.tensor(self.cfg.grid.shape, device=voxels.device)
        parts = [
            project(centres[:, None], pc_range, matrices[None], image_size)
            for centres, matrices in zip((voxels + 0.5) / cells, lidar2img)
        ]
        places = torch.cat([part.anchors for part in parts]).flatten(0, 1)  # (BN,M,1,2)
        # what lies outside counts nowhere, but its position must be a number
        sampled = F.grid_sample(features.flatten(0, 1), places.clamp(-1, 2) * 2 - 1, align_corners=False)
        logits = self.classifier(sampled[..., 0].transpose(1, 2)).transpose(1, 2)
        return ImageLogits(logits.unflatten(0, (b, n)), torch.cat([part.query_visible for part in parts]))
