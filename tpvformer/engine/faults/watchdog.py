"""End a run that hangs, and write the stacks of every process."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from pathlib import Path
from typing import Optional

EXIT = 1


class Watchdog:
    """End this process if ``beat`` is not called for ``seconds`` of its running time; 0 disables the watchdog.

    Time in which the whole process is suspended (SIGSTOP, a scheduler, Ctrl-Z) does not count: each pause of the thread
    counts at its requested length.

    First the stacks of all threads are written to ``<folder>/stacks_rank<n>.txt`` and stderr. Processes that wait for a
    hung one hang as well, so every process writes its stacks. The cause is the process that is not in a collective
    operation.
    """

    def __init__(self, seconds: float, folder: Path, rank: int) -> None:
        self._seconds, self._folder, self._rank = seconds, folder, rank
        self._silent = 0.0  # seconds since the last beat, as counted by the thread
        self.doing = "the start"  # current activity of the run
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
        """Report that the run continues; ``doing`` names its next activity."""
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
            f"the stack of every thread follows and is in {path}. Compare those of all processes: the cause is the "
            "process that is not in a collective operation. train.hang_minutes sets the limit, 0 disables it",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        try:
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        finally:
            os._exit(EXIT)  # a thread that hangs cannot be asked to end
