"""Lidar segmentation, 128 channels, three planes of a 200x200x16 grid: 61.9 M parameters. The published model.

command   bash test/train_8p.sh --py_config=config/tpv_lidarseg.py
hardware  8 devices of 40 GB, one sample each
time      24 epochs of 3516 steps; quoted: about 300 hours of one A100 (arXiv:2302.07817 and the authors' README)
number    not run by this project. Quoted, point mIoU on nuScenes val: 68.9 % (arXiv:2302.07817, TPVFormer-Base); 68.9 %
          and 32 GB for mmdetection3d's port (README of its projects/TPVFormer)
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone

Differs from tpv_lidarseg_dim64 in the width and what follows from it (channels, heads), and in twice the sampling
points on the images and on the planes.
"""

import dataclasses

from tpvformer.compat import load_config

_dim64 = load_config("tpv_lidarseg_dim64")
config = dataclasses.replace(
    _dim64,
    name="tpv_lidarseg",
    model=dataclasses.replace(
        _dim64.model,
        dim=128,
        ffn_dim=256,
        decoder_dim=256,
        image_heads=8,
        plane_heads=8,
        position_dims=(48, 48, 32),
        image_points=(8, 64, 64),
        plane_points=32,
    ),
)
