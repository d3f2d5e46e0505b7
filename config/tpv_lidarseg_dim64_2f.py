"""Lidar segmentation on two frames: tpv_lidarseg_dim64 whose queries also read the planes of the frame before.

command   bash test/train_8p.sh --py_config=config/tpv_lidarseg_dim64_2f.py
hardware  8 devices, one sample each
time      24 epochs of 3516 steps
number    not run. Quoted for another camera-only model, one frame and four: PanoOcc 66.7 and 68.2 mIoU (its README)
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone

Differs from tpv_lidarseg_dim64 in model.history alone (docs/time.md). The info files must hold times and poses.
"""

from dataclasses import replace

from tpvformer.compat import load_config
from tpvformer.config import HistoryConfig

_dim64 = load_config("tpv_lidarseg_dim64")
config = replace(_dim64, name="tpv_lidarseg_dim64_2f", model=replace(_dim64.model, history=HistoryConfig()))
