"""Lidar segmentation, 96 channels, three planes of a 150x150x16 grid, no self-only layers: 50.9 M parameters.

command   bash test/train_8p.sh --py_config=config/tpv_lidarseg_dim96.py
hardware  8 devices, one sample each
time      24 epochs of 3516 steps
number    not run by this project; no result of this configuration is published
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone

The initial offsets are those for 8 anchors although the attention has 16, as in the published code.
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
    name="tpv_lidarseg_dim96",
    model=ModelConfig(
        grid=GridConfig(w=150, h=150, z=16, pc_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)),
        backbone=BackboneConfig(blocks=(3, 4, 23, 3), dcn_stages=(3, 4), frozen_stages=1, norm="frozen"),
        view_attn="cross_view",
        num_classes=17,
        dim=96,
        ffn_dim=192,
        decoder_dim=192,
        image_heads=6,
        plane_heads=6,
        position_dims=(36, 36, 24),
        layers=("self_cross",) * 3,
        pillar_anchors=(3, 24, 24),
        image_points=(6, 48, 48),
        plane_points=16,
        plane_anchors=16,
        plane_init_anchors=8,
        plane_init_mode=1,
    ),
    data=DataConfig(
        root="data/nuscenes",
        version="v1.0-trainval",
        train_infos="data/nuscenes_infos_train.pkl",
        val_infos="data/nuscenes_infos_val.pkl",
        label_map="nuscenes",
        ignore_label=0,
        fill_label=0,
    ),
    loss=LossConfig(lovasz_input="points", ce_input="voxel"),
    optim=OptimConfig(lr=2e-4, weight_decay=0.01, backbone_lr_mult=0.1, clip_norm=35.0),
    train=TrainConfig(epochs=24, print_every=50, load_from="ckpts/r101_dcn_fcos3d_pretrain.pth"),
)
