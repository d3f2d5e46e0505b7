"""Batches on their way to the device: one ahead, in order, each waited for before it is read."""

from __future__ import annotations

from typing import Any, Callable, Iterator, List, Tuple

import pytest
import torch
from engine_tools import CPU, POINTS, tiny_config, val_loader
from tiny_nuscenes import write_tiny

from tpvformer.data.types import Batch
from tpvformer.engine import prefetch


@pytest.fixture(scope="module")
def batches(tmp_path_factory) -> List[Batch]:
    return list(val_loader(tiny_config(write_tiny(tmp_path_factory.mktemp("set"), POINTS))))


class Lane:
    """Stands in for a device's queue: notes what happens, in order."""

    def __init__(self) -> None:
        self.events: List[str] = []

    def send(self, transfer: Callable[[], Any]) -> Tuple[Any, Any]:
        batch = transfer()
        self.events.append(f"send {batch.tokens[0]}")
        return batch, batch.tokens[0]

    def receive(self, arrival: Any, tensors: List[torch.Tensor]) -> None:
        self.events.append(f"receive {arrival}")
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors) and len(tensors) > 8


def noting(batches: List[Batch], events: List[str]) -> Iterator[Batch]:
    for batch in batches:
        events.append(f"load {batch.tokens[0]}")
        yield batch


def test_the_next_batch_travels_while_one_is_used(batches: List[Batch], monkeypatch) -> None:
    lane = Lane()
    monkeypatch.setattr(prefetch, "transfer_lane", lambda device: lane)
    got = []
    for batch in prefetch.on_device(noting(batches[:3], lane.events), CPU):
        lane.events.append(f"use {batch.tokens[0]}")
        got += batch.tokens
    a, b, c = (batch.tokens[0] for batch in batches[:3])
    assert got == [a, b, c]
    assert lane.events == [
        f"load {a}", f"send {a}", f"load {b}", f"send {b}", f"receive {a}", f"use {a}",
        f"load {c}", f"send {c}", f"receive {b}", f"use {b}", f"receive {c}", f"use {c}",
    ]  # fmt: skip


def test_a_processor_takes_batches_as_they_are_asked_for(batches: List[Batch]) -> None:
    events: List[str] = []
    stream = prefetch.on_device(noting(batches, events), CPU)
    first = next(stream)
    assert events == [f"load {first.tokens[0]}"]
    assert first.images.data_ptr() == batches[0].images.data_ptr()  # nothing is copied
    assert [batch.tokens for batch in stream] == [batch.tokens for batch in batches[1:]]


def test_nothing_is_nothing(monkeypatch) -> None:
    assert list(prefetch.on_device([], CPU)) == []
    monkeypatch.setattr(prefetch, "transfer_lane", lambda device: Lane())
    assert list(prefetch.on_device([], CPU)) == []
