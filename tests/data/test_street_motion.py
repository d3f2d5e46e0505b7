"""What moves on a synthetic street: paths that nothing crosses, and annotations that follow them."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import pytest

from tpvformer.data.street import rig
from tpvformer.data.street.drive import Ride, start_ride
from tpvformer.data.street.populate import Thing
from tpvformer.data.street.tables import Tokens
from tpvformer.data.street.visibility import Visibility, level
from tpvformer.data.street.world import build_street
from tpvformer.data.street.write import scene_names, write_dataset
from tpvformer.labels import CLASS_NAMES, RAW_NAMES, RAW_TO_CLASS
from tpvformer.untrusted.pickle import load_pickle

SCENES, FRAMES, SEED = 3, 14, 21
VERSION = "v1.0-mini"
CARRIED = ("vehicle.moving", "cycle.with_rider", "pedestrian.moving")
Table = List[Dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("moving") / "set"
    write_dataset(out, SCENES, (64, 36), SEED, FRAMES, workers=1)
    return out


@pytest.fixture(scope="module")
def tables(root: Path) -> Dict[str, Table]:
    return {file.stem: json.loads(file.read_text()) for file in (root / VERSION).glob("*.json")}


def corners(centre: Sequence[float], size: Sequence[float], yaw: float) -> np.ndarray:
    along, left = np.array([math.cos(yaw), math.sin(yaw)]) * size[1] / 2, np.array([-math.sin(yaw), math.cos(yaw)])
    left = left * size[0] / 2
    return np.array(centre[:2]) + np.stack([along + left, along - left, -along - left, left - along])


def meet(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether two rectangles (4, 2) overlap: no side of one separates them."""
    for sides in (a, b):
        for side in (sides[1] - sides[0], sides[2] - sides[1]):
            p, q = a @ side, b @ side
            if p.max() <= q.min() or q.max() <= p.min():
                return False
    return True


def moments(frames: int) -> List[float]:
    return [k * rig.KEYFRAME_MICROSECONDS * 1e-6 for k in range(frames)]


def pairs(things: Sequence[Thing]) -> List[Tuple[int, int]]:
    """Return the pairs of objects whose circles overlap."""
    at = np.array([thing.centre[:2] for thing in things])
    reach = np.array([math.hypot(*thing.size[:2]) / 2 for thing in things])
    near = np.linalg.norm(at[:, None] - at[None], axis=2) < reach[:, None] + reach[None]
    return list(zip(*(axis.tolist() for axis in np.nonzero(np.triu(near, 1)))))


