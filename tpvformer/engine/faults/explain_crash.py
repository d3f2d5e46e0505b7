"""Explain crashes with outside causes in one message: no memory left, a dead worker, a dead process."""

from __future__ import annotations

import contextlib
from typing import Callable, Generator

import torch

from tpvformer.config import Config
from tpvformer.engine.device.accelerator import fast_bf16, peak_memory_mib
from tpvformer.errors import RunEnded
from tpvformer.runtime.processor import mib

# PyTorch's messages about a peer process that ended, and about dead workers and failed transfers of batches
_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
_UNUSED = "Expected to have finished reduction"
_WORKER = ("DataLoader worker", "ancdata", "shared memory", "Too many open files")


@contextlib.contextmanager
def explain_crash(
    config: Config, precision: str, device: torch.device, doing: Callable[[], str], own: bool = False
) -> Generator[None, None, None]:
    """Convert out-of-memory errors and dead workers or processes into RunEnded; other errors pass.

    ``precision`` is the one in use; ``doing`` returns what the run is doing. ``own``: the model is a checkout's own,
    which may have parameters that a step does not use, and has no other precision and nothing to recompute.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        text = " ".join(str(err).split())
        if isinstance(err, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text.lower():
            raise RunEnded(_memory(config, precision, device, doing(), text, own)) from err
        if own and _UNUSED in text:
            raise RunEnded(
                f"the model has parameters that a step does not use, at {doing()}; in several processes its "
                "configuration needs find_unused_parameters = True"
            ) from err
        if any(words in text for words in _WORKER):
            raise RunEnded(_worker(config, doing(), text)) from err
        if any(words in text for words in _PEER):
            raise RunEnded(
                f"another process of this run has ended, as this one found at {doing()} ({text[:200]}); its own output "
                "says why; the same command resumes from the newest checkpoint"
            ) from err
        raise


def _memory(config: Config, precision: str, device: torch.device, doing: str, text: str, own: bool) -> str:
    data, train = config.data, config.train
    advice = ["lower data.image_scale"]
    if not own and train.recompute != "blocks":
        advice.insert(0, "set train.recompute=blocks")
    if not own and precision == "fp32" and (device.type != "cpu" or fast_bf16(device).fast):
        advice.insert(0, "set train.precision=bf16")
    if data.batch_size > 1:
        advice.insert(0, "lower data.batch_size and raise train.accumulate by as much, which keeps the global batch")
    return (
        f"out of memory on {device} at {doing}: peak {mib(peak_memory_mib(device))}, {data.batch_size} samples a "
        f"batch, {train.accumulate} batches a step, {precision}, recompute {train.recompute or 'by default'}; "
        f"{', or '.join(advice)} ({text[:200]})"
    )


def _worker(config: Config, doing: str, text: str) -> str:
    asked = config.data.workers
    now = "chosen by the run, as its log says" if asked is None else f"now {asked}"
    if "Bus error" in text or "shared memory" in text:
        return (
            f"shared memory ran out at {doing} ({text[:200]}): /dev/shm is full; give it more (docker run "
            f"--shm-size=16g), or lower data.workers ({now}); the same command resumes from the "
            "newest checkpoint"
        )
    if "ancdata" in text or "Too many open files" in text:
        return (
            f"open files ran out at {doing} ({text[:200]}); raise the limit (ulimit -n) or lower data.workers "
            f"({now}); the same command resumes from the newest checkpoint"
        )
    return (
        f"a worker process of the loader died at {doing} ({text[:200]}); most often the machine has no memory left: "
        f"lower data.workers ({now}) or data.batch_size, and look at the kernel's log; the same "
        "command resumes from the newest checkpoint"
    )
