"""What a program asks of Numba beside its kernels: how many threads they take."""

from __future__ import annotations

import numba


def use_threads(count: int) -> None:
    """Let parallel kernels of this thread run on ``count`` threads, as far as Numba has so many."""
    numba.set_num_threads(max(1, min(count, numba.config.NUMBA_NUM_THREADS)))  # ty: ignore[missing-attribute]
