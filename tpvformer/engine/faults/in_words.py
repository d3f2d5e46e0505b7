"""What ends a run from outside, said so that it helps: memory that ran out, a loader's worker that died."""

from __future__ import annotations

import contextlib
from typing import Callable, Generator

import torch

from tpvformer.config import Config

from ..device import fast_bf16, peak_memory_mib
from ..processor import mib


class RunEnded(RuntimeError):
    """The run cannot go on; the message says where, why, and what to change."""


@contextlib.contextmanager
def in_words(
    config: Config, precision: str, device: torch.device, doing: Callable[[], str]
) -> Generator[None, None, None]:
    """Turns running out of memory, or the death of a worker, into RunEnded; everything else passes.

    ``precision`` is the one that the model runs in, ``doing`` says what the run was at.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        text = " ".join(str(err).split())
        if isinstance(err, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text.lower():
            raise RunEnded(_memory(config, precision, device, doing(), text)) from err
        if "DataLoader worker" in text:
            raise RunEnded(_worker(config, doing(), text)) from err
        raise


def _memory(config: Config, precision: str, device: torch.device, doing: str, text: str) -> str:
    data, train = config.data, config.train
    advice = ["lower data.image_scale"]
    if train.recompute != "blocks":
        advice.insert(0, "set train.recompute=blocks")
    if precision == "fp32" and (device.type != "cpu" or fast_bf16(device).fast):
        advice.insert(0, "set train.precision=bf16")
    if data.batch_size > 1:
        advice.insert(0, "lower data.batch_size and raise train.accumulate by as much, which keeps the global batch")
    return (
        f"out of memory on {device} at {doing}: peak {mib(peak_memory_mib(device))}, {data.batch_size} samples a "
        f"batch, {train.accumulate} batches a step, {precision}, recompute {train.recompute or 'by default'}; "
        f"{', or '.join(advice)} ({text[:200]})"
    )


def _worker(config: Config, doing: str, text: str) -> str:
    return (
        f"a worker process of the loader died at {doing} ({text[:200]}); most often the machine has no memory left: "
        f"lower data.workers (now {config.data.workers}) or data.batch_size, and look at the kernel's log; the same "
        "command resumes from the newest checkpoint"
    )
