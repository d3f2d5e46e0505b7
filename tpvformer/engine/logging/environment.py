"""Describe a run or a measurement: date, command, hardware and versions."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from importlib import metadata
from typing import Any, Dict, Optional

import torch

from tpvformer.engine.device.accelerator import device_name
from tpvformer.runtime.cores import cores
from tpvformer.runtime.processor import read_processor

_VERSIONS = ("numba", "triton", "numpy", "opencv-python-headless", "simplejpeg")
_SETTINGS = ("TPVFORMER_OPS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


def environment_info(device: torch.device, program: str, past: float = 0.0) -> Dict[str, Any]:
    """Return date, command line, hardware and versions, for the head of a result.

    ``program`` is the command's name; the run began ``past`` seconds ago.
    """
    began = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=past)
    return {
        "date": began.strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"{program} {shlex.join(sys.argv[1:])}".strip(),
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "device": device_name(device),
        "processor": read_processor().name,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__, **{n: v for n, v in ((n, _version(n)) for n in _VERSIONS) if v}},
    }


def _version(package: str) -> Optional[str]:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
