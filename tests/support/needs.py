"""What some tests need of the machine: a mount of their own, an interpreter with nuscenes-devkit, a PyTorch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import programs
import pytest
import torch

# the interpreter that has nuscenes-devkit
PYTHON = os.environ.get("TPVFORMER_DEVKIT_PYTHON", sys.executable)
TESTS = Path(__file__).parents[1]
SITE = TESTS / "ascend" / "site"  # stand-ins for an NPU's packages
VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
needs_card = pytest.mark.skipif(VERSION < (2, 10), reason="PyTorch cannot be given a device by Python before 2.10")


def has_devkit() -> bool:
    find = "import importlib.util as u, sys; sys.exit(u.find_spec('nuscenes') is None)"
    return programs.run([PYTHON, "-c", find]).returncode == 0


def can_mount(folder: Path) -> bool:
    """File systems of a few MiB, in a namespace of their own."""
    return _runs("unshare", "-m", "mount", "-t", "tmpfs", "none", str(folder))


def can_unshare_network() -> bool:
    return _runs("unshare", "-n", "true")


def _runs(*command: str) -> bool:
    try:
        return programs.run(command).returncode == 0
    except FileNotFoundError:
        return False
