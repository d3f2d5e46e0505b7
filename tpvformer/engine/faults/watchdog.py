"""A run that stands still ends, and every process says where it stood."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from pathlib import Path
from typing import Optional

EXIT = 1


class Watchdog:
    """Ends this process where ``beat`` is not called for ``seconds`` in which it ran; 0 never does.

    Time in which the whole process stood still (SIGSTOP, a scheduler's suspension, Ctrl-Z) does not count: of each of
    its own pauses the watch counts no more than it asked for.

    All threads' stacks go to ``<folder>/stacks_rank<n>.txt`` and to stderr first. A process that waits for one that
    hangs stands still as well, so each process writes its own and the one that hangs is the one that does not wait in
    a collective operation.
    """

    def __init__(self, seconds: float, folder: Path, rank: int) -> None:
        self._seconds, self._folder, self._rank = seconds, folder, rank
        self._silent = 0.0  # seconds since the last beat, as counted by the watch
        self.doing = "the start"  # what the run is at
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def __enter__(self) -> Watchdog:
        if self._seconds > 0:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def beat(self, doing: str) -> None:
        """The run goes on; ``doing`` says what comes next."""
        self._silent, self.doing = 0.0, doing

    def _watch(self) -> None:
        pause = min(self._seconds / 4, 10.0)
        while not self._stop.wait(pause):
            self._silent += pause
            if self._silent > self._seconds:
                self._end(self._silent)

    def _end(self, silent: float) -> None:
        path = self._folder / f"stacks_rank{self._rank}.txt"
        print(
            f"tpvformer train (process {self._rank}): nothing has happened for {silent:.0f} s during {self.doing}; "
            f"the stack of every thread follows and is in {path}. Compare those of all processes: who waits in a "
            "collective operation waits for the one that does not. train.hang_minutes sets the limit, 0 lifts it",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        try:
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        finally:
            os._exit(EXIT)  # a thread that hangs cannot be asked to end
