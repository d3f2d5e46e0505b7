"""Runs where nuscenes-devkit is installed: does the devkit load a data set and accept a prediction for it?

    python tests/support/devkit_check.py DATA_ROOT

Loads the tables, validates and scores two predictions for mini_val (the labels themselves, and the labels with a tenth
exchanged), and compares the devkit's projection of a sweep onto an image with the info file's matrices, and its boxes
and velocities with the info file's. Prints one line a check; the exit status is 1 if one fails. Needs nuscenes-devkit
1.2.0 and what it imports, nothing of this package.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict

import numpy as np
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.eval.lidarseg.evaluate import LidarSegEval
from nuscenes.eval.lidarseg.utils import LidarsegClassMapper
from nuscenes.eval.lidarseg.validate_submission import validate_submission
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion

SPLIT = "mini_val"
SPLIT_SCENES = ("scene-0103", "scene-0916")
failures = 0


def check(what: str, ok: bool, detail: object = "") -> None:
    global failures
    failures += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what} {detail}".rstrip())


def predict(nusc: NuScenes, root: Path, results: Path, exchanged: float) -> None:
    """Write the labels as a prediction for the split, a share of them exchanged."""
    rng = np.random.default_rng(0)
    mapper = LidarsegClassMapper(nusc)
    folder = results / "lidarseg" / SPLIT
    folder.mkdir(parents=True)
    (results / SPLIT).mkdir()
    modalities = {f"use_{name}": name == "camera" for name in ("camera", "lidar", "radar", "map", "external")}
    (results / SPLIT / "submission.json").write_text(json.dumps({"meta": modalities}))
    scenes = {row["token"]: row["name"] for row in nusc.scene}
    for sample in nusc.sample:
        if scenes[sample["scene_token"]] in SPLIT_SCENES:
            token = sample["data"]["LIDAR_TOP"]
            raw = np.fromfile(root / nusc.get("lidarseg", token)["filename"], np.uint8)
            classes = mapper.convert_label(raw).astype(np.uint8)
            classes[classes == 0] = 1  # the submission format has no class 0
            wrong = rng.random(len(classes)) < exchanged
            classes[wrong] = rng.integers(1, 17, wrong.sum())
            classes.tofile(folder / f"{token}_lidarseg.bin")


def check_evaluation(nusc: NuScenes, root: Path) -> None:
    for exchanged, low, high in ((0.0, 1.0, 1.0), (0.1, 0.3, 0.9)):
        with tempfile.TemporaryDirectory() as folder:
            predict(nusc, root, Path(folder), exchanged)
            log = io.StringIO()
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                validate_submission(nusc, folder, SPLIT, verbose=True)
                scores = LidarSegEval(nusc, folder, SPLIT, verbose=False).evaluate()
            check(f"validate_submission takes labels with {exchanged:.0%} exchanged", "validated" in log.getvalue())
            check("LidarSegEval scores it", low <= scores["miou"] <= high, f"mIoU {scores['miou']:.4f}")


def check_projection(nusc: NuScenes, root: Path, info: Dict[str, Any]) -> None:
    sample = nusc.get("sample", info["token"])
    points = np.fromfile(root / info["lidar_path"], np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
    for channel, camera in info["cams"].items():
        theirs, _, image = nusc.explorer.map_pointcloud_to_image(sample["data"]["LIDAR_TOP"], sample["data"][channel])
        local = (points - camera["sensor2lidar_translation"]) @ camera["sensor2lidar_rotation"]
        pixels = local @ camera["cam_intrinsic"].T
        uv = pixels[:, :2] / np.where(local[:, 2:] > 0, local[:, 2:], 1)
        width, height = image.size
        inside = (local[:, 2] > 1) & (uv > 1).all(1) & (uv[:, 0] < width - 1) & (uv[:, 1] < height - 1)
        # the devkit computes in float32: a point on the border may be in for one and out for the other
        apart = np.linalg.norm(uv[inside][:, None] - theirs[:2].T[None], axis=2)
        worst = max(np.sort(apart.min(0))[:-2].max(), np.sort(apart.min(1))[:-2].max())
        check(f"{channel}: {theirs.shape[1]} points", worst < 0.1, f"differ by at most {worst:.3f} px")


def check_boxes(nusc: NuScenes, token: str) -> None:
    path, boxes, _ = nusc.get_sample_data(nusc.get("sample", token)["data"]["LIDAR_TOP"])
    points = LidarPointCloud.from_file(path).points[:3]
    counts = [(points_in_box(box, points, 1.05).sum(), nusc.get("sample_annotation", box.token)) for box in boxes]
    good = sum(found >= 0.9 * row["num_lidar_pts"] for found, row in counts)
    check("boxes hold the lidar points they count", good >= 0.95 * len(boxes) > 0, f"{good} of {len(boxes)}")


def check_infos(nusc: NuScenes, info: Dict[str, Any]) -> None:
    """The boxes of the info file are the devkit's, written as mmdetection3d 0.x writes them."""
    _, boxes, _ = nusc.get_sample_data(nusc.get("sample", info["token"])["data"]["LIDAR_TOP"])
    rows = [[*box.center, *box.wlh, -box.orientation.yaw_pitch_roll[0] - np.pi / 2] for box in boxes]
    apart = np.abs(np.array(rows) - info["gt_boxes"])
    apart[:, 6] = np.minimum(apart[:, 6], 2 * np.pi - apart[:, 6])
    check(f"the infos' {len(rows)} boxes are the devkit's", apart.max() < 1e-6, f"differ by at most {apart.max():.1e}")
    turns = [Quaternion(info[f"{name}_rotation"]).rotation_matrix for name in ("ego2global", "lidar2ego")]
    theirs = np.array([[*nusc.box_velocity(box.token)[:2], 0] for box in boxes]) @ turns[0] @ turns[1]
    unknown = np.isnan(theirs[:, 0])
    check("velocities are unknown for the same", bool((np.isnan(info["gt_velocity"][:, 0]) == unknown).all()))
    worst = np.abs(theirs[~unknown, :2] - info["gt_velocity"][~unknown]).max()
    check(f"{(~unknown).sum()} velocities are the devkit's", worst < 1e-5, f"differ by at most {worst:.1e} m/s")
    names = [category_to_detection_name(box.name) for box in boxes]
    check("so are the classes", names == list(info["gt_names"]))


def main(folder: str) -> int:
    root = Path(folder)
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        nusc = NuScenes("v1.0-mini", folder, verbose=True)
    loaded = ", ".join(f"{len(getattr(nusc, name))} {name}" for name in ("scene", "sample", "sample_data", "lidarseg"))
    check("NuScenes loads the tables:", len(nusc.sample) > 0, loaded)
    check_evaluation(nusc, root)
    with (root / "nuscenes_infos_val.pkl").open("rb") as file:
        info = pickle.load(file)["infos"][-1]  # noqa: S301 - a file that this test suite has just written
    check_projection(nusc, root, info)
    check_boxes(nusc, info["token"])
    check_infos(nusc, info)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
