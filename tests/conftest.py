"""Fixtures that several files of tests use."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Iterator, List

import pytest
from programs import Program, Start

# before PyTorch is imported: several test processes share the cores, and a thread that waits leaves its core to them
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch  # noqa: E402

# A job that a shell starts in the background ignores SIGINT, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SUITE = os.getpid()


def end(number: int, _: object) -> None:
    """Told to end, the suite ends what it started, as on Ctrl-C; a fork of it just ends."""
    if os.getpid() == SUITE:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, end)

# the files that take longest, one to three minutes each, longest first
SLOW_FILES = (
    "faults/test_killed.py", "faults/test_ctrl_c.py", "npu/test_launch_npu.py", "project/test_snippets.py",
    "engine/distributed/test_multi_node.py", "engine/distributed/test_distributed.py", "commands/test_launchers.py",
    "engine/metrics/test_dense_training.py", "faults/test_config_values.py", "npu/test_npu.py",
    "project/test_benchmark_scripts.py", "engine/test_compile.py", "engine/test_warm.py",
    "engine/foreign/test_own_model.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Move the slow files to the front: workers take files in this order, and none begins a long file at the end."""
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: several test processes with as many threads as cores wait for each other, five times as
    long in test_model.py."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def quick(one_thread: None) -> Iterator[None]:
    """Plain operations, nothing to compile, on one thread: the quickest way through tiny tensors on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPVFORMER_OPS", "reference")
        yield


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts programs, none of which outlives the test."""
    with contextlib.ExitStack() as stack:
        yield lambda command, **options: stack.enter_context(Program(command, **options))
