"""Lidar segmentation with ResNet-50 on images of 800x450, planes of 100x100x8, 128 channels: after TPVFormer-Small.

Reconstructed from the paper's text (arXiv:2302.07817), which names backbone, image size, planes and channels; no file
of the authors is known. All else is tpv_lidarseg's, but without deformable convolutions, because ResNet-50 comes from
ImageNet.

command   bash test/train_8p.sh --py_config=config/tpv_small.py
hardware  not known
time      not run
number    not run
weights   ckpts/resnet50_caffe.pth: a ResNet-50 with its strides in the first 1x1 convolutions and a detector's names
          (with the prefix backbone. or img_backbone.); it initialises the image backbone
"""

import dataclasses

from tpvformer.compat import load_config

_base = load_config("tpv_lidarseg")
config = dataclasses.replace(
    _base,
    name="tpv_small",
    model=dataclasses.replace(
        _base.model,
        grid=dataclasses.replace(_base.model.grid, w=100, h=100, z=8),
        backbone=dataclasses.replace(_base.model.backbone, blocks=(3, 4, 6, 3), dcn_stages=()),
    ),
    data=dataclasses.replace(_base.data, image_scale=0.5),
    train=dataclasses.replace(_base.train, load_from="ckpts/resnet50_caffe.pth"),
)
