"""The profiler's names; its schedule takes its numbers in another order than PyTorch's, so positions are refused."""

from __future__ import annotations

import contextlib
import enum
import os
from typing import Any, Iterator

from torch_npu import calls


class ProfilerActivity(enum.Enum):
    CPU = 1
    NPU = 2


def schedule(*, wait: int, active: int, warmup: int = 0, repeat: int = 0, skip_first: int = 0) -> Any:
    calls.append(("profiler.schedule", wait, warmup, active, repeat))
    return (wait, warmup, active, repeat)


def tensorboard_trace_handler(dir_name: str, worker_name: Any = None, analyse_flag: bool = True) -> Any:
    return dir_name


class _Profile:
    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> None:
        self.steps += 1


@contextlib.contextmanager
def profile(*, activities: Any, schedule: Any, on_trace_ready: str, **_: Any) -> Iterator[_Profile]:
    made = _Profile()
    yield made
    wait, warmup, active, _ = schedule
    if made.steps >= wait + warmup + active:
        os.makedirs(on_trace_ready, exist_ok=True)
        with open(os.path.join(on_trace_ready, "standin_ascend_pt.json"), "w") as file:
            file.write("{}\n")
    calls.append(("profiler", tuple(activities), made.steps))
