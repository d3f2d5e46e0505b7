"""Being asked to stop: a signal is noted when it comes, and obeyed when a step is done."""

from __future__ import annotations

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


class Stopped(Exception):
    """A run that was asked to stop has saved what it had; the message says what was asked and where it goes on."""


class StopSignals:
    """Within it, SIGTERM, SIGUSR1 and SIGHUP end nothing: they are noted in ``received``.

    Some schedulers send them to every process and some launchers pass them on as well, so a second one says no more
    than the first. Outside the main thread, where Python takes no signals, everything stays as it was.
    """

    def __init__(self) -> None:
        self.received: Optional[str] = None
        self._before: Dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in heard()}
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.received = self.received or signal.Signals(number).name
