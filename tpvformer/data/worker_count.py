"""Choose how many worker processes read samples, where ``data.workers`` leaves it open (null)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import List, Optional, Tuple

from tpvformer.config import DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.errors import DataError

SOONEST = 0.03  # seconds a sample in training on a card, assumed until steps have been measured
UNKNOWN = 0.1  # seconds to read a sample, assumed where none can be read: six images of 1600 x 900
_MARGIN = 1.25  # workers are not equally fast, and the file system has bad moments
_WAITING = 0.02  # share of the steps' time spent waiting for data from which on more workers are worth starting
_READ = 2  # samples timed, after one that compiles kernels and opens files


@dataclasses.dataclass
class WorkerChoice:
    """Hold a number of workers and what it follows from: seconds to read a sample, and the most that cores allow."""

    number: int
    reading: float
    most: int

    def said(self, cores: int) -> str:
        """Return the line for the log; ``cores`` are those of this process."""
        workers = f"{self.number} loader worker{'' if self.number == 1 else 's'}"
        return (
            f"{workers}: this process has {cores} cores, and a sample is read in {1000 * self.reading:.0f} ms "
            "(data.workers sets another number)"
        )

    def raised(self, step: float, waiting: float) -> Optional[int]:
        """Return a higher number if steps wait for data; None if they do not, or if no core is left for it.

        ``step`` is the time that training takes for a sample, in seconds without waiting; ``waiting`` the share of all
        steps' time that went by waiting, 0 to 1.
        """
        wanted = enough(self.reading, step, self.most)
        return wanted if waiting > _WAITING and wanted > self.number else None


def choose_workers(
    data: FrameDataset, cfg: DataConfig, cores: int, on_card: bool
) -> Tuple[DataConfig, Optional[WorkerChoice]]:
    """Return ``cfg`` with a number of workers, and how it was chosen; None where the configuration has a number.

    ``cores`` are those of this process. On a card one core is left to the process that launches kernels, and workers
    are started for the fastest step that is expected. On a CPU steps are slow and use all cores: one worker reads
    ahead.
    """
    if cfg.workers is not None:
        return cfg, None
    reading = seconds_to_read(data)
    reading, most = UNKNOWN if reading is None else reading, max(1, cores - 1)
    choice = WorkerChoice(enough(reading, SOONEST, most) if on_card else 1, reading, most)
    return dataclasses.replace(cfg, workers=choice.number), choice


def enough(reading: float, step: float, most: int) -> int:
    """Return the workers, 1 to ``most``, that read samples as fast as they are used, given seconds a sample of both."""
    return max(1, min(most, math.ceil(_MARGIN * reading / max(step, 1e-4))))


def seconds_to_read(data: FrameDataset) -> Optional[float]:
    """Return the seconds that a sample takes to be read by one core; None if none can, which training reports later.

    Times on several threads count as the work of one. No random state changes. Samples with a past come first.
    """
    spent: List[float] = []
    windows = data.windows
    for index in sorted(range(len(windows)), key=lambda index: -len(windows[index]))[: _READ + 1]:
        with contextlib.suppress(DataError, OSError):
            wall, work = time.perf_counter(), time.process_time()
            data.sample(index, augment=True)
            spent.append(max(time.perf_counter() - wall, time.process_time() - work))
    return min(spent) if spent else None
