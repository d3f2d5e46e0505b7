"""3-D detection beside lidar segmentation, on the planes of tpv_lidarseg_dim64.

command   bash test/train_8p.sh --py_config=config/tpv_detection.py
          boxes alone, on nuScenes without lidarseg: add --set loss.segmentation=0
          the head alone on finished weights: add --set train.freeze=[backbone,neck,encoder,aggregator] and
          --set train.load_from=WEIGHTS
hardware  8 devices, one sample each
time      24 epochs of 3516 steps
number    not run; no TPV model with boxes is published. Quoted for other camera-only models on nuScenes' validation
          set: BEVFormer-base 51.7 NDS, 41.6 mAP; PanoOcc-base 49.7 NDS, 41.1 mAP beside 71.2 mIoU; BEVDet-R50 37.7 and
          29.9 (their READMEs)
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone

Differs from tpv_lidarseg_dim64 in the head of 3-D boxes, which reads a map of 0.5 m cells, and in its losses. The info
files must hold boxes, or nuScenes' tables must be there (docs/detection.md).
"""

from dataclasses import replace

from tpvformer.compat import load_config
from tpvformer.config import DetectionConfig

_dim64 = load_config("tpv_lidarseg_dim64")
config = replace(
    _dim64,
    name="tpv_detection",
    model=replace(_dim64.model, detection=DetectionConfig()),
    loss=replace(_dim64.loss, detection=1.0),
)
