"""Lidar segmentation from a bird's-eye view: tpv_lidarseg_dim64 with the plane hw alone, as a baseline.

Not from the paper: a baseline of ours. Channels, layers, grid, image network, losses and schedule are
tpv_lidarseg_dim64's. The plane attends to itself as in the occupancy family, at 2 x 16 points instead of 16 on each of
three planes; each height has a learned embedding (docs/architecture.md, "The plane from above alone").

command   bash test/train_8p.sh --py_config=config/bev_baseline.py
hardware  8 devices, one sample each
time      24 epochs of 3516 steps
number    not run
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone
"""

import dataclasses

from tpvformer.compat import load_config

_tpv = load_config("config/tpv_lidarseg_dim64.py")
config = dataclasses.replace(
    _tpv,
    name="bev_baseline",
    model=dataclasses.replace(_tpv.model, planes=("hw",), view_attn="hw", position_dims=(32, 32)),
)
