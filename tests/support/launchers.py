"""The result block that launchers print."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

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
