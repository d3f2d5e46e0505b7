"""The detection scores by hand, without the devkit: matching, filters, ties, rings, intervals, names and units."""

from __future__ import annotations

import dataclasses
from typing import Any, List, Sequence

import numpy as np
import pytest

from tpvformer.data.detection.attributes import attributes_of
from tpvformer.data.detection.boxes import ATTRIBUTES, BICYCLE_RACK, DETECTION_CLASSES, Boxes
from tpvformer.engine.metrics.detection import DetectionCounts, DetectionScores
from tpvformer.engine.metrics.detection_matching import Matched, match_sample, placed
from tpvformer.engine.metrics.detection_named import detection_metrics, detection_table
from tpvformer.engine.metrics.named import RING_NAMES, RINGS

CAR, BARRIER, BICYCLE, PEDESTRIAN, CONE = (
    DETECTION_CLASSES.index(name) for name in ("car", "barrier", "bicycle", "pedestrian", "traffic_cone")
)


def boxes(places: Sequence[Sequence[float]], labels: Sequence[int], **given: Any) -> Boxes:
    """Boxes of 4 x 2 x 1 m at (x, y), z 0, that look along x and stand."""
    count = len(places)
    values = {
        "sizes": np.tile(np.float32([4, 2, 1]), (count, 1)),
        "yaws": np.zeros(count, np.float32),
        "velocities": np.zeros((count, 2), np.float32),
        **{name: np.array(value) for name, value in given.items()},
    }
    centres = np.append(np.float32(places).reshape(count, 2), np.zeros((count, 1), np.float32), 1)
    return Boxes(centres, labels=np.array(labels, np.int64), **values)


def matched(truth: Boxes, predicted: Boxes, **given: Any) -> Matched:
    return match_sample(
        0, truth, predicted, given.get("to_common", np.eye(4)), np.array(given.get("ego", (0, 0))), RINGS
    )


def scores_of(
    truths: Sequence[Boxes], predicted: Sequence[Boxes], scenes: Sequence[int] = (), order: Sequence[int] = ()
) -> DetectionScores:
    counts = DetectionCounts(scenes or [0] * len(truths))
    for k in order or range(len(truths)):
        counts.add(k, truths[k], predicted[k])
    counts.sum_over_processes()
    return counts.result()


def hits(found: Matched) -> List[int]:
    return found.rows["hits"].tolist()


def test_the_nearest_free_truth_is_taken_by_falling_score() -> None:
    truth = boxes([(10, 0), (11.5, 0)], [CAR, CAR])
    predicted = boxes([(10.7, 0), (10.2, 0), (10.1, 0)], [CAR] * 3, scores=np.float32([0.3, 0.9, 0.2]))
    found = matched(truth, predicted)
    # the second takes the first truth; the first finds the other at 0.8 m; the last finds nothing
    assert hits(found) == [0b1110, 0b1111, 0]
    assert found.errors["errors"][:, 0] == pytest.approx([0.8, 0.2], abs=1e-6)


def test_of_equal_scores_the_later_one_is_first() -> None:
    truth = boxes([(10, 0)], [CAR])
    predicted = boxes([(10, 0), (11.9, 0)], [CAR, CAR], scores=np.float32([0.5, 0.5]))
    assert hits(matched(truth, predicted)) == [0b0011, 0b1100]


def test_a_distance_of_just_the_limit_is_no_match() -> None:
    truth = boxes([(10, 0)], [CAR])
    assert hits(matched(truth, boxes([(12, 0)], [CAR], scores=np.float32([1])))) == [0b1000]


def test_what_is_left_out() -> None:
    places = [(50, 0), (49.9, 0), (30, 0), (0, 39.9), (0, 40), (5, 5)]
    labels = [CAR, CAR, CONE, PEDESTRIAN, PEDESTRIAN, CAR]
    predicted = boxes(places, labels, scores=np.ones(6, np.float32))
    found = matched(boxes(places, labels, points=[1, 1, 1, 1, 1, 0]), predicted)
    assert found.rows["index"].tolist() == [1, 3, 5]
    assert found.truths.sum(1).nonzero()[0].tolist() == [CAR, PEDESTRIAN]
    assert found.truths.sum() == 2, "the car without a point is no truth, but the prediction counts"
    assert found.rows["ring"].tolist() == [4, 3, 0]
    moved = matched(boxes(places, labels), predicted, ego=(1, 0))
    assert moved.rows["index"].tolist() == [0, 1, 2, 3, 5], "50 m are measured from the ego"


