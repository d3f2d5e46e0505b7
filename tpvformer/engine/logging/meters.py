"""Measure the losses and the step times of a training run."""

from __future__ import annotations

import math
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from tpvformer.engine.distributed.collectives import World, all_reduce_sum
from tpvformer.errors import NonFiniteLoss


class LossMeter:
    """Collect losses on the device and read them together, so that training does not wait for each of them.

    ``read`` raises for a non-finite loss, for callers that do not check each step (faults/nonfinite.py). The parts of a
    loss are read with it (``losses.total_loss``); every step of an epoch has the same ones.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: List[Tuple[str, Sequence[str], Tensor, Mapping[str, Tensor]]] = []
        self._sum, self._count = 0.0, 0
        self.last: Optional[float] = None
        self._parts: Dict[str, Dict[str, Any]] = {}  # of the same epoch: sum, count and last value of each part

    def add(
        self, where: str, tokens: Sequence[str], loss: Tensor, parts: Optional[Mapping[str, Tensor]] = None
    ) -> None:
        """Add one step's loss; ``where`` and ``tokens`` appear in the message if it is not finite."""
        self._pending.append((where, tokens, loss.detach(), parts or {}))

    def read(self) -> None:
        """Copy all losses since the last call to the host, averaged over processes. All processes must call it."""
        if not self._pending:
            return
        mine = torch.stack([loss for _, _, loss, _ in self._pending])
        everyone = all_reduce_sum(mine.clone()) / self._world.size
        for (where, tokens, _, _), value in zip(self._pending, mine.tolist()):
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"the loss is {value} at {where}, samples {', '.join(tokens)}; look at these samples, or lower "
                    "optim.lr or optim.clip_norm; with train.on_nonfinite=skip each step is checked before it "
                    "changes a weight, and the message names the first bad module"
                )
        values = everyone.tolist()
        if not all(math.isfinite(v) for v in values):
            raise NonFiniteLoss("the loss of another process is not finite; its own message names the samples")
        self._read_parts()
        self._pending.clear()
        for value in values:  # one by one, so that the mean does not depend on the times of reading
            self._sum += value
        self._count += len(values)
        self.last = values[-1]

    def _read_parts(self) -> None:
        names = list(self._pending[0][3])
        if not names:
            return
        rows = torch.stack([torch.stack([parts[name] for name in names]) for _, _, _, parts in self._pending])
        everyone = all_reduce_sum(rows) / self._world.size
        for name, values in zip(names, everyone.T.tolist()):
            part = self._parts.setdefault(name, {"sum": 0.0, "count": 0, "last": None})
            for value in values:
                part["sum"] += value
            part.update(count=part["count"] + len(values), last=values[-1])

    def start_epoch(self) -> None:
        """Start new means."""
        self._sum, self._count = 0.0, 0
        self._parts = {}

    def state(self) -> Dict[str, Any]:
        """Return the state for ``restore`` in the middle of an epoch; call ``read`` first."""
        parts = {name: dict(part) for name, part in self._parts.items()}
        return {"sum": self._sum, "count": self._count, "last": self.last, "parts": parts}

    def restore(self, state: Dict[str, Any]) -> None:
        """Restore a state of ``state``; files of older versions have no parts."""
        self._sum, self._count, self.last = state["sum"], state["count"], state["last"]
        self._parts = {name: dict(part) for name, part in state.get("parts", {}).items()}

    @property
    def mean(self) -> float:
        """Return the mean of the losses read since ``start_epoch``; NaN without losses."""
        return self._sum / self._count if self._count else math.nan

    @property
    def last_parts(self) -> Dict[str, float]:
        """Return the parts of the last loss that was read, by name."""
        return {name: part["last"] for name, part in self._parts.items()}

    @property
    def mean_parts(self) -> Dict[str, float]:
        """Return the mean of each part since ``start_epoch``, by name."""
        return {name: part["sum"] / part["count"] for name, part in self._parts.items()}


class Lap(NamedTuple):
    """Hold the times of one step in seconds: its start since the clock was made, waiting for batches, total."""

    began: float
    waited: float
    spent: float


class StepClock:
    """Measure the wall time of training steps, data loading included.

    The mean leaves out the first ``warmup`` steps of the run and the first step of every epoch, which waits for the
    loader to start. If there are no other steps, the mean is over all steps.
    """

    def __init__(self, warmup: int) -> None:
        self._warmup = warmup
        self._all: List[Lap] = []
        self._measured: List[Lap] = []
        self._reported = 0
        self._made = self._mark = time.perf_counter()
        self._data, self._first = 0.0, True

    def start_epoch(self) -> None:
        """Restart the clock, so that the time of evaluation and saving is not counted."""
        self._mark, self._data, self._first = time.perf_counter(), 0.0, True

    def data_ready(self, asked: float) -> None:
        """Count the waiting time of a batch that was requested at ``asked`` (perf_counter)."""
        self._data += time.perf_counter() - asked

    def lap(self) -> None:
        """Record a finished step."""
        now = time.perf_counter()
        lap = Lap(self._mark - self._made, self._data, now - self._mark)
        if not self._first and len(self._all) >= self._warmup:
            self._measured.append(lap)
        self._all.append(lap)
        self._mark, self._data, self._first = now, 0.0, False

    def recent(self) -> List[Lap]:
        """Return the steps since the last call."""
        laps = self._all[self._reported :]
        self._reported = len(self._all)
        return laps

    @property
    def waiting_share(self) -> Optional[float]:
        """Return the share of all steps' time spent waiting for data, 0..1; None before the first step."""
        return sum(lap.waited for lap in self._all) / sum(lap.spent for lap in self._all) if self._all else None

    def steady(self) -> Optional[Tuple[float, float]]:
        """Return (mean seconds a step without waiting for data, share of the time spent waiting, 0..1).

        Over the steps of ``result``'s mean; None below five of them.
        """
        if len(self._measured) < 5:
            return None
        waited, spent = (math.fsum(getattr(lap, name) for lap in self._measured) for name in ("waited", "spent"))
        return (spent - waited) / len(self._measured), waited / spent

    @property
    def measuring_starts(self) -> bool:
        """Return True during the last warm-up step."""
        return len(self._all) + 1 == self._warmup

    def result(self) -> Tuple[Optional[float], int, int]:
        """Return (mean seconds a step or None, steps in that mean, all steps)."""
        laps = [lap.spent for lap in self._measured or self._all]
        return (math.fsum(laps) / len(laps) if laps else None), len(laps), len(self._all)
