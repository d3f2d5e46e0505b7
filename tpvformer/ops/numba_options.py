"""What all Numba kernels share: how they are compiled, and how tensors become their arguments.

Kernels are compiled once a width and cached on disk.
"""

from __future__ import annotations

import threading
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

from .numba_simd import FAST_MATH

INLINED: Any = {"cache": True, "fastmath": set(FAST_MATH), "error_model": "numpy"}
PARALLEL: Any = {"parallel": True, **INLINED}
_alone = threading.Lock()


def launch(kernel: Callable[..., None], *args: Any) -> None:
    """Run a parallel kernel, one at a time: to two at once Numba's own thread pool answers by ending the process."""
    with _alone:
        kernel(*args)


def flat(x: Tensor) -> np.ndarray:
    """The tensor as a flat array, without a copy where it is contiguous; bfloat16 as int16 bit patterns."""
    x = x.detach().contiguous()
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy().reshape(-1)
