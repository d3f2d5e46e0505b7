"""Stands in for the Driving SDK in the three shapes that it has had: STANDIN_SDK is 6.0.0, 7.x or 26.x.

6.0.0 has its operations in ``mx_driving.fused`` only. Later ones have them here, and the sub-package warns. 26.x takes
hold of a card when it is imported, fails without one, and redirects ``torch.cuda``.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import torch_npu

SDK = os.environ.get("STANDIN_SDK", "26.x")
if SDK not in ("6.0.0", "7.x", "26.x"):
    raise RuntimeError(f"STANDIN_SDK is {SDK!r}")
torch_npu.calls.append(("import mx_driving", SDK))

if SDK == "26.x":
    assert torch_npu._state["device"] is not None, "torch.npu.get_device_name(0): no card was chosen"
    importlib.import_module("torch_npu.contrib.transfer_to_npu")

if SDK != "6.0.0":
    from mx_driving.kernels import (  # noqa: F401
        modulated_deform_conv2d,
        multi_scale_deformable_attn,
        npu_add_relu,
        npu_max_pool2d,
    )

    def npu_multi_scale_deformable_attn_function(*args: Any) -> Any:
        warnings.warn("use multi_scale_deformable_attn", DeprecationWarning, stacklevel=2)
        return multi_scale_deformable_attn(*args)
