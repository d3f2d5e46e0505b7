"""Where 6.0.0 has its operations; from 7.0 on a shim that warns."""

import warnings

from mx_driving import SDK
from mx_driving.kernels import modulated_deform_conv2d, npu_add_relu, npu_max_pool2d  # noqa: F401
from mx_driving.kernels import multi_scale_deformable_attn as npu_multi_scale_deformable_attn_function  # noqa: F401

if SDK != "6.0.0":
    warnings.warn("mx_driving.fused is deprecated, use mx_driving.api", DeprecationWarning, stacklevel=2)
