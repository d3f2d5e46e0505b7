"""For mmsegmentation 0.30 on mmcv 1.x: our model and operations under the names that configurations use.

``custom_imports = dict(imports=["tpvformer.compat.openmmlab"], allow_failed_imports=False)`` in a configuration
registers, and an import does it once:

    TPVFormer in mmseg's SEGMENTORS                        segmentor.py; reads the reference's ``model`` dictionary
    DCNv2 in mmcv's CONV_LAYERS                            layers.py, in place of mmcv's, if that is registered
    MultiScaleDeformableAttention in mmcv's ATTENTION      layers.py, likewise

Parameter names are those of the classes replaced. mmseg has imported ``mmcv.ops`` by the time we register, so nothing
comes over ours later. This is the one place of the package that imports mmcv and mmseg; nothing else imports it.
"""

from __future__ import annotations

from mmcv.cnn.bricks.registry import ATTENTION, CONV_LAYERS  # ty: ignore[import-not-found]
from mmseg.models.builder import SEGMENTORS  # ty: ignore[import-not-found]

from tpvformer.compat.openmmlab.layers import ModulatedDeformConv2dPack, MultiScaleDeformableAttention
from tpvformer.compat.openmmlab.segmentor import TPVFormerSegmentor

__all__ = ["ModulatedDeformConv2dPack", "MultiScaleDeformableAttention", "TPVFormerSegmentor", "register"]


def register() -> None:
    """Enter the three classes, over others of the same name; again is harmless."""
    for registry, name, cls in (
        (SEGMENTORS, "TPVFormer", TPVFormerSegmentor),
        (CONV_LAYERS, "DCNv2", ModulatedDeformConv2dPack),
        (ATTENTION, "MultiScaleDeformableAttention", MultiScaleDeformableAttention),
    ):
        registry.register_module(name=name, module=cls, force=True)


register()
