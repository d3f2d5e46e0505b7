"""What a training run measures of itself: its losses and its time."""

from __future__ import annotations

import math
import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from tpvformer.engine.distributed.collectives import World, all_reduce_sum
from tpvformer.errors import NonFiniteLoss


class LossMeter:
    """Keeps losses on the device and reads them in bulk, so that training never waits for a single one.

    Code that does not check each step itself (faults/nonfinite.py) learns of the first bad loss from ``read``.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: List[Tuple[str, Sequence[str], Tensor]] = []
        self._sum, self._count = 0.0, 0
        self.last: Optional[float] = None

    def add(self, where: str, tokens: Sequence[str], loss: Tensor) -> None:
        """Take note of one step's loss; ``where`` and ``tokens`` appear in the message if it is not finite."""
        self._pending.append((where, tokens, loss.detach()))

    def read(self) -> None:
        """Bring everything since the last call to the host, averaged over processes. All processes must call it."""
        if not self._pending:
            return
        mine = torch.stack([loss for _, _, loss in self._pending])
        everyone = all_reduce_sum(mine.clone()) / self._world.size
        for (where, tokens, _), value in zip(self._pending, mine.tolist()):
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"the loss is {value} at {where}, samples {', '.join(tokens)}; look at these samples, or lower "
                    "optim.lr or optim.clip_norm; with train.on_nonfinite=skip each step is looked at before it "
                    "changes a weight, and the module that fails is named"
                )
        values = everyone.tolist()
        if not all(math.isfinite(v) for v in values):
            raise NonFiniteLoss("the loss of another process is not finite; its own message names the samples")
        self._pending.clear()
        for value in values:  # one by one, so that the mean does not depend on when losses are read
            self._sum += value
        self._count += len(values)
        self.last = values[-1]

    def start_epoch(self) -> None:
        """Begin a new mean."""
        self._sum, self._count = 0.0, 0

    def state(self) -> Dict[str, Any]:
        """What ``restore`` needs to go on in the middle of an epoch; after ``read``."""
        return {"sum": self._sum, "count": self._count, "last": self.last}

    def restore(self, state: Dict[str, Any]) -> None:
        """Go on from a ``state``."""
        self._sum, self._count, self.last = state["sum"], state["count"], state["last"]

    @property
    def mean(self) -> float:
        """Mean of what was read since ``start_epoch``; not a number where nothing was."""
        return self._sum / self._count if self._count else math.nan


class Lap(NamedTuple):
    """One step, in seconds: since the clock was made, of waiting for its batches, and in all."""

    began: float
    waited: float
    spent: float


class StepClock:
    """Wall time of training steps, loading included.

    The mean leaves out the first ``warmup`` steps of the run and the first step of every epoch, which waits for the
    loader to start; if nothing else is there, it takes what there is.
    """

    def __init__(self, warmup: int) -> None:
        self._warmup = warmup
        self._all: List[Lap] = []
        self._measured: List[float] = []
        self._reported = 0
        self._made = self._mark = time.perf_counter()
        self._data, self._first = 0.0, True

    def start_epoch(self) -> None:
        """From here on time belongs to training (evaluation and saving lie behind)."""
        self._mark, self._data, self._first = time.perf_counter(), 0.0, True

    def data_ready(self, asked: float) -> None:
        """A batch has arrived that was asked for at ``asked`` (perf_counter)."""
        self._data += time.perf_counter() - asked

    def lap(self) -> None:
        """A step is done."""
        now = time.perf_counter()
        spent = now - self._mark
        if not self._first and len(self._all) >= self._warmup:
            self._measured.append(spent)
        self._all.append(Lap(self._mark - self._made, self._data, spent))
        self._mark, self._data, self._first = now, 0.0, False

    def recent(self) -> List[Lap]:
        """The steps since the last call."""
        laps = self._all[self._reported :]
        self._reported = len(self._all)
        return laps

    @property
    def waiting_share(self) -> Optional[float]:
        """The part of all steps' time that went by waiting for data, 0..1; None before the first step."""
        return sum(lap.waited for lap in self._all) / sum(lap.spent for lap in self._all) if self._all else None

    @property
    def measuring_starts(self) -> bool:
        """True while the last step is running that is left out at the start."""
        return len(self._all) + 1 == self._warmup

    def result(self) -> Tuple[Optional[float], int, int]:
        """(mean seconds a step or None, how many steps that is the mean of, how many there were)."""
        laps = self._measured or [lap.spent for lap in self._all]
        return (math.fsum(laps) / len(laps) if laps else None), len(laps), len(self._all)
