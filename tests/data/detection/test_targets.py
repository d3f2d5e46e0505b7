"""Targets of the detection head, and decoding as their inverse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tpvformer.config import DetectionConfig, GridConfig, ModelConfig
from tpvformer.config.detection import GROUP_SIZES
from tpvformer.data.detection.attributes import attributes_of
from tpvformer.data.detection.boxes import (
    BICYCLE_RACK,
    CATEGORY_LABELS,
    DETECTION_CLASSES,
    GROUP_OF,
    GROUPS,
    Boxes,
)
from tpvformer.data.detection.decode import CIRCLES, circle_nms, decode, peaks
from tpvformer.data.detection.targets import BoxMap, draw_targets, gaussian_radius
from tpvformer.engine.metrics.detection import DetectionCounts
from tpvformer.engine.metrics.detection_named import detection_metrics
from tpvformer.errors import ConfigError

# x and y have other cells and another number of them, so that an exchange of the axes is seen
MODEL = ModelConfig(
    grid=GridConfig(w=40, h=24, z=4, pc_range=(-40.0, -30.0, -3.0, 40.0, 30.0, 3.0)), detection=DetectionConfig(scale=2)
)
AREA, RANGE = BoxMap.of(MODEL), MODEL.grid.pc_range


def boxes_apart(seed: int, spacing: float = 8.0) -> Boxes:
    """Return boxes on a lattice, so far apart that none suppresses another."""
    rng = np.random.RandomState(seed)
    x, y = np.meshgrid(np.arange(-36, 37, spacing), np.arange(-26, 27, spacing), indexing="ij")
    count = x.size
    xy = np.stack([x.ravel(), y.ravel()], 1) + rng.uniform(-1, 1, (count, 2))
    velocities = rng.uniform(-10, 10, (count, 2))
    velocities[::5] = np.nan
    return Boxes(
        np.concatenate([xy, rng.uniform(-2, 2, (count, 1))], 1).astype(np.float32),
        rng.uniform(0.3, 12, (count, 3)).astype(np.float32),
        rng.uniform(-np.pi, np.pi, count).astype(np.float32),
        velocities.astype(np.float32),
        rng.randint(0, len(DETECTION_CLASSES), count),
        points=np.full(count, 3),
    )


def as_output(boxes: Boxes) -> "tuple[np.ndarray, np.ndarray]":
    """Return what a perfect head would give for the boxes."""
    targets = draw_targets(boxes, AREA)
    heatmaps = np.where(targets.heatmaps == 1, 8.0, -8.0)
    values = np.zeros((len(GROUPS), 10, *AREA.shape))
    for cell, label, row in zip(targets.cells, targets.labels, targets.values):
        values[GROUP_OF[label], :, cell // AREA.shape[1], cell % AREA.shape[1]] = row
    return heatmaps, values


def test_decoding_inverts_the_targets() -> None:
    truth = boxes_apart(0)
    found = decode(*as_output(truth), RANGE)
    assert len(found) == len(truth) and found.scores is not None and (found.scores > 0.99).all()
    order = [int(np.abs(found.centres - centre).sum(1).argmin()) for centre in truth.centres]
    found = found.take(np.array(order))
    assert np.array_equal(found.labels, truth.labels)
    assert np.abs(found.centres - truth.centres).max() < 1e-5
    assert np.abs(found.sizes / truth.sizes - 1).max() < 1e-6
    assert np.abs(np.angle(np.exp(1j * (found.yaws - truth.yaws)))).max() < 1e-6
    assert np.array_equal(found.velocities, truth.velocities, equal_nan=True)


def test_a_centre_is_one_in_its_cell_and_falls_off_as_a_gaussian() -> None:
    car = boxes_apart(0).take(np.array([17]))
    car = replace(car, centres=np.array([[10.3, -4.6, 0.0]], np.float32), sizes=np.array([[4.5, 1.9, 1.6]], np.float32))
    targets = draw_targets(replace(car, labels=np.array([0])), AREA)
    column, row = int((10.3 + 40) / 1.0), int((-4.6 + 30) / 1.25)
    assert targets.cells.tolist() == [row * 80 + column]
    heat = targets.heatmaps[0]
    assert heat[row, column] == 1 and targets.heatmaps[1:].max() == 0
    sigma = 5 / 6  # of the smallest radius, two cells
    assert heat[row + 1, column - 2] == pytest.approx(np.exp(-5 / (2 * sigma**2)))
    assert heat[row + 3, column] == 0


def test_gaussians_at_the_border_and_on_each_other() -> None:
    two = boxes_apart(0).take(np.array([0, 1]))
    corner = np.array([[39.9, 29.9, 0], [39.9, 28.0, 0]], np.float32)
    both = replace(two, centres=corner, labels=np.array([8, 8]))
    single = [draw_targets(both.take(np.array([i])), AREA).heatmaps for i in range(2)]
    assert np.array_equal(draw_targets(both, AREA).heatmaps, np.maximum(*single))


def test_what_is_not_learned() -> None:
    boxes = boxes_apart(3)
    assert boxes.points is not None
    points, labels, centres = boxes.points.copy(), boxes.labels.copy(), boxes.centres.copy()
    points[0], labels[1], centres[2, 0], centres[3, 1] = 0, BICYCLE_RACK, 40.0, -30.01
    changed = replace(boxes, points=points, labels=labels, centres=centres)
    assert len(draw_targets(changed, AREA).cells) == len(boxes) - 4
    assert len(draw_targets(Boxes.none(), AREA).cells) == 0


def test_the_radius_has_the_published_values() -> None:
    """By hand, for a width and a length of 4 and 9 cells: b = 13, -2.6; the third case is the smallest."""
    third = (-2.6 + np.sqrt(2.6**2 + 4 * 0.4 * 0.9 * 36)) / 2
    assert gaussian_radius(np.array([4.0]), np.array([9.0]))[0] == pytest.approx(third)


def test_circles_are_squared_metres_within_a_group() -> None:
    line = np.array([[0.0, 0], [0.9, 0], [1.1, 0], [2.05, 0], [2.2, 0]])
    assert circle_nms(line, 1.0).tolist() == [0, 2, 4]
    truth = boxes_apart(1).take(np.array([0, 1, 2, 3]))
    near = np.array([[0, 0, 0], [1.5, 0, 0], [20, 0, 0], [20, 1.5, 0]], np.float32)
    # cars suppress each other up to 2 m; a pedestrian and a cone, of another group, up to 0.42 m
    found = decode(*as_output(replace(truth, centres=near, labels=np.array([0, 0, 8, 9]))), RANGE)
    assert sorted(found.labels.tolist()) == [0, 8, 9]
    assert CIRCLES[0] == 4.0


def test_a_cell_beside_a_higher_one_is_no_box() -> None:
    heatmaps, values = np.full((10, *AREA.shape), -8.0), np.zeros((6, 10, *AREA.shape))
    heatmaps[8, 10, 20:24] = [1.0, 2.0, 1.5, 1.7]  # a metre and more apart: the circle of pedestrians is 0.42 m
    heatmaps[8, 11, 22] = 1.0
    heatmaps[9, 10, 22] = 0.5  # another class
    found = decode(heatmaps, values, RANGE)
    assert list(zip(found.labels.tolist(), found.centres[:, 0].tolist())) == [(8, -19.0), (8, -17.0), (9, -18.0)]
    assert peaks(np.zeros((1, 3, 3))).all()


def test_scores_and_numbers_are_limited() -> None:
    heatmaps = np.full((10, *AREA.shape), np.log(0.1 / 0.9) - 0.01)
    assert len(decode(heatmaps, np.zeros((6, 10, *AREA.shape)), RANGE)) == 0
    rng = np.random.RandomState(0)
    found = decode(rng.rand(10, *AREA.shape) * 4, rng.randn(6, 10, *AREA.shape), RANGE)
    assert found.scores is not None and len(found) <= 498 and (np.diff(found.scores) <= 0).all()
    assert all((found.labels == label).sum() <= 83 for label in range(10))
    broken = decode(rng.rand(10, *AREA.shape), np.full((6, 10, *AREA.shape), np.nan), RANGE)
    assert len(broken) == 0


def test_output_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values have shape \(6, 9, 24, 40\); expected \(6, 10, 24, 40\)"):
        decode(np.zeros((10, 24, 40)), np.zeros((6, 9, 24, 40)), RANGE)
    with pytest.raises(ValueError, match=r"heatmaps have shape \(3, 24, 40\); expected \(10, rows, columns\)"):
        decode(np.zeros((3, 24, 40)), np.zeros((6, 10, 24, 40)), RANGE)
    with pytest.raises(ConfigError, match="model.detection is null"):
        BoxMap.of(replace(MODEL, detection=None))


def test_groups_classes_and_categories() -> None:
    assert [len(group) for group in GROUPS] == list(GROUP_SIZES)
    assert [DETECTION_CLASSES[i] for i in GROUPS[4]] == ["motorcycle", "bicycle"]
    assert DETECTION_CLASSES[CATEGORY_LABELS["human.pedestrian.police_officer"]] == "pedestrian"
    assert DETECTION_CLASSES[CATEGORY_LABELS["vehicle.bus.bendy"]] == "bus"
    assert "animal" not in CATEGORY_LABELS and "vehicle.emergency.police" not in CATEGORY_LABELS
    assert len(CATEGORY_LABELS) == 15


def test_boxes_move_to_another_frame() -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[0, -1], [1, 0]]
    turn[:3, 3] = [10, 20, 3]
    boxes = Boxes(*(np.array(x, np.float32) for x in ([[1, 2, 3]], [[4, 2, 1]], [0.5], [[3, np.nan]])), np.array([0]))
    moved = boxes.transformed(turn)
    assert moved.centres.tolist() == [[8, 21, 6]] and moved.yaws[0] == pytest.approx(0.5 + np.pi / 2)
    assert np.isnan(moved.velocities).all()  # of a velocity of which one part is unknown, nothing is known


def test_encoded_truth_scores_all_there_is() -> None:
    """mAP is 1, and so is NDS: every class, box and attribute comes back (velocities are known and tell attributes)."""
    truth = boxes_apart(4, spacing=6.0)
    rng = np.random.RandomState(5)
    near = np.linalg.norm(truth.centres[:, :2], axis=1) < 29  # within the range of every class
    truth = replace(truth, velocities=rng.uniform(-3, 3, truth.velocities.shape).astype(np.float32)).take(near)
    truth = replace(truth, attributes=attributes_of(truth))
    assert set(truth.labels.tolist()) == set(range(10))
    found = decode(*as_output(truth), RANGE)
    counts = DetectionCounts([0])
    counts.add(0, truth, replace(found, attributes=attributes_of(found)), None, np.zeros(2))
    counts.sum_over_processes()
    metrics = detection_metrics(counts.result())
    assert metrics["map"].value == pytest.approx(100) and metrics["nds"].value == pytest.approx(100, abs=1e-3)
