from .info import get_compiler_version, get_compiling_cuda_version
from .modulated_deform_conv import ModulatedDeformConv2dFunction, ModulatedDeformConv2dPack, modulated_deform_conv2d
from .multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from .nms import nms

__all__ = [
    "ModulatedDeformConv2dFunction",
    "ModulatedDeformConv2dPack",
    "MultiScaleDeformableAttnFunction",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "modulated_deform_conv2d",
    "nms",
]
