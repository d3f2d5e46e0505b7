"""Boxes of nuScenes' tables, made to move, and info files that hold them in the layouts of several tools."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np

from tpvformer.data.detection.boxes import ATTRIBUTES, DETECTION_CLASSES, Boxes
from tpvformer.data.nuscenes.infos.write import write_infos
from tpvformer.labels import RAW_NAMES
from tpvformer.untrusted.pickle import load_pickle

VERSION = "v1.0-mini"
Row = Dict[str, Any]
MODERN = (
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone",
    "barrier",
)  # fmt: skip  # the numbers of mmdetection3d 1.x
BOX_LAYOUTS = ("before 1.0", "from 1.0", "nine columns", "instances", "bevdepth")


def table(root: Path, name: str) -> List[Row]:
    return json.loads((root / VERSION / f"{name}.json").read_text())


def edit_table(root: Path, name: str, change: Callable[[List[Row]], Any]) -> None:
    rows = table(root, name)
    change(rows)
    (root / VERSION / f"{name}.json").write_text(json.dumps(rows))


def stir(root: Path, seed: int = 0) -> None:
    """Move, turn and count the annotated objects of a set at random, and give each category to some."""
    rng = np.random.RandomState(seed)
    categories = table(root, "category")
    attributes = [row["token"] for row in table(root, "attribute")]

    def instances(rows: List[Row]) -> None:
        for i, row in enumerate(rows[::2]):
            row["category_token"] = categories[(i + seed) % len(categories)]["token"]

    def annotations(rows: List[Row]) -> None:
        for row in rows:
            row["translation"] = [float(x + d) for x, d in zip(row["translation"], rng.uniform(-2, 2, 3))]
            turn = rng.normal(size=4) * [1, 0.02, 0.02, 1]
            row["rotation"] = (turn / np.linalg.norm(turn)).tolist()
            row["num_lidar_pts"], row["num_radar_pts"] = int(rng.randint(0, 5)), int(rng.randint(0, 3))
            row["attribute_tokens"] = [attributes[rng.randint(8)]] if rng.randint(3) else []

    edit_table(root, "instance", instances)
    edit_table(root, "sample_annotation", annotations)


def infos_of(root: Path, out: Path, kind: str = "pkl") -> Path:
    """The info file that ``tpvformer data infos`` writes of the whole set."""
    (root / VERSION / "splits.json").write_text(json.dumps({"all": [row["name"] for row in table(root, "scene")]}))
    out.mkdir(exist_ok=True)
    list(write_infos(root, print, VERSION, ["all"], out, (kind,)))
    return out / f"nuscenes_infos_all.{kind}"


def quaternion_matrix(turn: List[float]) -> np.ndarray:
    """The rotation of a quaternion, by its product with each axis, q v q*."""
    w, x, y, z = np.asarray(turn) / np.linalg.norm(turn)
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    right = np.array([[w, x, y, z], [-x, w, -z, y], [-y, z, w, -x], [-z, -y, x, w]])
    return (left @ right)[1:, 1:]


def rigid(row: Row) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = quaternion_matrix(row["rotation"]), row["translation"]
    return made


def lidar_pose(root: Path, sample: str) -> np.ndarray:
    """The lidar's pose in the global frame at a key frame, (4, 4)."""
    (shot,) = [
        row
        for row in table(root, "sample_data")
        if row["sample_token"] == sample and row["is_key_frame"] and "/LIDAR_TOP/" in row["filename"]
    ]
    poses = {row["token"]: row for name in ("ego_pose", "calibrated_sensor") for row in table(root, name)}
    return rigid(poses[shot["ego_pose_token"]]) @ rigid(poses[shot["calibrated_sensor_token"]])


def plain_rows(root: Path, sample: str) -> List[Row]:
    """The annotations of a sample, one by one as the specification says: names, global velocity, and the lidar frame
    in ``box`` (x, y, z, l, w, h, yaw) and ``flow`` (vx, vy)."""
    rows = {row["token"]: row for row in table(root, "sample_annotation")}
    times = {row["token"]: row["timestamp"] / 1e6 for row in table(root, "sample")}
    names = {row["token"]: row["name"] for name in ("category", "attribute") for row in table(root, name)}
    category = {row["token"]: names[row["category_token"]] for row in table(root, "instance")}
    back = np.linalg.inv(lidar_pose(root, sample))
    made = []
    for row in rows.values():
        if row["sample_token"] != sample:
            continue
        first, last = rows.get(row["prev"], row), rows.get(row["next"], row)
        seconds = times[last["sample_token"]] - times[first["sample_token"]]
        limit = 3.0 if row["prev"] and row["next"] else 1.5
        velocity = np.full(3, np.nan)
        if first is not last and seconds <= limit:
            velocity = (np.array(last["translation"]) - first["translation"]) / seconds
        axis = back[:3, :3] @ quaternion_matrix(row["rotation"])[:, 0]
        centre = back @ [*row["translation"], 1]
        width, length, height = row["size"]
        box = [*centre[:3], length, width, height, np.arctan2(axis[1], axis[0])]
        attribute = names[row["attribute_tokens"][0]] if row["attribute_tokens"] else ""
        flow = (back[:3, :3] @ velocity)[:2]
        made.append(
            {**row, "category_name": category[row["instance_token"]], "velocity": velocity, "box": np.array(box),
             "flow": flow, "attribute": attribute}
        )  # fmt: skip
    return made


def modern_name(category: str) -> str:
    """The name that mmdetection3d gives a category."""
    from tpvformer.data.nuscenes.infos.pickle_file import box_name

    return box_name(RAW_NAMES.index(category))


