from mmcv.utils import Registry

SEGMENTORS = Registry("segmentor")


def build_segmentor(cfg, train_cfg=None, test_cfg=None):
    return SEGMENTORS.build(cfg, train_cfg=train_cfg, test_cfg=test_cfg)
