"""Start worker processes that ignore Ctrl-C, so that only the parent process handles it."""

from __future__ import annotations

import contextlib
import signal
from typing import Generator


@contextlib.contextmanager
def interrupts_held() -> Generator[None, None, None]:
    """Block Ctrl-C in processes that start inside this context; this process receives it after the context.

    Windows has no such mask; nothing is changed there.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
