"""Classify voxels from single cameras, as an additional training loss for the image network.

The classes of voxels are read from the finest feature map at the pixels of their centres (the perspective supervision
of BEVFormer v2, arXiv:2211.10439). A network with random initial weights then learns much faster.

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
    """Hold logits (B,N,K,M) of voxels in every camera, and visible (B,N,M): the voxel's centre is in the image."""

    logits: Tensor
    visible: Tensor


class ImageHead(nn.Module):
    """Classify the finest feature map with one linear layer."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.classifier = nn.Linear(cfg.dim, cfg.num_classes)

    def forward(
        self, features: Tensor, voxels: Tensor, pc_range: Tensor, lidar2img: Tensor, image_size: Tuple[int, int]
    ) -> ImageLogits:
        """Return the logits at voxels (B,M,3), x, y, z, from features (B,N,C,h,w) of the finest level.

        lidar2img (B,N,4,4), image size (H,W) in pixels.
        """
        b, n = features.shape[:2]
        cells = torch.tensor(self.cfg.grid.shape, device=voxels.device)
        parts = [
            project(centres[:, None], pc_range, matrices[None], image_size)
            for centres, matrices in zip((voxels + 0.5) / cells, lidar2img)
        ]
        places = torch.cat([part.anchors for part in parts]).flatten(0, 1)  # (BN,M,1,2)
        # positions outside are not used, but must be finite
        sampled = F.grid_sample(features.flatten(0, 1), places.clamp(-1, 2) * 2 - 1, align_corners=False)
        logits = self.classifier(sampled[..., 0].transpose(1, 2)).transpose(1, 2)
        return ImageLogits(logits.unflatten(0, (b, n)), torch.cat([part.query_visible for part in parts]))
