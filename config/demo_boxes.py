"""The demonstration with 3-D boxes: a head for boxes learns beside the classes of points, from the demo's weights.

command   tpvformer synth --out data/demo_boxes --scenes 560 --frames 2 --size 224x128 --seed 1
          bash test/train_1p.sh --py_config=config/demo_boxes.py
hardware  2 cores of an Intel Xeon (AVX-512, AMX), on a shared host
time      27 s for the data, 15 min 44 s for the launcher in bf16 (train.precision=auto); steps took 0.26 s at first and
          0.37 s at the end, as the host was busier
number    on 114 frames of 57 unseen streets, bf16: 37.5 % mAP, 37.5 % NDS, AP of car 41.4 %, 79.5 % point mIoU. In
          fp32, two seeds, with controls: 37.7 and 38.8 % mAP, 37.3 and 38.1 % NDS, 81.0 % point mIoU
          (docs/detection.md)

Differs from config/demo.py in the head, whose map has cells of half a metre, in its start from the demo's weights, in a
lower learning rate and in its data: streets of two frames, because one frame alone tells no velocity.
"""

from dataclasses import replace

from tpvformer.compat import load_config
from tpvformer.config import DetectionConfig

_demo = load_config("config/demo.py")
_data = "data/demo_boxes"
config = replace(
    _demo,
    name="demo_boxes",
    model=replace(_demo.model, detection=DetectionConfig(scale=2, channels=32, group_channels=16, min_score=0.05)),
    data=replace(
        _demo.data,
        root=_data,
        train_infos=f"{_data}/nuscenes_infos_train.pkl",
        val_infos=f"{_data}/nuscenes_infos_val.pkl",
    ),
    loss=replace(_demo.loss, detection=1.0),
    optim=replace(_demo.optim, lr=3e-3),
    train=replace(_demo.train, epochs=3, load_from="demo"),
)
