"""Semantic occupancy, 256 channels, three planes of a 100x100x8 grid, attention on the ground plane: 62.8 M parameters.

command   bash test/train_8p.sh --py_config=config/tpv04_occupancy.py
hardware  8 devices, one sample each (24 GB suffice by the authors' README)
time      24 epochs of 3516 steps
number    not run by this project; the paper shows this task in pictures only (arXiv:2302.07817)
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone and, as the width is 256, the FPN
"""

from tpvformer.config import (
    BackboneConfig,
    Config,
    DataConfig,
    GridConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

config = Config(
    name="tpv04_occupancy",
    model=ModelConfig(
        grid=GridConfig(w=100, h=100, z=8, pc_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)),
        backbone=BackboneConfig(blocks=(3, 4, 23, 3), dcn_stages=(3, 4), frozen_stages=1, norm="frozen"),
        view_attn="hw",
        num_classes=18,
        dim=256,
        ffn_dim=512,
        decoder_dim=512,
        image_heads=8,
        plane_heads=8,
        position_dims=(128, 128),
        layers=("self_cross",) * 3,
        pillar_anchors=(4, 32, 32),
        image_points=(8, 64, 64),
        plane_points=4,
    ),
    data=DataConfig(
        root="data/nuscenes",
        version="v1.0-trainval",
        train_infos="data/nuscenes_infos_train.pkl",
        val_infos="data/nuscenes_infos_val.pkl",
        label_map="nuscenes-noIgnore",
        ignore_label=0,
        fill_label=17,
    ),
    loss=LossConfig(lovasz_input="voxel", ce_input="voxel"),
    optim=OptimConfig(lr=2e-4, weight_decay=0.01, backbone_lr_mult=0.1, clip_norm=35.0),
    train=TrainConfig(epochs=24, print_every=50, load_from="ckpts/r101_dcn_fcos3d_pretrain.pth"),
)
