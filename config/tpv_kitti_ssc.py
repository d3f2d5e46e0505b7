"""Semantic scene completion on SemanticKITTI from one camera: 96 channels, three planes of a 128x128x16 grid read at
256x256x32, 20 classes.

command   bash test/train_8p.sh --py_config=config/tpv_kitti_ssc.py
          (KITTI odometry's colour images and calibration and SemanticKITTI's voxels in data/semantickitti/dataset)
hardware  4 devices, one sample each, in the reference
time      30 epochs; 3834 training frames, 815 of validation
number    not run by this project. Quoted for the reference's variant on the hidden test set: SC IoU 34.25, SSC mIoU
          11.26 (arXiv:2302.07817)
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone

From tpv_lidarseg_dim64 it has the backbone's settings, the attention across planes, the layers and the optimiser.

Differences from the reference's variant: the image network is ResNet-101 with an FPN at strides 8 to 64 instead of
EfficientNet-B7 with a U-Net decoder at strides 1 to 8; images are BGR minus the mean; axes are w = x and h = y as in
all models here, so none of its checkpoints can be read; P2 keeps its last column; the frustum loss is left out. Class
weights are 1 / log(voxels of the class in the training sequences) with MonoScene's counts (arXiv:2112.00726), which
were not recomputed.
"""

import dataclasses
import math

from tpvformer.compat import load_config
from tpvformer.config import DataConfig, GridConfig, LossConfig

VOXELS = (
    (5.418e9, 1.578e7, 1.251e5, 1.188e5, 6.468e5, 8.220e5, 2.630e5, 2.837e5, 2.047e5)  # empty, car .. motorcyclist
    + (6.169e7, 4.503e6, 4.488e7, 2.270e6, 5.684e7, 1.572e7)  # road .. fence
    + (1.584e8, 2.062e6, 3.697e7, 1.152e6, 3.341e5)  # vegetation .. traffic-sign
)

_dim64 = load_config("tpv_lidarseg_dim64")
config = dataclasses.replace(
    _dim64,
    name="tpv_kitti_ssc",
    model=dataclasses.replace(
        _dim64.model,
        grid=GridConfig(
            w=128,
            h=128,
            z=16,
            scale_w=2,
            scale_h=2,
            scale_z=2,
            pc_range=(0.0, -25.6, -2.0, 51.2, 25.6, 4.4),
        ),
        num_classes=20,
        num_cams=1,
        dim=96,
        ffn_dim=192,
        decoder_dim=192,
        image_heads=6,
        plane_heads=6,
        position_dims=(36, 36, 24),
        image_points=(8, 64, 64),
        plane_points=32,
        plane_init_mode=1,
    ),
    data=DataConfig(
        format="semantickitti",
        root="data/semantickitti/dataset",
        version="",
        train_infos="00 01 02 03 04 05 06 07 09 10",
        val_infos="08",
        test_infos="11 12 13 14 15 16 17 18 19 20 21",
        label_map="semantickitti",
        ignore_label=255,  # voxels never observed, or occupied by what has no class
        fill_label=0,
        occupancy="semantickitti",
        occupancy_root="data/semantickitti/dataset",
        grid_mask=False,
        mirror=True,
    ),
    loss=LossConfig(
        lovasz_input="none", ce_input="voxel", class_weights=tuple(1 / math.log(n) for n in VOXELS), affinity=True
    ),
    train=dataclasses.replace(_dim64.train, epochs=30),
)