@pytest.mark.parametrize(("frames", "scenes"), [(1, 12), (8, 6), (40, 4)])
def test_nothing_meets_anything_nor_the_ego(frames: int, scenes: int) -> None:
    for index in range(scenes):
        ride = start_ride(4, index, frames)
        for seconds in moments(frames)[:: max(1, frames // 10)]:
            things = ride.street.things_at(seconds)
            boxes = [corners(t.centre, t.size, t.yaw) for t in things]
            for i, j in pairs(things):
                assert not meet(boxes[i], boxes[j]), (index, seconds, things[i], things[j])
            (x, y, _), (heading, _, _) = ride.ego(seconds)
            ahead = (x + 1.4 * math.cos(heading), y + 1.4 * math.sin(heading))
            own = corners(ahead, (1.9, 5.0), heading)
            assert not any(meet(own, box) for box in boxes), (index, seconds)


def test_motion_is_smooth_and_forwards() -> None:
    kinds = set()
    for index in range(4):
        street = start_ride(6, index, 41).street
        before, step = street.things_at(0.0), 0.1
        assert len(street.movers.things) > 20
        for seconds in np.arange(step, 20.0, step):
            now = street.things_at(float(seconds))
            for i in street.movers.things:
                old, new = before[i], now[i]
                moved = np.subtract(new.centre, old.centre)
                middle = (np.array(old.velocity) + new.velocity) / 2
                assert np.abs(moved[:2] - middle * step).max() < 1e-6
                assert abs(moved[2]) < 0.2
                assert np.linalg.norm(np.subtract(new.velocity, old.velocity)) < 0.45 * step
                assert abs(math.remainder(new.yaw - math.atan2(*new.velocity[::-1]), 2 * math.pi)) < 1e-9
                speed = float(np.linalg.norm(new.velocity))
                assert 0.3 < speed < 15  # on a bend, the rate along x is less
                kinds.add((new.attribute, CLASS_NAMES[RAW_TO_CLASS[new.label]]))
            before = now
        still = set(range(len(before))) - set(street.movers.things.tolist())
        assert all(before[i] == street.things[i] and before[i].velocity == (0, 0) for i in still)
        assert not {before[i].attribute for i in still} & set(CARRIED)
    assert {attribute for attribute, _ in kinds} == set(CARRIED)
    assert {name for _, name in kinds} == {"car", "truck", "bus", "motorcycle", "bicycle", "pedestrian"}


def test_the_primitives_are_where_the_things_are() -> None:
    """Those of an object fill its box at any time, and a street of one moment is the street at time 0."""
    street = start_ride(6, 1, 8).street
    assert np.allclose(street.at(0.0).prims, street.prims)
    for seconds in (-0.043, 1.7, 3.5):
        prims, things = street.at(seconds).prims, street.things_at(seconds)
        for i in street.movers.things:
            rows, thing = prims[prims[:, 13] == i], things[i]
            local = (rows[:, :3] - thing.centre) @ rig.rotation_matrix(rig.euler_quaternion(thing.yaw))
            assert (np.abs(local) + rows[:, 3:6] <= np.array(thing.size)[[1, 0, 2]] / 2 + 1e-6).all()


def velocity(rows: Dict[str, Dict[str, Any]], times: Dict[str, int], row: Dict[str, Any]) -> np.ndarray:
    """The velocity of an annotation as nuscenes-devkit's box_velocity computes it."""
    first, last = rows.get(row["prev"], row), rows.get(row["next"], row)
    seconds = (times[last["sample_token"]] - times[first["sample_token"]]) * 1e-6
    longest = 1.5 * (2 if row["prev"] and row["next"] else 1)
    if first is last or seconds > longest:
        return np.full(2, np.nan)
    return np.subtract(last["translation"], first["translation"])[:2] / seconds


def rides() -> List[Ride]:
    return [start_ride(SEED, index, FRAMES) for index in range(SCENES)]


def test_annotations_follow_the_objects(tables: Dict[str, Table]) -> None:
    """One instance an object, its place, attribute and velocity at the key frame; no hole while it is within reach."""
    token, rows = Tokens(SEED), {row["token"]: row for row in tables["sample_annotation"]}
    times = {row["token"]: row["timestamp"] for row in tables["sample"]}
    attributes = {row["token"]: row["name"] for row in tables["attribute"]}
    instances = {row["token"]: row for row in tables["instance"]}
    categories = {row["token"]: row["name"] for row in tables["category"]}
    found, hidden, known, levels = 0, 0, 0, set()
    for (name, _), ride in zip(scene_names(SCENES), rides()):
        turn = rig.rotation_matrix(rig.euler_quaternion(ride.yaw))[:2, :2]
        for k, seconds in enumerate(moments(FRAMES)):
            for i, thing in enumerate(ride.street.things_at(seconds)):
                row = rows.get(token("annotation", name, i, k))
                if row is None:
                    continue
                found += 1
                assert row["sample_token"] == token("sample", name, k)
                assert row["instance_token"] == token("instance", name, i)
                assert categories[instances[row["instance_token"]]["category_token"]] == RAW_NAMES[thing.label]
                assert [attributes[t] for t in row["attribute_tokens"]] == [thing.attribute] * bool(thing.attribute)
                assert np.allclose(row["translation"][:2], ride.to_global(*thing.centre[:2]))
                levels.add(row["visibility_token"])
                hidden += not row["num_lidar_pts"]
                measured = velocity(rows, times, row)
                known += not np.isnan(measured).any()
                assert np.isnan(measured).any() or np.abs(measured - turn @ thing.velocity).max() < 0.1
    assert found == len(rows) and known > 0.9 * found
    assert levels == {"1", "2", "3", "4"}
    assert hidden > 10, "objects are hidden for a while and seen again"
    for instance in instances.values():
        assert rows[instance["first_annotation_token"]]["num_lidar_pts"] > 0
        assert rows[instance["last_annotation_token"]]["num_lidar_pts"] > 0


def test_what_moves_is_hidden_and_seen_again() -> None:
    """Also by what moves: for the cameras of an ego that waits, something still is hidden for a while."""
    street, (x, y, _) = start_ride(9, 3, 30).street, (0.0, 0.0, 0.0)
    x, y, heading = street.road.at(0.0, street.ego_s)
    ego2scene, sensors = rig.pose((x, y, 0), rig.euler_quaternion(heading)), rig.sensor_poses()
    still = [i for i in range(len(street.things)) if not street.things[i].velocity[0]]
    still = [i for i in still if i not in street.movers.things]
    still = [i for i in still if math.dist(street.things[i].centre[:2], (x, y)) < 40]
    shares = []
    for seconds in moments(20):
        view = Visibility(street.at(seconds), still, (x, y), 54.0)
        for camera in rig.CAMERAS:
            view.look(street.at(seconds), camera, ego2scene @ sensors[camera.channel])
        shares.append([view.shares()[i] for i in still])
    levels = np.vectorize(level)(np.array(shares))
    again = [any(a > 1 and b == 1 and c > 1 for a, b, c in itertools.combinations(row, 3)) for row in levels.T]
    assert sum(again) > 0


def test_visibility_of_what_stands_free_and_what_is_hidden() -> None:
    street = build_street(np.random.default_rng(1), 0.0)
    x, y, heading = street.road.at(0.0, street.ego_s)
    ego2scene, sensors = rig.pose((x, y, 0), rig.euler_quaternion(heading)), rig.sensor_poses()
    near = [i for i, t in enumerate(street.things) if math.dist(t.centre[:2], (x, y)) < 40]
    view = Visibility(street, near, (x, y), 54.0)
    assert set(view.shares()) == set(near) and not any(view.shares().values())
    for camera in rig.CAMERAS:
        view.look(street, camera, ego2scene @ sensors[camera.channel])
    shares = np.array(list(view.shares().values()))
    assert shares.min() == 0 and shares.max() == 1
    assert [level(share) for share in (0.0, 0.39, 0.4, 0.6, 0.79, 0.8, 1.0)] == [1, 1, 2, 3, 3, 4, 4]


def test_boxes_hold_the_points_of_their_class(root: Path) -> None:
    """In the infos' boxes; w, l, h and -yaw - pi/2 are those of mmdetection3d 0.x."""
    total = right = 0
    for info in load_pickle(root / "nuscenes_infos_val.pkl")["infos"][::4]:
        points = np.fromfile(root / info["lidar_path"], np.float32).reshape(-1, 5)[:, :3].astype(float)
        scan = next((root / "lidarseg" / VERSION).glob(f"{_lidar_token(root, info['token'])}_lidarseg.bin"))
        classes = np.array(RAW_TO_CLASS)[np.fromfile(scan, np.uint8)]
        for name, box, count in zip(info["gt_names"], info["gt_boxes"], info["num_lidar_pts"]):
            yaw = -box[6] - math.pi / 2
            local = (points - box[:3]) @ rig.rotation_matrix(rig.euler_quaternion(yaw))
            inside = (np.abs(local) < box[[4, 3, 5]] / 2 + 0.1).all(1)
            total += count
            right += min(count, int((inside & (classes == CLASS_NAMES.index(str(name)))).sum()))
    assert total > 1000 and right > 0.97 * total


def _lidar_token(root: Path, sample: str) -> str:
    rows = json.loads((root / VERSION / "sample_data.json").read_text())
    return next(r["token"] for r in rows if r["sample_token"] == sample and r["fileformat"] == "pcd")


def test_infos_have_the_boxes_of_the_tables(root: Path, tables: Dict[str, Table]) -> None:
    rows = {row["token"]: row for row in tables["sample_annotation"]}
    times = {row["token"]: row["timestamp"] for row in tables["sample"]}
    infos = [i for s in ("train", "val") for i in load_pickle(root / f"nuscenes_infos_{s}.pkl")["infos"]]
    assert len(infos) == SCENES * FRAMES
    by_token = {info["token"]: info for info in infos}
    for info in infos:
        own = [row for row in rows.values() if row["sample_token"] == info["token"]]
        assert info["gt_boxes"].shape == (len(own), 7) and info["gt_velocity"].shape == (len(own), 2)
        assert info["num_lidar_pts"].tolist() == [row["num_lidar_pts"] for row in own]
        assert info["valid_flag"].tolist() == [row["num_lidar_pts"] > 0 for row in own]
        ego2global = rig.pose(info["ego2global_translation"], info["ego2global_rotation"])
        lidar2global = ego2global @ rig.pose(info["lidar2ego_translation"], info["lidar2ego_rotation"])
        theirs = info["gt_boxes"][:, :3] @ lidar2global[:3, :3].T + lidar2global[:3, 3]
        assert np.allclose(theirs, [row["translation"] for row in own])
        for speed, row in zip(info["gt_velocity"], own):
            expected = lidar2global[:3, :3].T @ [*velocity(rows, times, row), 0]
            assert np.allclose(speed, expected[:2], equal_nan=True)
        following = by_token.get(info["next"])
        assert following is None or (following["prev"], following["frame_idx"]) == (
            info["token"],
            info["frame_idx"] + 1,
        )


def test_a_single_frame_has_attributes_but_no_velocity(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", 2, (64, 32), 3, 1, workers=1)
    infos = load_pickle(tmp_path / "set" / "nuscenes_infos_val.pkl")["infos"]
    assert len(infos) == 1 and len(infos[0]["gt_names"]) > 20
    assert np.isnan(infos[0]["gt_velocity"]).all()
    names = {r["token"]: r["name"] for r in json.loads((tmp_path / "set" / VERSION / "attribute.json").read_text())}
    rows = json.loads((tmp_path / "set" / VERSION / "sample_annotation.json").read_text())
    found = {names[token] for row in rows for token in row["attribute_tokens"]}
    assert {*CARRIED, "vehicle.parked", "cycle.without_rider", "pedestrian.standing"} <= found
