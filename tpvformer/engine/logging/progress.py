"""Print progress and estimated end as log lines, where no bar can be drawn."""

from __future__ import annotations

import sys
import time
from typing import Callable, Dict, Optional

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


def print_every(seconds: float) -> Callable[[str, int, int], None]:
    """Return a callback that prints progress on stderr every ``seconds``, for example while a large table is read."""
    said = time.perf_counter()
    began: Dict[str, float] = {}

    def say(what: str, done: int, total: int) -> None:
        nonlocal said
        now = time.perf_counter()
        spent = now - began.setdefault(what, now)
        if now - said >= seconds:
            said = now
            size = f"{total / 1e6:.0f} MB" if total >= 1e6 else str(total)  # bytes of a table, else items of a set
            left = f", {remaining(spent * (total - done) / done)}" if done and spent else ""
            print(f"{what}: {done * 100 // max(total, 1)} % of {size}{left}", file=sys.stderr)

    return say


def print_quarters(unit: str) -> Callable[[int, int], None]:
    """Return a callback that prints on stderr each finished quarter of the ``unit``, and the estimated end."""
    said, began = 0, time.perf_counter()

    def say(done: int, total: int) -> None:
        nonlocal said
        if done < total and done * 4 // total > said:
            said = done * 4 // total
            left = remaining((time.perf_counter() - began) * (total - done) / done)
            print(f"{done} of {total} {unit}, {left}", file=sys.stderr)

    return say
