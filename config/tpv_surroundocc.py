"""Dense occupancy on SurroundOcc's labels: 256 channels, three planes of a 100x100x8 grid read at 200x200x16: 62.8 M
parameters.

command   bash test/train_8p.sh --py_config=config/tpv_surroundocc.py
          (labels of github.com/weiyithu/SurroundOcc unpacked into data/nuscenes_occ, nuScenes into data/nuscenes)
hardware  8 devices, one sample each
time      24 epochs of 3516 steps
number    not run by this project. Quoted for another configuration of TPVFormer trained on these labels: SC IoU 30.86,
          SSC mIoU 17.10; trained on lidar labels: 11.51 and 11.66 (arXiv:2303.09551)
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone and, as the width is 256, the FPN

The model is tpv04_occupancy's, over the labels' range; the configuration behind the quoted numbers is not published.
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
    name="tpv_surroundocc",
    model=ModelConfig(
        grid=GridConfig(
            w=100, h=100, z=8, scale_w=2, scale_h=2, scale_z=2, pc_range=(-50.0, -50.0, -5.0, 50.0, 50.0, 3.0)
        ),
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
        ignore_label=0,  # noise; what the label files do not list is empty, 17
        fill_label=17,
        occupancy="surroundocc",
        occupancy_root="data/nuscenes_occ",
    ),
    loss=LossConfig(lovasz_input="voxel", ce_input="voxel"),
    optim=OptimConfig(lr=2e-4, weight_decay=0.01, backbone_lr_mult=0.1, clip_norm=35.0),
    train=TrainConfig(epochs=24, print_every=50, load_from="ckpts/r101_dcn_fcos3d_pretrain.pth"),
)
