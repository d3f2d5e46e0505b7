"""Runs the stand-in for somebody's project, tests/fork/checkout, under ``tpvformer run``, and reads what it wrote."""

from __future__ import annotations

import json
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import programs
import torch
from engine_tools import ROOT
from torch import Tensor

CHECKOUT = ROOT / "tests/fork/checkout"
SITE = ROOT / "tests/fork/site"  # a small mmcv of the tests'
MMCV = [] if find_spec("mmcv") else [SITE]  # the real one, where it is installed
SCRIPT = CHECKOUT / "train.py"


def write_tables(root: Path, frames: int = 4) -> Path:
    """The five tables of nuScenes that such projects read: a key frame and a sweep of each frame's lidar; a camera."""
    sensors = [
        {"token": "s0", "channel": "LIDAR_TOP", "modality": "lidar"},
        {"token": "s1", "channel": "CAM_FRONT", "modality": "camera"},
    ]
    mounted = [{"token": f"c{i}", "sensor_token": f"s{i}", "translation": [0, 0, 0]} for i in (0, 1)]
    records, labels = [], []
    for i in range(frames):
        for token, sensor, key in ((f"scan{i}", "c0", True), (f"sweep{i}", "c0", False), (f"image{i}", "c1", True)):
            records.append({
                "token": token, "sample_token": f"sample{i}", "calibrated_sensor_token": sensor, "is_key_frame": key,
                "filename": f"samples/{token}.bin",
            })  # fmt: skip
        labels.append({"token": f"scan{i}", "sample_data_token": f"scan{i}", "filename": f"lidarseg/scan{i}.bin"})
    tables = {
        "sensor": sensors, "calibrated_sensor": mounted, "sample_data": records, "lidarseg": labels,
        "sample": [{"token": f"sample{i}", "scene_token": "scene"} for i in range(frames)],
    }  # fmt: skip
    (root / "v1.0-mini").mkdir(parents=True)
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    return root


def free_port() -> int:
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


def start(
    options: Sequence[str], arguments: Sequence[str], paths: Sequence[Path] = (), python: str = sys.executable,
    script: Path = SCRIPT, cwd: Optional[Path] = None, **extra: str,
) -> programs.Done:  # fmt: skip
    """``tpvformer run OPTIONS train.py ARGUMENTS`` with mmcv found in ``paths``."""
    folders = os.pathsep.join(str(path) for path in (*paths, ROOT, ROOT / "tests/support"))
    env = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1", "TPVFORMER_OPS": "reference"}
    env.update({"FORK_PORT": str(free_port()), **extra})
    command = [python, "-m", "tpvformer", "run", *options, str(script), *arguments]
    return programs.run(command, env=env, cwd=cwd, seconds=600)


def results(folder: Path) -> List[Dict[str, Any]]:
    """What each process wrote."""
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("rank*.pth"))]


def largest_gap(ours: Any, theirs: Any) -> float:
    """The largest difference of tensors, relative to the largest value of each."""
    if isinstance(ours, Tensor):
        return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
    assert ours.keys() == theirs.keys()
    return max(largest_gap(ours[name], theirs[name]) for name in ours)
