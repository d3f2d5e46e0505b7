"""The NPU's code against stand-ins for torch_npu and mx_driving that enforce the documented limits (tests/ascend).

Nothing here ran on an NPU. Stand-ins live in processes of their own: they change PyTorch for good.
"""

from __future__ import annotations

import os
import sys

import programs
import pytest
from engine_tools import ROOT, environment
from needs import SITE, TESTS, VERSION, needs_card

SDKS = ("6.0.0", "7.x", "26.x")


def run_cases(file: str, sdk: str, **extra: str) -> None:
    """All tests of a file in tests/ascend, in a process that finds the stand-ins."""
    path = os.pathsep.join(str(folder) for folder in (ROOT, TESTS, TESTS / "ascend", SITE))
    env = environment(PYTHONPATH=path, STANDIN_SDK=sdk, **extra)
    env.pop("TPVFORMER_OPS")
    strict = ["-W", "error::DeprecationWarning:mx_driving", "-W", "error:old:DeprecationWarning"]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--durations=3", *strict]
    done = programs.run([*command, str(TESTS / "ascend" / file)], env=env, cwd=ROOT, seconds=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@needs_card
@pytest.mark.parametrize("sdk", SDKS)
def test_training(sdk: str) -> None:
    run_cases("training_cases.py", sdk)


@needs_card
def test_engine() -> None:
    run_cases("engine_cases.py", "26.x")


@needs_card
def test_selfcheck() -> None:
    run_cases("selfcheck_cases.py", "26.x", STANDIN_IN_PLACE_FROM="100000")


@pytest.mark.parametrize("sdk", SDKS)
def test_operations(sdk: str) -> None:
    device = "npu" if VERSION >= (2, 10) else "cpu"
    run_cases("kernel_cases.py", sdk, STANDIN_DEVICE=device, STANDIN_IN_PLACE_FROM="0")
