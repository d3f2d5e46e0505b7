"""Copy the next batch to the device while the current step computes."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable, Iterable, Iterator, Optional, Tuple

import torch

from tpvformer.data.types import Batch
from tpvformer.engine.device.accelerator import transfer_runtime


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the same batches in the same order, on ``device``.

    If copies can overlap with computation, the copy of the next batch starts before the current batch is yielded.
    Otherwise a batch is taken from ``batches`` when it is requested.
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
    """Copy tensors on a stream of their own, beside the stream that computes."""

    def __init__(self, runtime: ModuleType, device: torch.device) -> None:
        self._runtime, self._device = runtime, device
        self._queue = runtime.Stream(device)

    def send(self, transfer: Callable[[], Any]) -> Tuple[Any, Any]:
        """Start a copy; return its result, which must not be used yet, and the event that marks its completion."""
        with self._runtime.stream(self._queue):
            result = transfer()
            return result, self._queue.record_event()

    def receive(self, arrival: Any, tensors: Iterable[torch.Tensor]) -> None:
        """Make the current stream wait for ``arrival``, and keep the tensors' memory until that stream has used it."""
        computing = self._runtime.current_stream(self._device)
        computing.wait_event(arrival)
        for tensor in tensors:
            tensor.record_stream(computing)


def transfer_lane(device: torch.device) -> Optional[CopyStream]:
    """Return a copy stream for this device; None if copies do not overlap with computation."""
    runtime = transfer_runtime(device)
    return None if runtime is None else CopyStream(runtime, device)
