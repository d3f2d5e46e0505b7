"""Print progress and estimated end as log lines, where no bar can be drawn."""

from __future__ import annotations

import time
from typing import Callable, Optional

FIRST, LONGEST = 30.0, 600.0  # seconds until the first line, and longest time between later lines


class Ending:
    """Report ``total`` parts as lines to ``say``: parts done, time left, and time of the end.

    ``later`` more parts of the same length follow (further epochs); their end is reported too, under the name
    ``whole``.
    """

    def __init__(
        self, title: str, total: int, say: Callable[[str], None], later: int = 0, whole: str = "everything"
    ) -> None:
        self._title, self._total, self._say, self._later, self._whole = title, total, say, later, whole
        self._began = time.time()
        self._first: Optional[float] = None  # end of the first part, which takes longer and is left out
        self._done = 0
        self._next = self._began + FIRST

    def advance(self) -> None:
        """Count one finished part."""
        now = time.time()
        self._done += 1
        if self._first is None:
            self._first = now
        if now < self._next or not 1 < self._done < self._total:
            return
        self._next = now + min(LONGEST, now - self._began)
        each = (now - self._first) / (self._done - 1)
        left = self._total - self._done
        line = f"{self._title}: {self._done} of {self._total}, {remaining(left * each, now)}"
        if self._later:
            line += f"; {self._whole} {remaining((left + self._later) * each, now)}"
        self._say(line)


def remaining(seconds: float, now: Optional[float] = None) -> str:
    """Format a duration, such as "12 min left, ends 14:32" or "2 h 5 min left, ends 2026-12-03 01:10"."""
    now = time.time() if now is None else now
    minutes = round(seconds / 60)
    if seconds < 99:
        length = f"{seconds:.0f} s"
    elif minutes < 60:
        length = f"{minutes} min"
    else:
        length = f"{minutes // 60} h {minutes % 60} min"
    here, there = time.localtime(now), time.localtime(now + seconds)
    day = "" if here[:3] == there[:3] else "%Y-%m-%d "
    return f"{length} left, ends {time.strftime(f'{day}%H:%M', there)}"
