"""Random boxes of a few samples: as Boxes, as nuScenes' tables, and as the detection task's result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np

from tpvformer.data.detection.boxes import ATTRIBUTES, BICYCLE_RACK, CATEGORY_LABELS, DETECTION_CLASSES, Boxes

META = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}
SIZES = np.array([4.5, 1.9, 1.7])
_RAW = {label: raw for raw, label in reversed(CATEGORY_LABELS.items())}


class Place(NamedTuple):
    """A sample of the tables, in the order of its scene."""

    token: str
    scene: str
    seconds: float
    ego: np.ndarray  # (3,) metres, global


def places(root: Path, version: str, scenes: Sequence[str], whole: bool = True) -> List[Place]:
    """The samples of these scenes; ``whole``: the ego poses in the tables are moved to whole metres."""
    folder = root / version
    rows = {n: json.loads((folder / f"{n}.json").read_text()) for n in ("scene", "sample", "sample_data", "ego_pose")}
    for row in rows["ego_pose"] if whole else ():
        row["translation"] = [float(np.round(v)) for v in row["translation"]]
    (folder / "ego_pose.json").write_text(json.dumps(rows["ego_pose"]))
    poses = {row["token"]: row for row in rows["ego_pose"]}
    lidar = {
        row["sample_token"]: poses[row["ego_pose_token"]]
        for row in rows["sample_data"]
        if row["is_key_frame"] and "LIDAR_TOP" in row["filename"]
    }
    named = {row["token"]: row["name"] for row in rows["scene"]}
    found = [
        Place(
            row["token"],
            named[row["scene_token"]],
            row["timestamp"] / 1e6,
            np.array(lidar[row["token"]]["translation"]),
        )
        for row in rows["sample"]
        if named[row["scene_token"]] in scenes
    ]
    return sorted(found, key=lambda place: (place.scene, place.seconds))


class Track(NamedTuple):
    """One object: the samples in which it is annotated, and what is annotated there."""

    label: int
    samples: List[int]  # positions in the list of places
    rows: List[Dict[str, Any]]  # values of Boxes


def random_tracks(where: Sequence[Place], each: int, seed: int, without: Sequence[int] = ()) -> List[Track]:
    """``each`` objects that appear in every sample and stay for one to three samples of their scene, moving."""
    rng = np.random.RandomState(seed)
    known = [label for label in range(BICYCLE_RACK + 1) if label not in without]
    tracks = []
    for start, place in enumerate(where):
        for number in range(each):
            label, speed = int(rng.choice(known)), rng.normal(0, 2, 2)
            first = place.ego + np.append(rng.uniform(-45, 45, 2), rng.uniform(-1, 2))
            if number == 0:  # just on the border of a car's range, from which it is left out
                label, first, speed = 0, place.ego + (50.0, 0.0, 1.0), np.zeros(2)
            ends = min(start + rng.randint(1, 4), len(where))
            samples = [k for k in range(start, ends) if where[k].scene == place.scene]
            size = np.array([14.0, 10.0, 4.0]) if label == BICYCLE_RACK else SIZES * rng.uniform(0.7, 1.4, 3)
            seconds = [where[k].seconds for k in samples]
            passed = [np.float32(first + np.append(speed * (t - place.seconds), 0)) for t in seconds]
            rows = []
            for n in range(len(samples)):
                a, b = max(n - 1, 0), min(n + 1, len(samples) - 1)
                moved = passed[b][:2].astype(np.float64) - passed[a][:2]
                rows.append(
                    {
                        "centres": passed[n],
                        "sizes": np.float32(size),
                        "yaws": np.float32(rng.uniform(-np.pi, np.pi)),
                        "velocities": moved / (seconds[b] - seconds[a]) if b > a else np.full(2, np.nan),
                        "labels": label,
                        "points": rng.randint(0, 5),
                        "attributes": -1 if label >= 9 else rng.randint(-1, len(ATTRIBUTES)),
                    }
                )
            tracks.append(Track(label, samples, rows))
    return tracks


def truth_of(tracks: Sequence[Track], samples: int) -> List[Boxes]:
    """The boxes of each sample, in the order of the annotation table that ``write_annotations`` writes."""
    held: List[List[Dict[str, Any]]] = [[] for _ in range(samples)]
    for track in tracks:
        for k, row in zip(track.samples, track.rows):
            held[k].append(row)
    return [_boxes(rows) for rows in held]


def _boxes(rows: Sequence[Dict[str, Any]]) -> Boxes:
    types = dict.fromkeys(("centres", "sizes", "yaws", "velocities", "scores"), np.float32)
    empty = vars(Boxes.none())
    held = {
        name: np.array([row[name] for row in rows], types.get(name, np.int64)) for name in (rows[0] if rows else ())
    }
    return Boxes(**(held or {**empty, "points": empty["labels"], "attributes": empty["labels"]}))


def write_annotations(root: Path, version: str, tracks: Sequence[Track], where: Sequence[Place]) -> None:
    """Replace the tables of objects."""
    folder = root / version
    category = {row["name"]: row["token"] for row in json.loads((folder / "category.json").read_text())}
    attribute = {row["name"]: row["token"] for row in json.loads((folder / "attribute.json").read_text())}
    instances, annotations = [], []
    for i, track in enumerate(tracks):
        names = [f"annotation{i}at{n}" for n in range(len(track.samples))]
        instances.append(
            {
                "token": f"instance{i}",
                "category_token": category[_RAW[track.label]],
                "nbr_annotations": len(names),
                "first_annotation_token": names[0],
                "last_annotation_token": names[-1],
            }
        )
        for n, (k, row) in enumerate(zip(track.samples, track.rows)):
            said = int(row["attributes"])
            annotations.append(
                {
                    "token": names[n],
                    "sample_token": where[k].token,
                    "instance_token": f"instance{i}",
                    "visibility_token": "",
                    "attribute_tokens": [attribute[ATTRIBUTES[said]]] if said >= 0 else [],
                    **_shape(row["centres"], row["sizes"], row["yaws"]),
                    "prev": names[n - 1] if n else "",
                    "next": names[n + 1] if n + 1 < len(names) else "",
                    "num_lidar_pts": int(row["points"]) // 2,
                    "num_radar_pts": int(row["points"]) - int(row["points"]) // 2,
                }
            )
    (folder / "instance.json").write_text(json.dumps(instances))
    (folder / "sample_annotation.json").write_text(json.dumps(annotations))


def _shape(centre: np.ndarray, size: np.ndarray, yaw: float) -> Dict[str, List[float]]:
    length, width, height = (float(v) for v in size)
    half = float(yaw) / 2
    return {
        "translation": [float(v) for v in centre],
        "size": [width, length, height],
        "rotation": [float(np.cos(half)), 0.0, 0.0, float(np.sin(half))],
    }


def guesses(truth: Sequence[Boxes], where: Sequence[Place], seed: int, without: Sequence[int] = ()) -> List[Boxes]:
    """Predictions near the truth and elsewhere, many of the same score, some twice; the last sample has none."""
    rng = np.random.RandomState(seed)
    found = []
    for boxes, place in zip(truth[:-1], where):
        rows = []
        for k in range(len(boxes)):
            label = int(boxes.labels[k])
            if label == BICYCLE_RACK:
                continue
            for _ in range(rng.randint(0, 4)):
                near = rng.choice([0.0, 0.1, 0.5, 1.5])
                rows.append(
                    {
                        "centres": boxes.centres[k] + np.append(rng.normal(0, 1, 2) * near, 0),
                        "sizes": boxes.sizes[k] * rng.uniform(0.8, 1.25, 3),
                        "yaws": boxes.yaws[k] + rng.normal() * rng.choice([0.1, 3.0]),
                        "velocities": np.nan_to_num(boxes.velocities[k]) + rng.normal(0, 0.5, 2),
                        "labels": label if rng.rand() < 0.9 else rng.randint(10),
                        "attributes": boxes.attributes[k] if rng.rand() < 0.7 else rng.randint(-1, len(ATTRIBUTES)),
                        "scores": np.clip(np.round(rng.uniform(0.2, 1) - 0.3 * near, 1), 0.1, 1),
                    }
                )
        for _ in range(15):
            rows.append(
                {
                    "centres": place.ego + np.append(rng.uniform(-60, 60, 2), 1),
                    "sizes": SIZES,
                    "yaws": rng.uniform(-np.pi, np.pi),
                    "velocities": rng.normal(0, 3, 2),
                    "labels": rng.randint(10),
                    "attributes": rng.randint(-1, len(ATTRIBUTES)),
                    "scores": rng.uniform(0.1, 0.5),
                }
            )
        rows.append({**rows[0], "centres": place.ego + (50.0, 0.0, 1.0), "labels": 0})  # on the border of the range
        rows = [row for row in rows if row["labels"] not in without]
        found.append(_boxes([rows[k] for k in rng.permutation(len(rows))] + rows[:3]))
    return [*found, Boxes.none(scores=True)]


def perfect(truth: Sequence[Boxes]) -> List[Boxes]:
    """The truth as predictions, all with the same score."""
    found = []
    for boxes in truth:
        own = boxes.take((boxes.labels != BICYCLE_RACK) & (boxes.points > 0))
        held = {**vars(own), "scores": np.full(len(own), 0.5, np.float32), "points": None}
        found.append(Boxes(**{**held, "velocities": np.nan_to_num(own.velocities)}))
    return found


def results(where: Sequence[Place], predicted: Sequence[Boxes]) -> Dict[str, Any]:
    """The result file of boxes in the global frame."""
    rows: Dict[str, List[Dict[str, Any]]] = {}
    for place, boxes in zip(where, predicted):
        assert boxes.scores is not None
        said = np.full(len(boxes), -1) if boxes.attributes is None else boxes.attributes
        rows[place.token] = [
            {
                "sample_token": place.token,
                **_shape(boxes.centres[k], boxes.sizes[k], boxes.yaws[k]),
                "velocity": [float(v) for v in boxes.velocities[k]],
                "detection_name": DETECTION_CLASSES[boxes.labels[k]],
                "detection_score": float(boxes.scores[k]),
                "attribute_name": ATTRIBUTES[said[k]] if said[k] >= 0 else "",
            }
            for k in range(len(boxes))
        ]
    return {"meta": META, "results": rows}
