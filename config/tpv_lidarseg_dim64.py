"""Lidar segmentation, 64 channels, three planes of a 200x200x16 grid: 49.1 M parameters. The benchmark configuration.

command   bash test/train_8p.sh --py_config=config/tpv_lidarseg_dim64.py
hardware  8 devices, one sample each (24 GB suffice by the authors' README)
time      24 epochs of 3516 steps
number    not run by this project. Quoted, point mIoU on nuScenes val and time of one step with 8 devices, from the
          README of Ascend/DrivingSDK model_examples/TPVFormer: GPU 67.98 %, 775 ms; Atlas 800T A2 68.66 %, 1195 ms
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone
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
    name="tpv_lidarseg_dim64",
    model=ModelConfig(
        grid=GridConfig(w=200, h=200, z=16, pc_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)),
        backbone=BackboneConfig(blocks=(3, 4, 23, 3), dcn_stages=(3, 4), frozen_stages=1, norm="frozen"),
        view_attn="cross_view",
        num_classes=17,
        dim=64,
        ffn_dim=128,
        decoder_dim=128,
        image_heads=4,
        plane_heads=4,
        position_dims=(24, 24, 16),
        layers=("self_cross",) * 3 + ("self",) * 2,
        pillar_anchors=(4, 32, 32),
        image_points=(4, 32, 32),
        plane_points=16,
        plane_anchors=16,
        plane_init_anchors=16,
        plane_init_mode=0,
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
