"""Set the number of Numba's threads."""

from __future__ import annotations

import numba


def use_threads(count: int) -> None:
    """Run this thread's parallel kernels on ``count`` threads, limited by Numba's maximum."""
    numba.set_num_threads(max(1, min(count, numba.config.NUMBA_NUM_THREADS)))  # ty: ignore[missing-attribute]
