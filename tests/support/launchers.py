"""The result block that launchers print, and waiting for other processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable, Dict

BLOCK = [
    "Final Performance images/sec",
    "E2E Training Duration sec",
    "TrainingTime for step(ms)",
    "Final Train Accuracy",
]


def block(output: str) -> Dict[str, str]:
    return dict(line.split(" : ") for line in output.splitlines() if line.split(" : ")[0] in BLOCK)


def keys(file: Path) -> Dict[str, str]:
    return dict(line.split(" = ") for line in file.read_text().splitlines())


def state(pid: object) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)
