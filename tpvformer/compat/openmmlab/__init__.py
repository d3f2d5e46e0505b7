"""Registration with mmsegmentation 0.30 on mmcv 1.x: our model and operations under the names of configurations.

An import registers the classes below once; in a configuration,
``custom_imports = dict(imports=["tpvformer.compat.openmmlab"], allow_failed_imports=False)`` does it:

    TPVFormer in mmseg's SEGMENTORS                        segmentor.py; reads the reference's ``model`` dictionary
    DCNv2 in mmcv's CONV_LAYERS                            layers.py, in place of mmcv's, if that is registered
    MultiScaleDeformableAttention in mmcv's ATTENTION      layers.py, likewise

Parameter names are those of the replaced classes. mmseg has already imported ``mmcv.ops`` at that time, so no later
import replaces ours. Only this subpackage imports mmcv and mmseg, and no other module imports it.
"""

from __future__ import annotations

from mmcv.cnn.bricks.registry import ATTENTION, CONV_LAYERS  # ty: ignore[import-not-found]
from mmseg.models.builder import SEGMENTORS  # ty: ignore[import-not-found]

from tpvformer.compat.openmmlab.layers import ModulatedDeformConv2dPack, MultiScaleDeformableAttention
from tpvformer.compat.openmmlab.segmentor import TPVFormerSegmentor

__all__ = ["ModulatedDeformConv2dPack", "MultiScaleDeformableAttention", "TPVFormerSegmentor", "register"]


def register() -> None:
    """Register the three classes in place of others of the same names. A second call changes nothing."""
    for registry, name, cls in (
        (SEGMENTORS, "TPVFormer", TPVFormerSegmentor),
        (CONV_LAYERS, "DCNv2", ModulatedDeformConv2dPack),
        (ATTENTION, "MultiScaleDeformableAttention", MultiScaleDeformableAttention),
    ):
        registry.register_module(name=name, module=cls, force=True)


register()
