"""The content of the stand-in for ``mmcv._ext``: every name that mmcv's files look up, and what is served of it."""

from __future__ import annotations

from typing import Any, Callable, NoReturn

from tpvformer import __version__
from tpvformer.compat.mmcv_ext import operations
from tpvformer.compat.mmcv_ext.operations import (
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from tpvformer.errors import OpsError

__all__ = [
    "get_compiler_version",
    "get_compiling_cuda_version",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "operations",
]

SERVED_BY = "tpvformer"  # the mark of this module, and of the file that overlay writes


def get_compiler_version() -> str:
    """Return what stands in a report of the environment where mmcv names its compiler."""
    return f"none (tpvformer {__version__} serves the operations)"


def get_compiling_cuda_version() -> str:
    """Return what mmcv itself returns where it was not compiled for a card."""
    return "not available"


def __getattr__(name: str) -> Callable[..., Any]:
    """Return a function for any other name: mmcv's files look all of them up, and call them only where used."""
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise OpsError(
            f"mmcv._ext.{name} is not there: tpvformer stands in for mmcv's compiled operations in this Python, and "
            "serves multi-scale deformable attention and DCNv2 alone; avoid the operation, or compile mmcv-full"
        )

    missing.__name__ = name
    return missing
