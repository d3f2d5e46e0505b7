"""Written into an mmcv 1.7.2 without compiled operations by ``tpvformer overlay apply``; taken out by its ``revert``.

Multi-scale deformable attention and DCNv2 are tpvformer's, on every device; other names raise where they are called.
"""

SERVED_BY = "tpvformer"  # known to tpvformer.compat.mmcv_ext, which the next lines import

from tpvformer.compat.mmcv_ext.extension import *  # noqa: E402, F403
from tpvformer.compat.mmcv_ext.extension import __getattr__  # noqa: E402, F401
