"""Let the processes agree on small numbers about once a second, instead of after every step."""

from __future__ import annotations

import time
from typing import List, Optional, Sequence

from tpvformer.engine.distributed import collectives as distributed
from tpvformer.engine.distributed.collectives import World

SECONDS = 1.0  # between two agreements: as late as this, a signal to stop or a due save may be noticed
MOST = 32  # steps between two agreements, however fast the last ones were


class Agreement:
    """Sum small integers over the processes at some of the steps, which are the same ones in all processes.

    An agreement makes the hosts wait for each other; launching kernels ahead of an accelerator needs hosts that do not.
    Process 0 measures its steps and decides when the next agreement is, and the number travels with this one. A single
    process, and steps of ``SECONDS`` or longer, agree at every step.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._left = 0  # steps until the next agreement
        self._interval, self._last = 1, time.monotonic()

    def ask(self, values: Sequence[int], at_once: bool = False) -> Optional[List[int]]:
        """Return the sums of ``values`` over the processes, or None if this step is not one to agree at.

        All processes must call it after each step, with the same ``at_once``, which makes this step one.
        """
        self._left -= 1
        if self._left > 0 and not at_once:
            return None
        wanted = self._next_interval() if self._world.is_main else 0
        *sums, self._interval = distributed.agree([*values, wanted])
        self._left, self._last = self._interval, time.monotonic()
        return sums

    def _next_interval(self) -> int:
        """Return the steps of SECONDS, at most twice the last interval: a step may be launched before it has run."""
        if self._world.size == 1:
            return 1
        passed = self._interval - max(0, self._left)  # steps since the last agreement
        a_step = (time.monotonic() - self._last) / max(1, passed)
        return max(1, min(MOST, 2 * self._interval, int(SECONDS / max(a_step, 1e-6))))
