"""Writes a nuScenes data set of a few random samples, small enough for a test: images, scans, labels, tables, infos."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Sequence

import cv2
import numpy as np

from tpvformer.config import DataConfig

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
VERSION = "v1.0-mini"


def write_tiny(root: Path, points: Sequence[int] = (50, 70, 60), cameras: Sequence[str] = CAMERAS) -> DataConfig:
    """A set with one sample for each entry of ``points``; returns the configuration that reads it."""
    rng = np.random.RandomState(0)
    infos, scans, labels = [], [], []
    for i, count in enumerate(points):
        token, scan_token = f"sample{i}", f"scan{i}"
        scan = Path("samples/LIDAR_TOP") / f"log__LIDAR_TOP__{i}.pcd.bin"
        cloud = rng.uniform(-60, 60, (count, 5)).astype(np.float32)
        cloud[:, 4] = np.arange(count) % 32  # the ring
        _write(root / scan, cloud.tobytes())
        label = Path("lidarseg") / VERSION / f"{scan_token}_lidarseg.bin"
        _write(root / label, rng.randint(0, 32, count).astype(np.uint8).tobytes())
        # The tables hold every channel and the sweeps too; neither may be mistaken for the key frame's scan.
        names = [(scan_token, scan, True), (f"sweep{i}", f"sweeps/LIDAR_TOP/s{i}.pcd.bin", False)]
        cams = {}
        for k, camera in enumerate(cameras):
            image = Path("samples") / camera / f"log__{camera}__{i}.jpg"
            _write(root / image, cv2.imencode(".jpg", rng.randint(0, 256, (45, 77, 3)).astype(np.uint8))[1].tobytes())
            names.append((f"image{i}{k}", image, True))
            angle = 2 * np.pi * k / len(cameras)
            cams[camera] = {
                "data_path": f"./somewhere/else/{image.as_posix()}",
                "sensor2lidar_rotation": np.array(
                    [[np.cos(angle), 0, -np.sin(angle)], [-np.sin(angle), 0, -np.cos(angle)], [0, -1, 0]]
                ),
                "sensor2lidar_translation": np.array([0.1 * k, 0.2, -0.3]),
                "cam_intrinsic": np.array([[60.0, 0, 38], [0, 60, 22], [0, 0, 1]]),
            }
        scans += [
            {"token": t, "sample_token": token, "is_key_frame": key, "filename": str(name)} for t, name, key in names
        ]
        labels.append({"token": scan_token, "sample_data_token": scan_token, "filename": label.as_posix()})
        infos.append({"token": token, "lidar_path": f"./somewhere/else/{scan.as_posix()}", "cams": cams, "sweeps": []})
    _write(root / VERSION / "sample_data.json", json.dumps(scans, indent=0).encode())
    _write(root / VERSION / "lidarseg.json", json.dumps(labels).encode())
    _write(root / "infos.pkl", pickle.dumps({"infos": infos, "metadata": {"version": VERSION}}, protocol=2))
    path = str(root / "infos.pkl")
    return DataConfig(root=str(root), version=VERSION, train_infos=path, val_infos=path, workers=0)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