def test_cycles_in_a_rack_are_left_out() -> None:
    turned = {"yaws": np.float32([np.pi / 2, 0, 0]), "points": [0, 3, 3]}
    truth = boxes([(10, 10), (10.5, 11.5), (11.5, 10.5)], [BICYCLE_RACK, BICYCLE, BICYCLE], **turned)
    places = [(10.5, 11.5), (11.5, 10.5), (10, 10)]
    predicted = boxes(places, [BICYCLE, BICYCLE, CAR], scores=np.ones(3, np.float32))
    found = matched(truth, predicted)
    assert found.truths.sum() == 1
    assert found.rows["index"].tolist() == [1, 2], "the rack's long side is along y; a car stays"


def test_errors_and_what_is_unknown() -> None:
    attributes = [ATTRIBUTES.index("vehicle.moving"), -1, ATTRIBUTES.index("vehicle.parked")]
    truth = boxes(
        [(0, 0), (10, 0), (20, 0)],
        [CAR, CAR, BARRIER],
        yaws=np.float32([3, 0, 0]),
        velocities=np.float32([[1, 0], [np.nan, np.nan], [0, 0]]),
        attributes=attributes,
    )
    predicted = boxes(
        [(0, 1), (10, 0), (20, 0)],
        [CAR, CAR, BARRIER],
        yaws=np.float32([-3, 1, 3]),
        sizes=np.float32([[4, 2, 2], [4, 2, 1], [4, 2, 1]]),
        velocities=np.float32([[1, 2], [0, 0], [0, 0]]),
        scores=np.float32([1, 1, 1]),
        attributes=[attributes[0], attributes[0], attributes[0]],
    )
    errors = matched(truth, predicted).errors["errors"]
    assert errors[0] == pytest.approx([1, 0.5, 2 * np.pi - 6, 2, 0], abs=1e-6)
    assert errors[1, :3] == pytest.approx([0, 0, 1], abs=1e-6)
    assert np.isnan(errors[1, 3:]).all()
    assert errors[2] == pytest.approx([0, 0, np.pi - 3, 0, 1], abs=1e-6), "a barrier has no front"


def test_a_rigid_motion_changes_nothing() -> None:
    rng = np.random.RandomState(0)
    truth, predicted = random_boxes(rng, 40), random_boxes(rng, 60, scores=True)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]]
    turn[:3, 3] = 1000, -300, 5
    still = matched(truth, predicted)
    moved = matched(truth, predicted, to_common=turn, ego=turn[:2, 3])
    assert (still.rows == moved.rows).all()
    assert np.allclose(still.errors["errors"], moved.errors["errors"], atol=1e-9, equal_nan=True)


def random_boxes(rng: np.random.RandomState, count: int, scores: bool = False) -> Boxes:
    given = {"yaws": np.float32(rng.uniform(-3, 3, count)), "velocities": np.float32(rng.normal(0, 2, (count, 2)))}
    given["attributes"] = rng.randint(-1, 8, count)
    if scores:
        given["scores"] = np.float32(rng.uniform(0, 1, count).round(1))
    return boxes(rng.uniform(-15, 15, (count, 2)), rng.randint(0, 10, count), **given)


def test_neither_truth_nor_predictions() -> None:
    found = scores_of([Boxes.none()], [Boxes.none(scores=True)])
    assert (found.nds, found.mean_ap, found.mate, found.maae) == (0, 0, 1, 1)
    assert all(value is None for value in found.ring_map.values())
    named = detection_metrics(found)
    assert named["nds"].value is None and named["mate"].value is None, "nothing can be scored"
    some = scores_of([boxes([(5, 0)], [CAR])], [Boxes.none(scores=True)])
    assert (some.nds, detection_metrics(some)["nds"].value) == (0, 0)
    assert scores_of([], []).samples == 0


def test_the_order_of_adding_changes_nothing() -> None:
    rng = np.random.RandomState(1)
    truths = [random_boxes(rng, 30) for _ in range(6)]
    predicted = [
        dataclasses.replace(
            random_boxes(rng, 30, scores=True), centres=t.centres + np.float32(rng.normal(0, 1, (30, 3)))
        )
        for t in truths
    ]
    scenes = [0, 0, 1, 1, 2, 2]
    first = scores_of(truths, predicted, scenes)
    other = scores_of(truths, predicted, scenes, order=(5, 1, 3, 0, 2, 4))
    for name, value in vars(first).items():
        assert np.array_equal(value, getattr(other, name), equal_nan=name == "errors") or value == getattr(other, name)
    assert 0.01 < first.mean_ap < 0.9