def plain_boxes(root: Path, sample: str) -> Boxes:
    """The boxes that reading must give."""
    rows = [row for row in plain_rows(root, sample) if _label(row["category_name"]) >= 0]
    boxes = np.array([row["box"] for row in rows]).reshape(-1, 7)
    return Boxes(
        boxes[:, :3],
        boxes[:, 3:6],
        boxes[:, 6],
        np.array([row["flow"] for row in rows]).reshape(-1, 2),
        np.array([_label(row["category_name"]) for row in rows], np.int64),
        points=np.array([row["num_lidar_pts"] + row["num_radar_pts"] for row in rows], np.int64),
        attributes=np.array([ATTRIBUTES.index(r["attribute"]) if r["attribute"] else -1 for r in rows], np.int64),
    )


def _label(category: str) -> int:
    if category == "static_object.bicycle_rack":
        return len(DETECTION_CLASSES)
    name = modern_name(category)
    return DETECTION_CLASSES.index(name) if name in DETECTION_CLASSES else -1


def agree(found: Boxes, wanted: Boxes, tolerance: float = 2e-4) -> None:
    """Assert that two sets of boxes are equal, in the same order, but for rounding."""
    assert len(found) == len(wanted)
    for name in ("centres", "sizes", "velocities"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=0, atol=tolerance, err_msg=name)
    off = np.angle(np.exp(1j * (found.yaws - wanted.yaws)))
    assert np.abs(off).max(initial=0) < tolerance
    for name in ("labels", "points"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


def boxed_layout(root: Path, infos: Path, layout: str) -> Path:
    """The set's infos, as ``infos_of`` wrote them, with their boxes as a tool writes these; returns the file."""
    records = load_pickle(infos)["infos"]
    made = []
    for info in records:
        rows = plain_rows(root, info["token"])
        boxes = np.array([row["box"] for row in rows]).reshape(-1, 7)
        flow = np.array([row["flow"] for row in rows]).reshape(-1, 2)
        names = np.array([modern_name(row["category_name"]) for row in rows], "<U40")
        own = {k: v for k, v in info.items() if not k.startswith(("gt_", "num_", "valid"))}
        own["gt_names"] = names
        own["num_lidar_pts"] = np.array([row["num_lidar_pts"] for row in rows])
        own["num_radar_pts"] = np.array([row["num_radar_pts"] for row in rows])
        if layout == "before 1.0":
            own["gt_boxes"] = np.column_stack([boxes[:, [0, 1, 2, 4, 3, 5]], -boxes[:, 6] - np.pi / 2])
            own["gt_velocity"] = flow
        elif layout == "from 1.0":
            own["gt_boxes"], own["gt_velocity"] = boxes, flow
        elif layout == "nine columns":
            own["gt_boxes"] = np.column_stack([boxes, flow])
        elif layout == "instances":
            own = _modern(info, rows)
        else:
            own = _depth(info, rows)
        made.append(own)
    content: Any = {"infos": made}
    if layout == "instances":
        numbers = {name: i for i, name in enumerate(MODERN)}
        content = {"metainfo": {"categories": numbers}, "data_list": made}
    path = infos.with_name(f"{layout.replace(' ', '_')}.pkl")
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def _modern(info: Row, rows: List[Row]) -> Row:
    images = {}
    for name, camera in info["cams"].items():
        to_lidar = np.eye(4)
        to_lidar[:3, :3], to_lidar[:3, 3] = camera["sensor2lidar_rotation"], camera["sensor2lidar_translation"]
        images[name] = {
            "img_path": camera["data_path"],
            "cam2img": camera["cam_intrinsic"].tolist(),
            "lidar2cam": np.linalg.inv(to_lidar).tolist(),
        }
    mount, drive = (
        rigid({part: info[f"{name}_{part}"] for part in ("translation", "rotation")})
        for name in ("lidar2ego", "ego2global")
    )
    instances = []
    for row in rows:
        name = modern_name(row["category_name"])
        instances.append(
            {
                "bbox_3d": row["box"].tolist(),
                "bbox_label_3d": MODERN.index(name) if name in MODERN else -1,
                "velocity": row["flow"].tolist(),
                "num_lidar_pts": row["num_lidar_pts"],
                "num_radar_pts": row["num_radar_pts"],
            }
        )
    points = {"num_pts_feats": 5, "lidar_path": info["lidar_path"], "lidar2ego": mount.tolist()}
    return {
        "sample_idx": 0, "token": info["token"], "images": images, "lidar_points": points, "instances": instances,
        "ego2global": drive.tolist(),
    }  # fmt: skip


def _depth(info: Row, rows: List[Row]) -> Row:
    def pose(source: Row, name: str) -> Row:
        return {part: source[f"{name}_{part}"] for part in ("translation", "rotation")}

    cameras = {
        name: {
            "filename": camera["data_path"],
            "calibrated_sensor": {
                **pose(camera, "sensor2ego"), "camera_intrinsic": camera["cam_intrinsic"].tolist(),
            },
            "ego_pose": pose(camera, "ego2global"),
        }
        for name, camera in info["cams"].items()
    }  # fmt: skip
    lidar = {
        "filename": info["lidar_path"],
        "calibrated_sensor": pose(info, "lidar2ego"),
        "ego_pose": pose(info, "ego2global"),
    }
    keys = ("translation", "rotation", "size", "category_name", "num_lidar_pts", "num_radar_pts", "velocity")
    own = [{key: row[key] for key in keys} for row in rows]
    return {
        "sample_token": info["token"], "cam_infos": cameras, "lidar_infos": {"LIDAR_TOP": lidar}, "ann_infos": own,
    }  # fmt: skip
