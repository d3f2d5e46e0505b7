"""Fixtures that several files of tests use."""

from __future__ import annotations

import signal
from typing import Iterator

import pytest
import torch

# A job that a shell starts in the background ignores SIGINT, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Plain operations, nothing to compile, on one thread: the quickest way through tiny tensors on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPVFORMER_OPS", "reference")
        yield
    torch.set_num_threads(threads)
