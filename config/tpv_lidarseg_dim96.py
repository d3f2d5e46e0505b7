"""Lidar segmentation, 96 channels, three planes of a 150x150x16 grid, no self-only layers: 50.9 M parameters.

command   bash test/train_8p.sh --py_config=config/tpv_lidarseg_dim96.py
hardware  8 devices, one sample each
time      24 epochs of 3516 steps
number    not run by this project; no result of this configuration is published
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone

Differences from tpv_lidarseg_dim64: the width and what follows from it (channels, heads), the planes, the layers, three
quarters of the anchors and one and a half times the sampling points on the images. The initial offsets are those for 8
anchors although the attention has 16, as in the published code.
"""

import dataclasses

from tpvformer.compat import load_config

_dim64 = load_config("tpv_lidarseg_dim64")
config = dataclasses.replace(
    _dim64,
    name="tpv_lidarseg_dim96",
    model=dataclasses.replace(
        _dim64.model,
        grid=dataclasses.replace(_dim64.model.grid, w=150, h=150),
        dim=96,
        ffn_dim=192,
        decoder_dim=192,
        image_heads=6,
        plane_heads=6,
        position_dims=(36, 36, 24),
        layers=("self_cross",) * 3,
        pillar_anchors=(3, 24, 24),
        image_points=(6, 48, 48),
        plane_init_anchors=8,
        plane_init_mode=1,
    ),
)
