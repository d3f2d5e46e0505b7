"""The interpreter that has nuscenes-devkit (TPVFORMER_DEVKIT_PYTHON)."""

from __future__ import annotations

import os
import sys

import programs

PYTHON = os.environ.get("TPVFORMER_DEVKIT_PYTHON", sys.executable)


def has_devkit() -> bool:
    found = programs.run([PYTHON, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('nuscenes') is None)"])
    return found.returncode == 0
