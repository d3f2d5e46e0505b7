"""What a program asks of Numba beside its kernels: how many threads they take, and word of what is being compiled."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Generator

import numba
from numba.core import event


def use_threads(count: int) -> None:
    """Let parallel kernels of this thread run on ``count`` threads, as far as Numba has so many."""
    numba.set_num_threads(max(1, min(count, numba.config.NUMBA_NUM_THREADS)))  # ty: ignore[missing-attribute]


class _Listener(event.Listener):
    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def on_start(self, event: Any) -> None:
        self._tell()

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def watch_compiling(tell: Callable[[], None]) -> Generator[None, None, None]:
    """Within, ``tell`` is called whenever a kernel is compiled rather than read from the cache on the disk."""
    listener = _Listener(tell)
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)
