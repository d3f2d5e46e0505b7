"""Processes that work for this one: a Ctrl-C, which a terminal sends to all of them, is for this one to answer."""

from __future__ import annotations

import contextlib
import signal
from typing import Generator


@contextlib.contextmanager
def interrupts_held() -> Generator[None, None, None]:
    """Processes that are started within never hear of Ctrl-C, from their first instruction on; this one does after it.

    Windows knows no such thing, and nothing is changed there.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
