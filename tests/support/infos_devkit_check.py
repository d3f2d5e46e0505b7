"""Runs where nuscenes-devkit is installed: are the infos what the devkit says of the same tables?

    python tests/support/infos_devkit_check.py DATA_ROOT VERSION INFOS_FOLDER SPLIT ...

Compares splits, files, times, poses, projections and sweeps of INFOS_FOLDER/nuscenes_infos_SPLIT.pkl with what the
devkit looks up and computes. Prints one line a check; the exit status is 1 if one fails. Needs nothing of this package.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import transform_matrix
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion

TOLERANCE = 1e-9
failures = 0


def check(what: str, ok: bool, detail: object = "") -> None:
    global failures
    failures += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what} {detail}".rstrip())


def matrix(row: Dict[str, Any], inverse: bool = False) -> np.ndarray:
    return transform_matrix(row["translation"], Quaternion(row["rotation"]), inverse=inverse)


def places(nusc: NuScenes, shot: Dict[str, Any]) -> List[Dict[str, Any]]:
    return [
        nusc.get("calibrated_sensor", shot["calibrated_sensor_token"]), nusc.get("ego_pose", shot["ego_pose_token"])
    ]  # fmt: skip


def apart(stored: Dict[str, Any], names: List[str], rows: List[Dict[str, Any]]) -> float:
    """The largest difference of the stored poses from the rows'."""
    return max(
        np.abs(np.subtract(stored[f"{name}_{part}"], row[part])).max()
        for name, row in zip(names, rows)
        for part in ("translation", "rotation")
    )


def check_split(nusc: NuScenes, infos: List[Dict[str, Any]], split: str) -> None:
    names = set(create_splits_scenes()[split])
    wanted = [s["token"] for s in nusc.sample if nusc.get("scene", s["scene_token"])["name"] in names]
    check(f"{split}: samples", [info["token"] for info in infos] == wanted, len(wanted))
    worst = {"poses": 0.0, "lidar2img": 0.0, "sweeps": 0.0}
    files, chains, sweeps = True, True, 0
    for info in infos:
        data = nusc.get("sample", info["token"])["data"]
        lidar = nusc.get("sample_data", data["LIDAR_TOP"])
        mount, drive = places(nusc, lidar)
        worst["poses"] = max(worst["poses"], apart(info, ["lidar2ego", "ego2global"], [mount, drive]))
        files &= info["lidar_path"] == lidar["filename"] and info["timestamp"] == lidar["timestamp"]
        files &= set(info["cams"]) == {c for c in data if c.startswith("CAM")}
        to_lidar = matrix(mount, inverse=True) @ matrix(drive, inverse=True)
        for channel, camera in info["cams"].items():
            shot = nusc.get("sample_data", data[channel])
            own = places(nusc, shot)
            worst["poses"] = max(worst["poses"], apart(camera, ["sensor2ego", "ego2global"], own))
            files &= camera["data_path"] == shot["filename"] and camera["timestamp"] == shot["timestamp"]
            files &= camera["sample_data_token"] == shot["token"]
            theirs, ours = np.eye(4), np.eye(4)
            theirs[:3, :3] = own[0]["camera_intrinsic"]
            theirs = theirs @ np.linalg.inv(to_lidar @ matrix(own[1]) @ matrix(own[0]))
            ours[:3, :3], ours[:3, 3] = camera["sensor2lidar_rotation"], camera["sensor2lidar_translation"]
            pixels = np.eye(4)
            pixels[:3, :3] = camera["cam_intrinsic"]
            # pixels times metres are in the hundreds and thousands: what the devkit's own arithmetic loses counts too
            worst["lidar2img"] = max(worst["lidar2img"], np.abs(pixels @ np.linalg.inv(ours) - theirs).max())
        shot = lidar
        for sweep in info["sweeps"]:
            shot = nusc.get("sample_data", shot["prev"])
            chains &= sweep["data_path"] == shot["filename"] and sweep["timestamp"] == shot["timestamp"]
            own = places(nusc, shot)
            worst["poses"] = max(worst["poses"], apart(sweep, ["sensor2ego", "ego2global"], own))
            between = to_lidar @ matrix(own[1]) @ matrix(own[0])
            difference = between[:3] - np.c_[sweep["sensor2lidar_rotation"], sweep["sensor2lidar_translation"]]
            worst["sweeps"] = max(worst["sweeps"], np.abs(difference).max())
            sweeps += 1
        chains &= len(info["sweeps"]) == 10 or not shot["prev"]
    check(f"{split}: files, times and tokens", files)
    check(f"{split}: sweeps are the ten files before, fewer only at a scene's start", chains, sweeps)
    for what, value in worst.items():
        check(f"{split}: {what}", value < TOLERANCE, f"differ by at most {value:.2e}")


def main(root: str, version: str, folder: str, *splits: str) -> int:
    nusc = NuScenes(version, root, verbose=False)
    for split in splits:
        with Path(folder, f"nuscenes_infos_{split}.pkl").open("rb") as file:
            infos = pickle.load(file)["infos"]  # noqa: S301 - a file that this test suite has just written
        check_split(nusc, infos, split)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
