"""nuScenes-mini with tpv_small: lidar segmentation on small images, the smallest of these configurations.

command   tpvformer data infos --root data/nuscenes --version v1.0-mini --splits mini_train mini_val --out data
          tpvformer train --py-config config/mini_small.py
hardware  one device
time      24 epochs of 40 steps, each of 8 frames (train.accumulate); 323 key frames to train on, 81 of validation
number    not run by this project; none is published. 16 classes on two scenes say little: expect a loss that falls
weights   ckpts/resnet50_caffe.pth initialises the image backbone
"""

import dataclasses

from tpvformer.compat import load_config

_full = load_config("config/tpv_small.py")
config = dataclasses.replace(
    _full,
    name="mini_small",
    data=dataclasses.replace(
        _full.data,
        version="v1.0-mini",
        train_infos="data/nuscenes_infos_mini_train.pkl",
        val_infos="data/nuscenes_infos_mini_val.pkl",
    ),
    optim=dataclasses.replace(_full.optim, warmup_steps=100),
    train=dataclasses.replace(_full.train, accumulate=8, print_every=5),
)
