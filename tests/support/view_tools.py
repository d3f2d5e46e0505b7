"""Archives as tpvformer predict writes them, for the tests of the viewer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Tuple

import cv2
import numpy as np

from tpvformer.labels import class_names

Arrays = Dict[str, np.ndarray]


def archive(
    grid: Tuple[int, int, int] = (20, 20, 4), cameras: int = 2, size: Tuple[int, int] = (64, 36), **changes: Any
) -> Arrays:
    """A lidar segmentation model's frame: 16 classes in rows, each over the whole width; true labels differ in one row
    of cars, which is predicted as barrier."""
    rng = np.random.RandomState(0)
    truth = np.zeros(grid, np.uint8)
    truth[:, :, 0] = 1 + np.arange(grid[1]) * 16 // grid[1]
    voxels = truth.copy()
    voxels[voxels == 4] = 1
    voxels[:, :, 1:] = 15  # in the air, where nobody asked
    cells = np.argwhere(truth > 0)
    low, high = np.array([-10.0, -10, -2]), np.array([10.0, 10, 2])
    points = (low + (cells + 0.5) * (high - low) / grid).astype(np.float32)
    lidar2img = np.array([[50.0, 32, 0, 0], [0, 18, -50, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # looks along y
    arrays: Arrays = {
        "token": np.array("frame"),
        "scene": np.array("street"),
        "number": np.array(0),
        "voxels": voxels,
        "confidence": rng.uniform(0.2, 1, grid).astype(np.float16),
        "pc_range": np.array([*low, *high]),
        "frame": np.array("lidar"),
        "class_names": np.array(class_names("nuscenes")),
        "points": points,
        "point_labels": voxels[tuple(cells.T)],
        "true_point_labels": truth[tuple(cells.T)],
        "true_voxels": truth,
        "scanned": cells.astype(np.uint16),
        "lidar2grid": np.eye(4),
        "camera_names": np.array(["CAM_FRONT", "CAM_BACK", *(f"more{i}" for i in range(cameras - 2))][:cameras]),
        "lidar2img": np.stack([lidar2img] * cameras),
        "image_sizes": np.array([size] * cameras),
    }
    for i in range(cameras):
        picture = cv2.GaussianBlur(rng.randint(0, 256, (size[1], size[0], 3)).astype(np.uint8), (9, 9), 0)
        arrays[f"image_{i}"] = cv2.imencode(".jpg", picture)[1].ravel()
    arrays.update({name: np.asarray(value) for name, value in changes.items()})
    return arrays


def save(path: Path, arrays: Arrays) -> Path:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # ty: ignore[invalid-argument-type]  # its stub takes them for options
    return path


def read_ply(path: Path) -> Any:
    """The vertices and faces of a file that viz/ply.py wrote."""
    head, body = path.read_bytes().split(b"end_header\n", 1)
    counts: Dict[bytes, int] = {name: int(n) for name, n in re.findall(rb"element (\w+) (\d+)", head)}
    vertex = np.dtype([("place", "<f4", 3), ("color", "u1", 3), ("label", "u1")])
    vertices = np.frombuffer(body, vertex, counts[b"vertex"])
    face = np.dtype([("count", "u1"), ("corner", "<i4", 4)])
    faces = np.frombuffer(body, face, counts.get(b"face", 0), vertices.nbytes)
    assert vertices.nbytes + faces.nbytes == len(body)
    return vertices, faces
