"""Fixtures that several files of tests use."""

from __future__ import annotations

from typing import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Plain operations, nothing to compile, on one thread: the quickest way through tiny tensors on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPVFORMER_OPS", "reference")
        yield
    torch.set_num_threads(threads)
