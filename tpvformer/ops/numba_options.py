"""Define how all Numba kernels are compiled and called.

Kernels are compiled once for each vector width and cached on disk.
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

# INLINED functions are called by kernels only. PARALLEL kernels have an entry for Python, which is slow to compile.
_COMMON: Any = {"cache": can_keep(), "fastmath": set(FAST_MATH), "error_model": "numpy", "no_cfunc_wrapper": True}
INLINED: Any = {"no_cpython_wrapper": True, **_COMMON}
PARALLEL: Any = {"parallel": True, **_COMMON}
_alone = threading.Lock()


@functools.lru_cache(maxsize=1)
def vector_width() -> int:
    """Return the float32 values of a vector register on the processor that Numba compiles for: 16, 8 or 4.

    That is this machine's, unless NUMBA_CPU_FEATURES is set ("+avx,+avx2,+fma": a processor without AVX-512).
    """
    chosen = numba.config.CPU_FEATURES  # ty: ignore[missing-attribute]
    if chosen is None:
        features = {name for name, has in llvm.get_host_cpu_features().items() if has}
    else:
        features = {name[1:] for name in chosen.split(",") if name.startswith("+")}
    return 16 if "avx512f" in features else 8 if "avx" in features else 4


def launch(kernel: Callable[..., None], *args: Any) -> None:
    """Run a parallel kernel, one at a time: Numba's own thread pool aborts the process if two run at once."""
    with _alone:
        kernel(*args)


def flat(x: Tensor) -> np.ndarray:
    """Return the tensor as a flat array, without a copy if it is contiguous; bfloat16 as int16 bit patterns."""
    x = x.detach().contiguous()
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy().reshape(-1)
