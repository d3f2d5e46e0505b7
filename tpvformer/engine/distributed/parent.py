"""Processes of a training that end with the one that started them: none trains on where nobody hears of it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import Dict, Tuple

LAUNCHER, PIPE = "TPVFORMER_LAUNCHER", "TPVFORMER_LAUNCHER_PIPE"  # its process number; what closes when it ends
_SET_PDEATHSIG = 1  # of prctl(2)


class Tether:
    """What a launcher holds while its processes run. On Linux the kernel ends them with it; elsewhere a pipe does."""

    def __init__(self, by_kernel: bool = sys.platform.startswith("linux")) -> None:
        self._read, self._write = (-1, -1) if by_kernel else os.pipe()

    @property
    def environment(self) -> Dict[str, str]:
        """For the processes."""
        pipe = {} if self._read < 0 else {PIPE: str(self._read)}
        return {LAUNCHER: str(os.getpid()), **pipe}

    @property
    def handles(self) -> Tuple[int, ...]:
        """Those that the processes are to inherit."""
        return () if self._read < 0 else (self._read,)

    def close(self) -> None:
        """The processes have ended."""
        for handle in (self._read, self._write):
            if handle >= 0:
                os.close(handle)


def end_with_parent() -> None:
    """Let this process end at once where the launcher or torchrun's agent that started it does.

    By SIGKILL, as when power is lost: what is saved stays whole, and the machines that are left hear of it. A process
    that was started in another way, by a script for example, is left alone.
    """
    launcher = os.environ.get(LAUNCHER, "")
    if not launcher and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    if launcher and launcher != str(parent):
        if _orphaned(launcher):
            os._exit(1)
        return  # started by a process of ours in between, which may end before
    pipe = os.environ.get(PIPE, "")
    if pipe:
        threading.Thread(target=_until_closed, args=(int(pipe),), name="parent", daemon=True).start()
    elif sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it ended meanwhile
            os._exit(1)


def _orphaned(launcher: str) -> bool:
    try:
        os.kill(int(launcher), 0)
    except (OSError, ValueError):
        return True
    return False


def _until_closed(handle: int) -> None:
    os.read(handle, 1)  # nobody writes: it returns when the last writer has ended
    os._exit(1)
