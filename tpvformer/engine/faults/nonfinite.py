"""Find steps with a non-finite loss or gradient before they change a weight, explain them, then stop or skip."""

from __future__ import annotations

from typing import Iterator, List, Sequence

import torch
from torch import Tensor, nn

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import collate
from tpvformer.data.types import Batch
from tpvformer.engine.checkpoint.rng import random_state, restore_random_state
from tpvformer.engine.distributed.collectives import World, all_gather_strings, all_reduce_sum
from tpvformer.engine.faults.diagnose import FINITE_AGAIN, diagnose
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import NonFiniteLoss


class NonFiniteGuard:
    """Check each step before the weights are updated, in all processes.

    On a CPU every step is checked. On an accelerator the check synchronises with the device. With
    ``train.on_nonfinite`` "stop" the check is therefore left to the losses read at the next printed step; "skip"
    synchronises once a step. With fp16 an infinite gradient is left to the gradient scaler.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
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
        """Return whether the step may change the weights; False if it is skipped. Raises NonFiniteLoss.

        ``tokens`` are this process's samples of the step, ``loss`` its loss, ``norm`` that of the summed gradient.
        ``skipped`` steps were skipped before.
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
        """Return what is not finite first in this process's samples, without changing the run's random states."""
        drawn = random_state(self._device)
        try:
            return diagnose(self._model, self._again(tokens), self._config)
        finally:
            restore_random_state(drawn, self._device)

    def _again(self, tokens: Sequence[str]) -> Iterator[Batch]:
        """Yield the samples again, one by one, with the same augmentation."""
        numbers: List[str] = self._data.tokens
        for token in tokens:
            sample = self._data[numbers.index(token)]
            yield collate([sample], self._config.data.ignore_label).to(self._device)
