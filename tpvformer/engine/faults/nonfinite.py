"""Steps whose loss or gradient is not finite: found before they change a weight, explained, then fatal or left out."""

from __future__ import annotations

from typing import Iterator, List, Sequence

import torch
from torch import Tensor

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import collate
from tpvformer.data.types import Batch
from tpvformer.engine.checkpoint.rng import random_state, restore_random_state
from tpvformer.engine.distributed.collectives import World, all_gather_strings, all_reduce_sum
from tpvformer.engine.faults.diagnose import FINITE_AGAIN, diagnose
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import NonFiniteLoss
from tpvformer.model import TPVFormer


class NonFiniteGuard:
    """Asked before every update of the weights, by all processes.

    On a CPU each step is looked at. On an accelerator that means to wait for it, so a run that would stop anyway
    (``train.on_nonfinite`` "stop") leaves it to the losses that are read at the next printed step; "skip" waits once a
    step. With fp16 an infinite gradient is the scaler's business.
    """

    def __init__(
        self,
        config: Config,
        model: TPVFormer,
        data: FrameDataset,
        world: World,
        device: torch.device,
        log: RunLog,
    ) -> None:
        self._config, self._model, self._data = config, model, data
        self._world, self._device, self._log = world, device, log
        self._skip = config.train.on_nonfinite == "skip"
        self._looks = self._skip or device.type == "cpu"
        self._scaled = config.train.precision == "fp16"

    def accepts(self, where: str, tokens: Sequence[str], loss: Tensor, norm: Tensor, skipped: int) -> bool:
        """Whether the step may change the weights; False where it is left out. Raises NonFiniteLoss.

        ``tokens`` are this process's samples of the step, ``loss`` its loss, ``norm`` that of the summed gradient;
        ``skipped`` steps were left out before.
        """
        if not self._looks:
            return True
        good = loss.isfinite() if self._scaled else loss.isfinite() & norm.isfinite()
        if not int(all_reduce_sum((~good).long().reshape(1))):
            return True
        what = f"the loss is {float(loss)}, the norm of the gradient {float(norm)}"
        report = f"{what} at {where}, samples {', '.join(tokens)}: {self.explain(tokens)}"
        reports = all_gather_strings(report)
        named = [text for text in reports if FINITE_AGAIN not in text] or reports
        self._log.record("nonfinite", where=where, reports=reports)
        if not self._skip:
            raise NonFiniteLoss(f"{named[0]}. Look at these samples, or lower optim.lr or optim.clip_norm")
        most = self._config.train.max_skipped
        if skipped >= most:
            raise NonFiniteLoss(
                f"{named[0]}. {skipped} steps were left out before, as many as train.max_skipped allows"
            )
        self._log.warn(f"left out: {named[0]}")
        return False

    def explain(self, tokens: Sequence[str]) -> str:
        """What of this process's samples is not finite first. The random numbers of the run stay where they are."""
        drawn = random_state(self._device)
        try:
            return diagnose(self._model, self._again(tokens), self._config)
        finally:
            restore_random_state(drawn, self._device)

    def _again(self, tokens: Sequence[str]) -> Iterator[Batch]:
        """The samples once more, each alone, as they were augmented."""
        numbers: List[str] = self._data.tokens
        for token in tokens:
            sample = self._data[numbers.index(token)]
            yield collate([sample], self._config.data.ignore_label).to(self._device)
