"""A tiny set with the tables that a submission needs, and a checker that shares nothing with the writer."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Dict, Sequence

import numpy as np
from engine_tools import tiny_config
from tiny_nuscenes import VERSION, write_tiny

from tpvformer.config import Config

META = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}


def write_set(root: Path, points: Sequence[int], scene: str = "scene-0103", version: str = VERSION) -> Config:
    """Samples of one official scene, in a table folder of that version; infos are named by every split."""
    data = write_tiny(root, points)
    (root / VERSION).rename(root / version)
    scenes = [{"token": "drive", "name": scene}]
    samples = [{"token": f"sample{i}", "scene_token": "drive"} for i in range(len(points))]
    for name, rows in (("scene", scenes), ("sample", samples)):
        (root / version / f"{name}.json").write_text(json.dumps(rows))
    if version == "v1.0-test":  # its labels are not published; the configuration goes on naming trainval
        (root / version / "lidarseg.json").unlink()
        version = "v1.0-trainval"
    return tiny_config(dataclasses.replace(data, version=version, test_infos=data.val_infos))


def checked(path: Path, name: str, points: Dict[str, int], meta: Dict[str, bool]) -> Dict[str, np.ndarray]:
    """The classes of each scan of the zip, after everything about it was looked at; ``points`` of each scan's token."""
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        files = {entry.filename: file.read(entry) for entry in file.infolist()}
        assert len(files) == len(file.infolist())
    assert json.loads(files.pop(f"{name}/submission.json")) == {"meta": meta}
    assert set(files) == {f"lidarseg/{name}/{token}_lidarseg.bin" for token in points}
    found = {}
    for token, count in points.items():
        classes = np.frombuffer(files[f"lidarseg/{name}/{token}_lidarseg.bin"], np.uint8)
        assert len(classes) == count
        assert classes.min() >= 1 and classes.max() <= 16
        found[token] = classes
    return found
