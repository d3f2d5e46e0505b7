"""Being asked to stop: a signal is noted when it comes, and obeyed when a step is done."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Dict, List, Optional, Type

# an end from outside; Slurm's warning before one (--signal=USR1@90); the terminal or connection is gone. Windows has
# the first alone.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


def heard() -> List[signal.Signals]:
    """Those of SIGNALS that this process listens to: not SIGHUP where nohup started it, to outlive its terminal."""
    return [n for n in SIGNALS if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


def hears_ctrl_c() -> bool:
    """Not where it was ignored when this process was started, as in a script's background."""
    return signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def say_heard() -> None:
    """Answer the first Ctrl-C of a training at once, for a step may take long. Within a signal's handler."""
    with contextlib.suppress(OSError):
        os.write(2, _HEARD)  # print may be what was interrupted


class Stopped(Exception):
    """A run that was asked to stop has saved what it had; the message says what was asked and where it goes on."""


CTRL_C = "Ctrl-C (SIGINT)"
_HEARD = b"\nCtrl-C: the step is finished, saved, and the run ends; Ctrl-C once more leaves at once\n"


class StopSignals:
    """Within it, SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C end nothing: they are noted in ``received``.

    Some schedulers send them to every process and some launchers pass them on as well, so a second one says no more
    than the first. A person who types Ctrl-C again does not want to wait: the second one is a KeyboardInterrupt.
    Outside the main thread, where Python takes no signals, everything stays as it was.
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
