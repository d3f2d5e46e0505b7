"""A stand-in for mmcv 1.x's compiled module ``mmcv._ext``, computed by ``tpvformer.ops`` on every device.

``import tpvformer.compat.mmcv_ext``, before or after mmcv is imported, installs it in this process:

    mmcv._ext                                  extension.py; attention and deformable convolution, operations.py
    multi_scale_deformable_attn_pytorch        of mmcv.ops.multi_scale_deform_attn: the same attention

``tpvformer overlay apply`` writes a file ``_ext.py`` into an mmcv without compiled operations that does this import.
Nothing here imports mmcv.
"""

from __future__ import annotations

from tpvformer.compat.mmcv_ext.finder import install

__all__ = ["install"]

install()
