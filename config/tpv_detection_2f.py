"""3-D detection on two frames: tpv_detection whose queries also read the planes of the frame before.

command   bash test/train_8p.sh --py_config=config/tpv_detection_2f.py
hardware  8 devices, one sample each
time      24 epochs of 3516 steps
number    not run. Quoted for other camera-only models: PanoOcc with one frame and four 34.8 and 42.1 NDS; BEVFormer
          with one to five frames 44.8, 49.0, 51.0, 51.7, 51.7 NDS (their papers and READMEs)
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone

Differs from tpv_detection in model.history alone (docs/time.md). The info files must hold times, poses and boxes.
"""

from dataclasses import replace

from tpvformer.compat import load_config
from tpvformer.config import HistoryConfig

_detection = load_config("tpv_detection")
config = replace(_detection, name="tpv_detection_2f", model=replace(_detection.model, history=HistoryConfig()))