def test_intervals_come_from_whole_scenes() -> None:
    rng = np.random.RandomState(2)
    truths = [random_boxes(rng, 40) for _ in range(6)]
    predicted = [dataclasses.replace(random_boxes(rng, 40, scores=True), centres=t.centres) for t in truths]
    found = scores_of(truths, predicted, [0, 1, 2, 3, 4, 5])
    low, high = found.intervals["map"]
    assert low < found.mean_ap < high
    low, high = found.intervals["mate"]
    assert low <= found.mate <= high
    alike = scores_of(truths[:1] * 4, predicted[:1] * 4, [0, 1, 2, 3])
    low, high = alike.intervals["map"]
    assert low == pytest.approx(alike.mean_ap, abs=0.02) and high == pytest.approx(alike.mean_ap, abs=0.02)
    assert scores_of(truths, predicted).intervals == {}, "one scene"


def test_rings_compare_their_own_boxes_alone() -> None:
    truth = boxes([(9.9, 0), (20.5, 0)], [CAR, CAR])
    predicted = boxes([(10.1, 0), (20.6, 0)], [CAR, CAR], scores=np.float32([0.9, 0.8]))
    found = scores_of([truth], [predicted])
    assert found.class_ap["car"] == pytest.approx(1)
    assert [found.ring_map[name] for name in RING_NAMES] == [0, None, pytest.approx(1), None, None]


def test_names_units_and_the_table() -> None:
    truth = boxes([(9, 0), (20, 0)], [CAR, BARRIER], attributes=[-1, -1])
    predicted = boxes([(9.1, 0), (20.3, 0)], [CAR, BARRIER], scores=np.float32([0.9, 0.8]), attributes=[6, -1])
    named = detection_metrics(scores_of([truth], [predicted]))
    assert list(named) == [
        "nds", "map", "map@0.5", "map@1", "map@2", "map@4", "mate", "mase", "maoe", "mave", "maae",
        "moving_velocity_error",
    ]  # fmt: skip
    assert named["map"].value == pytest.approx(20)
    assert named["map"].as_dict()["ap"]["car"] == pytest.approx(100)
    assert named["map"].classes["bus"] is None
    assert named["mate"].as_dict()["unit"] == "m"
    assert named["mate"].classes["car"] == pytest.approx(0.1, abs=1e-6)
    assert named["mave"].classes["barrier"] is None
    lines = detection_table(named, 1)
    assert lines[0].startswith("boxes ")
    assert any(line.split()[:4] == ["mave", ":", "0.875", "m/s"] for line in lines)
    assert lines[-1].split() == ["traffic_cone", ":", *["n/a"] * 6]
    assert detection_table({}, 0) == []


def test_attributes_follow_class_and_speed() -> None:
    labels = [label for label in range(10) for _ in range(3)]
    speeds = np.float32([[0.2, 0], [0.2, 0.1], [np.nan, np.nan]] * 10)
    found = [ATTRIBUTES[k] if k >= 0 else "" for k in attributes_of(boxes([(0, 0)] * 30, labels, velocities=speeds))]
    vehicle = ["vehicle.parked", "vehicle.moving", "vehicle.parked"]
    cycle = ["cycle.without_rider", "cycle.with_rider", "cycle.without_rider"]
    walker = ["pedestrian.standing", "pedestrian.moving", "pedestrian.standing"]
    assert found == vehicle * 5 + [""] * 3 + cycle * 2 + walker + [""] * 3
    assert attributes_of(Boxes.none()).shape == (0,)


def test_a_tilted_lidar_loses_nothing() -> None:
    rng = np.random.RandomState(4)
    level = random_boxes(rng, 50)
    tilt = np.eye(4)
    c, s = np.cos(0.05), np.sin(0.05)
    tilt[:3, :3] = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    tilt[:3, 3] = 800, -1200, 2
    centres, yaws, velocities = placed(level.transformed(np.linalg.inv(tilt)), tilt)
    assert np.allclose(centres, level.centres, atol=2e-4), "float32 at a kilometre"
    assert np.allclose(velocities, level.velocities, atol=1e-5)
    assert np.allclose(np.sin(yaws - level.yaws), 0, atol=1e-5)
