from torch import nn

from mmcv.utils import Registry

CONV_LAYERS = Registry("conv layer")
CONV_LAYERS.register_module("Conv2d", module=nn.Conv2d)


def build_conv_layer(cfg, *args, **kwargs):
    given = dict(cfg or {"type": "Conv2d"})
    return CONV_LAYERS.module_dict[given.pop("type")](*args, **given, **kwargs)
