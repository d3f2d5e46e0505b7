"""Lidar segmentation, 128 channels, three planes of a 200x200x16 grid: 61.9 M parameters. The published model.

command   bash test/train_8p.sh --py_config=config/tpv_lidarseg.py
hardware  8 devices of 40 GB, one sample each
time      24 epochs of 3516 steps; quoted: about 300 hours of one A100 (arXiv:2302.07817 and the authors' README)
number    not run by this project. Quoted, point mIoU on nuScenes val: 68.9 % (arXiv:2302.07817, TPVFormer-Base); 68.9 %
          and 32 GB for mmdetection3d's port (README of its projects/TPVFormer)
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
    name="tpv_lidarseg",
    model=ModelConfig(
        grid=GridConfig(w=200, h=200, z=16, pc_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)),
        backbone=BackboneConfig(blocks=(3, 4, 23, 3), dcn_stages=(3, 4), frozen_stages=1, norm="frozen"),
        view_attn="cross_view",
        num_classes=17,
        dim=128,
        ffn_dim=256,
        decoder_dim=256,
        image_heads=8,
        plane_heads=8,
        position_dims=(48, 48, 32),
        layers=("self_cross",) * 3 + ("self",) * 2,
        pillar_anchors=(4, 32, 32),
        image_points=(8, 64, 64),
        plane_points=32,
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
