"""Lidar segmentation with ResNet-50 on images of 800x450, planes of 100x100x8, 128 channels: after TPVFormer-Small.

Reconstructed from the paper's text (arXiv:2302.07817), which names backbone, image size, planes and channels; no file
of the authors is known. All else is tpv_lidarseg's, but without deformable convolutions, because ResNet-50 comes from
ImageNet.

command   bash test/train_8p.sh --py_config=config/tpv_small.py
hardware  not known
time      not run
number    not run
weights   ckpts/resnet50_caffe.pth: a ResNet-50 with its strides in the first 1x1 convolutions and a detector's names
          (with the prefix backbone. or img_backbone.); it initialises the image backbone
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
    name="tpv_small",
    model=ModelConfig(
        grid=GridConfig(w=100, h=100, z=8, pc_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)),
        backbone=BackboneConfig(blocks=(3, 4, 6, 3), dcn_stages=(), frozen_stages=1, norm="frozen"),
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
        image_scale=0.5,
    ),
    loss=LossConfig(lovasz_input="points", ce_input="voxel"),
    optim=OptimConfig(lr=2e-4, weight_decay=0.01, backbone_lr_mult=0.1, clip_norm=35.0),
    train=TrainConfig(epochs=24, print_every=50, load_from="ckpts/resnet50_caffe.pth"),
)
