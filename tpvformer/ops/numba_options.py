"""What all Numba kernels share: how they are compiled, and how tensors become their arguments.

Kernels are compiled once a width and cached on disk.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Callable

import llvmlite.binding as llvm
import numba
import numpy as np
import torch
from torch import Tensor

from tpvformer.ops.numba_simd import FAST_MATH
from tpvformer.runtime.compiling import can_keep

# Functions that only kernels call, and kernels: those have an entry for Python, which takes a while to compile.
_COMMON: Any = {"cache": can_keep(), "fastmath": set(FAST_MATH), "error_model": "numpy", "no_cfunc_wrapper": True}
INLINED: Any = {"no_cpython_wrapper": True, **_COMMON}
PARALLEL: Any = {"parallel": True, **_COMMON}
_alone = threading.Lock()


@functools.lru_cache(maxsize=1)
def vector_width() -> int:
    """How many float32 a vector register holds on the processor that Numba compiles for: 16, 8 or 4.

    That is this machine's, unless NUMBA_CPU_FEATURES says otherwise ("+avx,+avx2,+fma": one without AVX-512).
    """
    chosen = numba.config.CPU_FEATURES  # ty: ignore[missing-attribute]
    if chosen is None:
        features = {name for name, has in llvm.get_host_cpu_features().items() if has}
    else:
        features = {name[1:] for name in chosen.split(",") if name.startswith("+")}
    return 16 if "avx512f" in features else 8 if "avx" in features else 4


def launch(kernel: Callable[..., None], *args: Any) -> None:
    """Run a parallel kernel, one at a time: to two at once Numba's own thread pool answers by ending the process."""
    with _alone:
        kernel(*args)


def flat(x: Tensor) -> np.ndarray:
    """The tensor as a flat array, without a copy where it is contiguous; bfloat16 as int16 bit patterns."""
    x = x.detach().contiguous()
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy().reshape(-1)
