"""Note signals that ask a run to stop; the run stops after the current step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Dict, List, Optional, Type

# a request to end; Slurm's warning before it (--signal=USR1@90); the terminal or connection is closed. Windows has
# the first one only.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


def heard() -> List[signal.Signals]:
    """Return the signals of SIGNALS to handle: without SIGHUP if nohup started this process."""
    return [n for n in SIGNALS if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


def hears_ctrl_c() -> bool:
    """Return whether Ctrl-C is handled: not if it was ignored at the start, as for a script's background process."""
    return signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def say_heard() -> None:
    """Confirm the first Ctrl-C of a training at once, because a step may take long. Called inside a signal handler."""
    with contextlib.suppress(OSError):
        os.write(2, _HEARD)  # not print, which may have been interrupted


class Stopped(Exception):
    """Report that a run was asked to stop and has saved; the message names the signal and where the run resumes."""


CTRL_C = "Ctrl-C (SIGINT)"
_HEARD = b"\nCtrl-C: the step is finished, saved, and the run ends; Ctrl-C once more leaves at once\n"


class StopSignals:
    """Note SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C in ``received`` instead of ending, inside this context.

    Some schedulers send a signal to every process and some launchers forward it as well, so a second one has no effect.
    A second Ctrl-C raises KeyboardInterrupt. Outside the main thread, where Python handles no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.received: Optional[str] = None
        self._typed = False
        self._before: Dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in heard()}
            if hears_ctrl_c():
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.received = self.received or signal.Signals(number).name

    def _interrupt(self, number: int, frame: Optional[FrameType]) -> None:
        if self._typed:
            raise KeyboardInterrupt
        self._typed = True
        self.received = self.received or CTRL_C
        if os.environ.get("RANK", "0") == "0":
            say_heard()
