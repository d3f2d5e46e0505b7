"""While a step computes, the next batch is already on its way to the device."""

from __future__ import annotations

from typing import Any, Iterable, Iterator, Optional, Tuple

import torch

from tpvformer.data.types import Batch

from .device import transfer_lane


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
