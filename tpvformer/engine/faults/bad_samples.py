"""Count and report unreadable samples that others replaced, over all processes, up to a limit."""

from __future__ import annotations

from typing import List, Sequence

from tpvformer.engine.distributed.collectives import all_gather_strings
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import DataError


class BadSamples:
    """Collect the unreadable samples of a run; ``most`` of them are allowed, over all processes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._new: List[str] = []

    def note(self, problems: Sequence[str]) -> None:
        """Add the problems of a batch."""
        self._new += problems

    def settle(self, count: int, log: RunLog) -> int:
        """Log the new problems; return the new count. All processes must call it. Raises DataError above the limit."""
        texts = all_gather_strings("\n".join(self._new))
        self._new.clear()
        problems = [line for text in texts for line in text.splitlines()]
        for problem in problems:
            log.warn(f"skipped, another sample replaces it: {problem}")
        count += len(problems)
        if count > self._most:
            raise DataError(
                f"{problems[-1]}; this is bad sample {count} of the run, train.max_skipped allows {self._most}, so "
                "fix the data (tpvformer data check finds every fault) or raise the bound"
            )
        return count
