"""Make a run's loaders: choose the number of their workers, and raise it after an epoch that waited for data."""

from __future__ import annotations

import dataclasses
from typing import Callable, Optional, cast

import torch
from torch.utils.data import DataLoader

from tpvformer import ops
from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import make_loader
from tpvformer.data.worker_count import choose_workers
from tpvformer.data.worker_limits import fit_workers
from tpvformer.engine.device.accelerator import pin_options
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.distributed.shared_cores import cores_of_this_process
from tpvformer.engine.logging.meters import StepClock
from tpvformer.model.visible_rows import VisibleRows

Say = Callable[[str], None]


def rows_for(config: Config, device: torch.device) -> Optional[VisibleRows]:
    """Return what lists the queries that cameras see, where the device's attention does less with a list; else None.

    None also for a model without attention to images, such as a checkout's own, of which nothing is known here.
    """
    return VisibleRows(config.model) if ops.takes_rows(device) and "self_cross" in config.model.layers else None


class Loading:
    """Make the loaders of one process with the number of workers that ``config.data`` has or that is chosen for it.

    The number is lowered, with a warning, where the machine cannot serve as many. All processes must construct it.
    ``data`` is a set whose samples are timed; ``line`` and ``warn`` receive text for the log.
    """

    def __init__(
        self, data: FrameDataset, config: Config, world: World, device: torch.device, line: Say, warn: Say
    ) -> None:
        self._world, self._device, self._line, self._warn = world, device, line, warn
        self._seed, self._samples = config.train.seed, config.data.batch_size * config.train.accumulate
        self._list_rows = rows_for(config, device)
        cores = cores_of_this_process()
        cfg, self._choice = choose_workers(data, config.data, cores, device.type != "cpu")
        if self._choice is not None:
            line(self._choice.said(cores))
        self._cfg = fit_workers(data, cfg, world.local_size, warn)

    def loader(self, data: FrameDataset, train: bool, by_scene: bool = False) -> DataLoader:
        """Return a loader of this process's share of ``data``; see ``make_loader``."""
        world, options, rows = self._world, pin_options(self._device), self._list_rows
        return make_loader(
            data, self._cfg, world.rank, world.size, train, self._seed, **options, list_rows=rows, by_scene=by_scene
        )

    def renewed(self, loader: DataLoader, clock: StepClock) -> DataLoader:
        """Return the training loader of the next epoch: ``loader``, or one with more workers if steps waited for data.

        Samples and their order do not change. A number in the configuration is kept. Call it between epochs.
        """
        choice, steps = self._choice, clock.steady()
        if choice is None or steps is None or loader.num_workers < choice.number:
            return loader
        step, waiting = steps
        number = choice.raised(step / self._samples, waiting)
        if number is None:
            return loader
        data = cast(FrameDataset, loader.dataset)
        wanted = dataclasses.replace(self._cfg, workers=number)
        fitted = fit_workers(data, wanted, self._world.local_size, self._warn)
        if fitted.workers == loader.num_workers:
            return loader
        self._line(
            f"{fitted.workers} loader workers instead of {choice.number} from here on: {100 * waiting:.0f} % of the "
            f"steps' time went by waiting for data; a step computes for {1000 * step:.0f} ms"
        )
        choice.number, self._cfg = number, fitted
        return self.loader(data, True)
