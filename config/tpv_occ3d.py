"""Dense occupancy on Occ3D-nuScenes: 256 channels, three planes of a 100x100x8 grid in the ego frame, read at
200x200x16: 62.8 M parameters.

command   bash test/train_8p.sh --py_config=config/tpv_occ3d.py
          (labels of github.com/Tsinghua-MARS-Lab/Occ3D unpacked into data/occ3d/gts, nuScenes into data/nuscenes)
hardware  8 devices, one sample each
time      24 epochs of 3516 steps
number    not run by this project. Quoted for other configurations of TPVFormer, mIoU of 17 classes within the camera
          mask: 27.83 (arXiv:2304.14365), 39.3 for a TPVFormer lift trained within the camera mask (COTR,
          arXiv:2312.01919). Training within the mask changes the mIoU by about 10, so compare only equal settings.
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone and, as the width is 256, the FPN

The model is tpv04_occupancy's, over the labels' range; the configurations behind the quoted numbers are not published.
With ``data.occupancy_mask`` "camera" the loss leaves unobserved voxels out; with "" they count as free.
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
    name="tpv_occ3d",
    model=ModelConfig(
        grid=GridConfig(
            w=100,
            h=100,
            z=8,
            scale_w=2,
            scale_h=2,
            scale_z=2,
            pc_range=(-40.0, -40.0, -1.0, 40.0, 40.0, 5.4),
            frame="ego",
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
        label_map="occ3d",
        ignore_label=255,  # none: class 0, "others", is taught and evaluated
        fill_label=17,
        occupancy="occ3d",
        occupancy_root="data/occ3d/gts",
        occupancy_mask="camera",
    ),
    loss=LossConfig(lovasz_input="voxel", ce_input="voxel"),
    optim=OptimConfig(lr=2e-4, weight_decay=0.01, backbone_lr_mult=0.1, clip_norm=35.0),
    train=TrainConfig(epochs=24, print_every=50, load_from="ckpts/r101_dcn_fcos3d_pretrain.pth"),
)
