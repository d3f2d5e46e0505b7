"""Freed memory stays with the process on glibc, and asking for it elsewhere does no harm."""

from __future__ import annotations

import sys

import pytest

from tpvformer.engine.device import memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_glibc_takes_both_settings() -> None:
    assert memory.keep_freed_memory("cpu")


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_freed_memory.__wrapped__("cpu")


def test_a_process_that_trains_on_an_accelerator_is_left_alone() -> None:
    assert not memory.keep_freed_memory("meta")
