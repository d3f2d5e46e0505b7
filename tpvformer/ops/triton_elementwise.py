"""Compute what follows a convolution in one pass of Triton: bias, shortcut, ReLU.

cuDNN adds a bias in a pass over the result, the shortcut is another one and ReLU a third. Channels-last: the channel of
element i is i mod C. Sums are float32, rounded once.

Tested in Triton's interpreter and compiled for sm_90; never run on hardware.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 1024, 4  # 8 values a thread: one 16-byte access in bf16, two in fp32


def supports(x: Tensor) -> bool:
    """Return whether this kernel supports x of any shape."""
    return x.dtype in (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _bias_relu(
    x, bias, shortcut, out, total, C: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < total
    value = tl.load(x + at, mask=live, other=0.0).to(tl.float32) + tl.load(bias + at % C, mask=live, other=0.0)
    if ADDS:
        value += tl.load(shortcut + at, mask=live, other=0.0).to(tl.float32)
    value = tl.where(value < 0, 0.0, value)  # NaN stays NaN
    tl.store(out + at, value.to(out.dtype.element_ty), mask=live)


def _arguments(x: Tensor, adds: bool) -> Tuple[Any, Any, Dict[str, Any]]:
    """Return the launch grid, and the kernel's arguments after its tensors, by position and by name."""
    options = {"num_warps": WARPS, "num_stages": 1, "enable_fp_fusion": True}
    named = {"C": x.shape[-1], "ADDS": adds, "BLOCK": BLOCK, **options}
    return (-(-x.numel() // BLOCK),), (x.numel(),), named


def bias_relu(x: Tensor, bias: Tensor, shortcut: Optional[Tensor]) -> Tensor:
    """Return relu(x + bias + shortcut), contiguous, in the type of x: x and shortcut (...,C), bias (C,) float32."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    grid, positional, named = _arguments(x, shortcut is not None)
    with torch.cuda.device_of(x):
        _bias_relu[grid](x, bias, x if shortcut is None else shortcut.contiguous(), out, *positional, **named)
    return out
