"""End the processes of a training when the process that started them ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import Dict, Tuple

LAUNCHER, PIPE = "TPVFORMER_LAUNCHER", "TPVFORMER_LAUNCHER_PIPE"  # its process id; handle of its pipe
RESERVED_PORT = "TPVFORMER_RESERVED_PORT"  # handle of the socket on which rank 0 listens
_SET_PDEATHSIG = 1  # of prctl(2)


class Tether:
    """Tie child processes to this launcher. On Linux the kernel ends them with it; elsewhere a closed pipe does."""

    def __init__(self, by_kernel: bool = sys.platform.startswith("linux")) -> None:
        self._read, self._write = (-1, -1) if by_kernel else os.pipe()

    @property
    def environment(self) -> Dict[str, str]:
        """Return the environment variables for the child processes."""
        pipe = {} if self._read < 0 else {PIPE: str(self._read)}
        return {LAUNCHER: str(os.getpid()), **pipe}

    @property
    def handles(self) -> Tuple[int, ...]:
        """Return the handles that the child processes must inherit."""
        return () if self._read < 0 else (self._read,)

    def close(self) -> None:
        """Close the handles, after the child processes have ended."""
        for handle in (self._read, self._write):
            if handle >= 0:
                os.close(handle)


def end_with_parent() -> None:
    """End this process at once when the launcher or torchrun agent that started it ends.

    It ends by SIGKILL, as in a power failure: saved files stay intact, and the other machines notice it. A process that
    was started in another way, for example by a script, is left alone.
    """
    launcher = os.environ.get(LAUNCHER, "")
    if not launcher and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    if launcher and launcher != str(parent):
        if _orphaned(launcher):
            os._exit(1)
        return  # started by another process of this package, which may end earlier
    pipe = os.environ.get(PIPE, "")
    if pipe:
        threading.Thread(target=_until_closed, args=(int(pipe),), name="parent", daemon=True).start()
    elif sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before prctl
            os._exit(1)


def _orphaned(launcher: str) -> bool:
    try:
        os.kill(int(launcher), 0)
    except (OSError, ValueError):
        return True
    return False


def _until_closed(handle: int) -> None:
    os.read(handle, 1)  # nothing is ever written: it returns when the last writer has ended
    os._exit(1)
