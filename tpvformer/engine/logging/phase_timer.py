"""Time the parts of a training step."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tpvformer.engine.device.accelerator import synchronize
from tpvformer.model import TPVFormer


class Elapsed(NamedTuple):
    """Hold seconds of wall time, and of this process's CPU time over all threads."""

    wall: float
    cpu: float


# in order of time; "decode" only if real data is read; "aggregator" with the detection head, where there is one
FORWARD = ("transfer", "backbone", "neck", "encoder", "aggregator")
BACKWARD = ("backward aggregator", "backward encoder", "backward images")
PARTS = ("decode", *FORWARD, "loss", *BACKWARD, "optimiser")


class PhaseTimer:
    """Measure the time of each part. A part without an end, as in a compiled model, counts to the next one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.spent: Dict[str, Elapsed] = {}
        self._last = self._read()

    def _read(self) -> Elapsed:
        synchronize(self._device)
        return Elapsed(time.perf_counter(), time.process_time())

    def end(self, part: str) -> None:
        """End ``part``, which began at the last call; a second call for the same part does nothing."""
        if part in self.spent:
            return
        now = self._read()
        self.spent[part] = Elapsed(now.wall - self._last.wall, now.cpu - self._last.cpu)
        self._last = now


class Watch:
    """Hook a model to end its parts, forward and backward, in ``marks`` while that is set."""

    def __init__(self, model: TPVFormer) -> None:
        self.marks: Optional[PhaseTimer] = None
        self._handles: List[RemovableHandle] = [
            model.register_forward_pre_hook(lambda *_: self._end("transfer")),
            model.neck.register_forward_pre_hook(lambda *_: self._end("backbone")),
            model.encoder.register_forward_pre_hook(self._into("neck", "backward encoder")),
            model.aggregator.register_forward_pre_hook(self._into("encoder", "backward aggregator")),
            model.register_forward_hook(lambda *_: self._end("aggregator")),
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _end(self, part: str) -> None:
        if self.marks is not None:
            self.marks.end(part)

    def _into(self, before: str, behind: str) -> Any:
        """Return a hook for a module's inputs: it ends ``before``, and ends ``behind`` in the backward pass."""

        def hook(_: Any, inputs: Any) -> None:
            self._end(before)
            if self.marks is not None:
                for tensor in _tensors(inputs):
                    if tensor.requires_grad:
                        tensor.register_hook(lambda _: self._end(behind))

        return hook


def _tensors(values: Iterable[Any]) -> List[Tensor]:
    """Return all tensors in nested lists and tuples."""
    found: List[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found
