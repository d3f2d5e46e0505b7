"""Small models of both families and of one plane alone, and inputs for them."""

from __future__ import annotations

import dataclasses

import torch
from rig_tools import ring_of_cameras
from torch import Tensor

from tpvformer.config import BackboneConfig, GridConfig, ModelConfig
from tpvformer.model import TPVFormer

SIZE = (64, 96)
CROSS = ModelConfig(
    grid=GridConfig(w=18, h=14, z=5), backbone=BackboneConfig(blocks=(1, 1, 1, 1), base_width=16, bn3_init=0.2),
    dim=16, position_dims=(6, 6, 4), ffn_dim=32, decoder_dim=32, image_heads=2, plane_heads=4,
    layers=("self_cross", "self"), pillar_anchors=(2, 4, 4), image_points=(4, 8, 8), plane_points=8, plane_anchors=4,
    plane_init_anchors=4,
)  # fmt: skip
HW = dataclasses.replace(
    CROSS, view_attn="hw", position_dims=(8, 8), plane_points=4, num_classes=18, layers=("self_cross",)
)
BEV = dataclasses.replace(HW, planes=("hw",), layers=("self_cross", "self"))


def build(cfg: ModelConfig) -> TPVFormer:
    """A model whose attention really moves: fresh offsets and weights are constants."""
    torch.manual_seed(0)
    model = TPVFormer(cfg).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "offsets" in name or "logits" in name or "conv_offset" in name:
                p.add_(torch.randn_like(p) * 0.1)
    return model


def inputs(batch: int, cameras: int = 6) -> "tuple[Tensor, Tensor, Tensor]":
    generator = torch.Generator().manual_seed(batch)
    images = torch.randn(batch, cameras, 3, *SIZE, generator=generator) * 40
    rigs = torch.stack([ring_of_cameras(*SIZE, turn=0.15 * i)[:cameras] for i in range(batch)])
    return images, rigs, torch.rand(batch, 9, 3, generator=generator) * torch.tensor([17.0, 13.0, 4.0])
