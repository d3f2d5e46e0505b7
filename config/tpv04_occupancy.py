"""Semantic occupancy, 256 channels, three planes of a 100x100x8 grid, attention on the ground plane: 62.8 M parameters.

command   bash test/train_8p.sh --py_config=config/tpv04_occupancy.py
hardware  8 devices, one sample each (24 GB suffice by the authors' README)
time      24 epochs of 3516 steps
number    not run by this project; the paper shows this task in pictures only (arXiv:2302.07817)
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone and, as the width is 256, the FPN

Differs from tpv_lidarseg_dim64 in the width and what follows from it (channels, heads), the planes, the attention (the
plane hw reads itself, at 4 points, in three layers), twice the sampling points on the images, and in that free space is
a class, 17, of voxels without points: all losses are of voxels.
"""

import dataclasses

from tpvformer.compat import load_config

_dim64 = load_config("tpv_lidarseg_dim64")
config = dataclasses.replace(
    _dim64,
    name="tpv04_occupancy",
    model=dataclasses.replace(
        _dim64.model,
        grid=dataclasses.replace(_dim64.model.grid, w=100, h=100, z=8),
        view_attn="hw",
        num_classes=18,
        dim=256,
        ffn_dim=512,
        decoder_dim=512,
        image_heads=8,
        plane_heads=8,
        position_dims=(128, 128),
        layers=("self_cross",) * 3,
        image_points=(8, 64, 64),
        plane_points=4,
    ),
    data=dataclasses.replace(_dim64.data, label_map="nuscenes-noIgnore", fill_label=17),
    loss=dataclasses.replace(_dim64.loss, lovasz_input="voxel"),
)
