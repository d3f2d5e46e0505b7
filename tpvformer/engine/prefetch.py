"""While a step computes, the next batch is already on its way to the device."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable, Iterable, Iterator, Optional, Tuple

import torch

from tpvformer.data.types import Batch
from tpvformer.engine.device.accelerator import transfer_runtime


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches in the same order, on ``device``.

    Where transfers and computation can overlap, the batch after the one handed out has been taken from ``batches`` and
    its transfer has begun; elsewhere a batch is taken when it is asked for.
    """
    lane = transfer_lane(device)
    if lane is None:
        for batch in batches:
            yield batch.to(device, non_blocking=True)
        return
    waiting: Optional[Tuple[Batch, Any]] = None
    for batch in batches:
        moved = lane.send(lambda batch=batch: batch.to(device, non_blocking=True))
        if waiting is not None:
            yield _receive(lane, *waiting)
        waiting = moved
    if waiting is not None:
        yield _receive(lane, *waiting)


def _receive(lane: Any, batch: Batch, arrival: Any) -> Batch:
    lane.receive(arrival, batch.tensors())
    return batch


class CopyStream:
    """A queue of the device for transfers alone, beside the one that computes."""

    def __init__(self, runtime: ModuleType, device: torch.device) -> None:
        self._runtime, self._device = runtime, device
        self._queue = runtime.Stream(device)

    def send(self, transfer: Callable[[], Any]) -> Tuple[Any, Any]:
        """Begin a transfer; its result, which must not be used yet, and a sign that appears when it has arrived."""
        with self._runtime.stream(self._queue):
            result = transfer()
            return result, self._queue.record_event()

    def receive(self, arrival: Any, tensors: Iterable[torch.Tensor]) -> None:
        """What is computed from here on waits for ``arrival``, and the memory of the tensors outlives its use."""
        computing = self._runtime.current_stream(self._device)
        computing.wait_event(arrival)
        for tensor in tensors:
            tensor.record_stream(computing)


def transfer_lane(device: torch.device) -> Optional[CopyStream]:
    """A lane for this device; None where transfers do not overlap with computation."""
    runtime = transfer_runtime(device)
    return None if runtime is None else CopyStream(runtime, device)
