"""Predict 3D semantics from car cameras through three planes (Huang et al., CVPR 2023, arXiv:2302.07817)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpvformer.api import TPVFormer, decode_boxes, list_models

__all__ = ["TPVFormer", "decode_boxes", "list_models"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the names of ``__all__`` when they are first used: the command's help needs no PyTorch."""
    if name in __all__:
        from tpvformer.runtime.cores import set_up_threads

        set_up_threads()  # before PyTorch is loaded, unless the caller has
        from tpvformer import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
