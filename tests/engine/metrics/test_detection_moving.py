"""The velocity error of moving objects, by hand."""

from __future__ import annotations

from typing import Sequence, Tuple

import numpy as np
import pytest

from tpvformer.data.detection.boxes import DETECTION_CLASSES, Boxes
from tpvformer.engine.metrics.detection import DetectionCounts, DetectionScores
from tpvformer.engine.metrics.detection_named import detection_metrics, detection_table

CAR, BARRIER, PEDESTRIAN = (DETECTION_CLASSES.index(name) for name in ("car", "barrier", "pedestrian"))
Row = Tuple[int, float, Tuple[float, float]]  # class, place along x in metres, velocity


def boxes(rows: Sequence[Row], scores: bool = False) -> Boxes:
    count = len(rows)
    return Boxes(
        np.float32([[x, 0, 0] for _, x, _ in rows]).reshape(count, 3),
        np.tile(np.float32([4, 2, 1]), (count, 1)),
        np.zeros(count, np.float32),
        np.float32([velocity for _, _, velocity in rows]).reshape(count, 2),
        np.array([label for label, _, _ in rows], np.int64),
        scores=np.linspace(0.9, 0.1, count).astype(np.float32) if scores else None,
    )


def scored(*samples: Tuple[Sequence[Row], Sequence[Row]], scenes: Sequence[int] = ()) -> DetectionScores:
    counts = DetectionCounts(scenes or [0] * len(samples))
    for k, (truth, predicted) in enumerate(samples):
        counts.add(k, boxes(truth), boxes(predicted, scores=True))
    counts.sum_over_processes()
    return counts.result()


NAN = float("nan")
FIRST = (
    [
        (CAR, 5, (8, 0)),  # found, 5 m/s wrong: (3, 4) apart
        (CAR, 12, (0, 0.2)),  # just 0.2 m/s, which is no movement
        (CAR, 20, (NAN, NAN)),  # not known
        (CAR, 28, (10, 0)),  # found 3 m away, which is too far
        (BARRIER, 9, (3, 0)),  # barriers have no velocity
        (PEDESTRIAN, 16, (1, 0)),  # not found
    ],
    [
        (CAR, 5.5, (5, 4)),
        (CAR, 12, (9, 0)),
        (CAR, 20, (9, 0)),
        (CAR, 31, (9, 0)),
        (BARRIER, 9, (9, 0)),
        (PEDESTRIAN, -9, (9, 0)),
    ],
)
SECOND = ([(PEDESTRIAN, 7, (0, -1)), (CAR, 15, (0, 1))], [(PEDESTRIAN, 7, (0, 0)), (CAR, 16.9, (0, 1))])


def test_the_mean_over_what_moves_and_was_found() -> None:
    found = scored(FIRST, SECOND).moving
    assert found.count == 3
    assert found.error == pytest.approx((5 + 1 + 0) / 3, abs=1e-6)
    assert found.of_class[CAR] == pytest.approx(2.5, abs=1e-6)
    assert found.of_class[PEDESTRIAN] == pytest.approx(1, abs=1e-6)
    assert found.of_class[BARRIER] is None and found.of_class[DETECTION_CLASSES.index("bus")] is None


def test_it_is_a_named_metric() -> None:
    named = detection_metrics(scored(FIRST, SECOND))
    metric = named["moving_velocity_error"]
    assert list(named)[-1] == "moving_velocity_error"
    assert metric.text == "2.000 m/s" and metric.as_dict()["ave"]["car"] == pytest.approx(2.5)
    assert metric.interval is None, "one scene"
    assert any(line.split()[:4] == ["moving_velocity_error", ":", "2.000", "m/s"] for line in detection_table(named, 1))


def test_the_interval_comes_from_whole_scenes() -> None:
    found = scored(FIRST, SECOND, scenes=[3, 8]).moving
    assert found.interval == pytest.approx((0.5, 5.0)), "both scenes twice; the second has the errors 1 and 0"


def test_nothing_that_moves_has_no_error() -> None:
    standing = ([(CAR, 5, (0.1, 0.1))], [(CAR, 5, (4, 0))])
    still = scored(standing, standing, scenes=[0, 1])
    assert still.moving.error is None and still.moving.interval is None and still.moving.count == 0
    assert detection_metrics(still)["moving_velocity_error"].value is None
    assert scored().moving.error is None


def test_the_speed_of_a_turned_frame_is_the_same() -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[0, -1], [1, 0]]
    counts = DetectionCounts([0])
    counts.add(0, boxes(FIRST[0]), boxes(FIRST[1], scores=True), turn)
    counts.sum_over_processes()
    assert counts.result().moving.error == pytest.approx(5, abs=1e-6)
