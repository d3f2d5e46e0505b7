"""Metrics by name: what is averaged, intervals over scenes, rings, and the same numbers on any number of processes; IoU
against the reference's recorded counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tpvformer.config import Config, DataConfig, GridConfig, ModelConfig
from tpvformer.engine.metrics import Scores, confusion_matrix, scores, table
from tpvformer.engine.metrics.bootstrap import DRAWS, interval
from tpvformer.engine.metrics.collect import cell_rings, rows_by_scene
from tpvformer.engine.metrics.named import RING_NAMES, RINGS, definitions, measure, named_table
from tpvformer.engine.metrics.occupancy import class_iou, mean_of_present
from tpvformer.labels import CLASS_NAMES, LABEL_MAPS

OCC3D = LABEL_MAPS["occ3d"]
NAMES = OCC3D.names
K = len(NAMES)
SOURCES = ("points", "voxels", "grid", "camera", "rays")


def matrices(scenes: int, seed: int = 0) -> torch.Tensor:
    """(scenes, rings, K, K); nothing lies in the outermost ring, and class 3 is absent."""
    counts = torch.randint(0, 50, (scenes, len(RING_NAMES), K, K), generator=torch.Generator().manual_seed(seed))
    counts[:, -1] = 0
    counts[:, :, 3] = 0
    return counts


def test_points_and_voxels_are_the_means_that_were_always_printed() -> None:
    counts = matrices(4)
    found = {name: measure(d, counts) for name, d in definitions(OCC3D, ("points", "voxels"), 0).items()}
    assert list(found) == ["miou_points", "miou_small", "miou_points_reference", "miou_voxels", "miou_voxels_reference"]
    known = scores(counts.sum((0, 1)))
    assert found["miou_points"].value == pytest.approx(known.miou)
    assert found["miou_points_reference"].value == pytest.approx(known.miou_reference)
    assert found["miou_points"].classes["bus"] is None
    assert list(found["miou_points"].classes.values()) == pytest.approx(list(known.iou))


def test_small_things_have_a_mean_of_their_own() -> None:
    counts = matrices(4)
    found = {name: measure(d, counts) for name, d in definitions(OCC3D, ("points",), 0).items()}
    small, every = found["miou_small"], found["miou_points"]
    assert list(small.classes) == ["bicycle", "pedestrian", "traffic_cone"]
    assert small.classes == {name: every.classes[name] for name in small.classes}
    assert small.value == pytest.approx(sum(small.classes.values()) / 3)
    counts[:, :, [2, 7, 8]] = 0
    assert measure(definitions(OCC3D, ("points",), 0)["miou_small"], counts).value is None, "there were none"


def test_occ3d_counts_others_in_one_name_and_not_in_the_other() -> None:
    guess, truth = torch.tensor([0, 0, 4, 17, 17]), torch.tensor([0, 4, 4, 17, 4])
    counts = confusion_matrix(guess, truth, K, 255)[None, None].expand(1, len(RING_NAMES), K, K) * 0
    counts = counts.clone()
    counts[0, 1] = confusion_matrix(guess, truth, K, 255)
    found = {name: measure(d, counts) for name, d in definitions(OCC3D, ("camera", "grid"), 255).items()}
    assert found["occ3d_miou"].value == pytest.approx((50 + 100 / 3) / 2)  # others 1/2, car 1/3; free is no class
    assert found["occ3d_miou_no_other"].value == pytest.approx(100 / 3)
    assert found["ssc_miou"].value == pytest.approx(100 / 3)
    assert found["sc_iou"].value == pytest.approx(75)
    assert found["occ3d_miou"].rings == {
        n: pytest.approx((50 + 100 / 3) / 2) if i == 1 else None for i, n in enumerate(RING_NAMES)
    }
    assert found["occ3d_miou"].interval is None, "one scene says nothing about others"


def test_ray_iou_from_counts() -> None:
    """Class 4: 10 rays end in it, 8 are predicted to, 2, 4, 6 right at 1, 2, 4 m."""
    counts = torch.zeros(2, len(RING_NAMES), 5, K, dtype=torch.int64)
    counts[0, 0, :, 4] = torch.tensor([1, 2, 3, 5, 4])
    counts[1, 2, :, 4] = torch.tensor([1, 2, 3, 5, 4])
    found = {name: measure(d, counts) for name, d in definitions(OCC3D, ("rays",), 255).items()}
    expected = [100 * right / (18 - right) for right in (2, 4, 6)]
    assert [found[f"ray_iou@{t}"].value for t in (1, 2, 4)] == pytest.approx(expected)
    assert found["ray_iou"].value == pytest.approx(sum(expected) / 3)
    assert found["ray_iou"].interval == pytest.approx((found["ray_iou"].value,) * 2), "scenes that are alike"
    assert "others" in found["ray_iou"].classes
    assert "others" not in definitions(OCC3D, ("rays",), 0)["ray_iou"].classes


def test_nothing_to_score_is_none_under_every_name() -> None:
    for definition in definitions(OCC3D, SOURCES, 255).values():
        shape = (5, K) if definition.source == "rays" else (K, K)
        empty = measure(definition, torch.zeros(3, len(RING_NAMES), *shape, dtype=torch.int64))
        assert empty.value is empty.interval is None
        assert set(empty.rings.values()) == {None}


def test_intervals_hold_the_value_and_shrink_with_more_scenes() -> None:
    definition = definitions(OCC3D, ("grid",), 0)["ssc_miou"]
    wide, narrow = (measure(definition, matrices(n)) for n in (4, 40))
    for metric in (wide, narrow):
        assert metric.interval is not None and metric.value is not None
        assert metric.interval[0] <= metric.value <= metric.interval[1]
    assert wide.interval and narrow.interval
    assert narrow.interval[1] - narrow.interval[0] < wide.interval[1] - wide.interval[0]
    assert measure(definition, matrices(4)) == wide, "the same scenes are drawn every time"


def test_the_interval_of_two_scenes_by_hand() -> None:
    """One scene all right, one all wrong: draws give 0, 1/2 or 1 of the rows, the middle 95 % reaches both ends."""
    right, wrong = torch.zeros(2, 2, 2, dtype=torch.int64)
    right[1, 1], wrong[1, 0] = 10, 10

    def score(sums: torch.Tensor) -> torch.Tensor:
        assert sums.shape == (DRAWS, 2, 2)
        return mean_of_present(class_iou(sums, (1,)))

    assert interval(torch.stack((right, wrong)), score) == (0, 100)
    assert interval(torch.stack((right,)), score) is None
    assert interval(torch.zeros(2, 2, 2, dtype=torch.int64), score) is None


def test_rings_are_by_the_middle_of_a_voxel() -> None:
    rings = cell_rings(GridConfig(w=10, h=2, z=1, pc_range=(-50.0, -1.0, -1.0, 50.0, 1.0, 1.0)), torch.device("cpu"))
    assert rings[:, 0].tolist() == [4, 3, 2, 1, 0, 0, 1, 2, 3, 4]
    assert len(RING_NAMES) == len(RINGS) + 1


def test_rows_of_scenes() -> None:
    assert rows_by_scene(["b", "a", "b"], ["x", "y", "z"]) == {"x": 0, "y": 1, "z": 0}


def test_the_table_has_every_name_once() -> None:
    counts = {s: matrices(3)[:, :, :5] if s == "rays" else matrices(3) for s in SOURCES}
    found = {name: measure(d, counts[d.source]) for name, d in definitions(OCC3D, SOURCES, 255).items()}
    lines = named_table(found, 3)
    assert [line.split()[0] for line in lines[1 : 1 + len(found)]] == list(found)
    assert "95 % over 3 scenes" in lines[0]
    assert [line.split()[0] for line in lines[-17:]] == list(NAMES[:17])
    assert named_table({}, 0) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"occupancy": "kitti"}, "data.occupancy is 'kitti'; expected one of occ3d, surroundocc"),
        ({"occupancy_mask": "radar"}, "occupancy_mask is 'radar'"),
        ({"occupancy": "surroundocc", "occupancy_mask": "camera"}, "only data.occupancy=occ3d has masks"),
    ],
)
def test_mistakes_about_labels_are_named(data, words) -> None:
    with pytest.raises(ValueError, match=words):
        DataConfig(**data)


def test_the_grid_must_be_that_of_the_labels() -> None:
    data = DataConfig(occupancy="occ3d", fill_label=17, ignore_label=255)
    with pytest.raises(ValueError, match="in the ego frame, but model.grid makes"):
        Config("x", model=ModelConfig(num_classes=18), data=data)
    with pytest.raises(ValueError, match="frame is 'car'"):
        GridConfig(frame="car")
    grid = GridConfig(pc_range=(-40.0, -40.0, -1.0, 40.0, 40.0, 5.4), frame="ego")
    with pytest.raises(ValueError, match="labels voxels; set loss.lovasz_input"):
        Config("x", model=ModelConfig(num_classes=18, grid=grid), data=data)


# ---- IoU


GOLDEN = Path(__file__).parents[2] / "golden_data" / "data_side"
NUMBERS = json.loads(GOLDEN.with_suffix(".json").read_text())


def recorded(case: str) -> torch.Tensor:
    arrays = np.load(GOLDEN.with_suffix(".npz"))
    matrix = torch.zeros(17, 17, dtype=torch.int64)
    for step in range(NUMBERS[f"miou/{case}"]["steps"]):
        out, target = (torch.from_numpy(arrays[f"miou/{case}/{k}{step}"]).long() for k in ("out", "tgt"))
        matrix += confusion_matrix(out, target, 17, 0)
    return matrix


@pytest.mark.parametrize("case", ["random", "absent_classes_5_11", "all_ignored", "perfect", "all_predicted_0"])
def test_recorded_counts_and_mean(case: str) -> None:
    expected, matrix = NUMBERS[f"miou/{case}"], recorded(case)
    assert matrix[1:].sum(1).tolist() == expected["seen"]
    assert matrix.diagonal()[1:].tolist() == expected["correct"]
    assert matrix[:, 1:].sum(0).tolist() == expected["positive"]
    assert scores(matrix).miou_reference == pytest.approx(expected["miou"], rel=1e-6)


def test_absent_classes_are_left_out() -> None:
    result = scores(recorded("absent_classes_5_11"))
    assert [c for c, v in zip(result.classes, result.iou) if v is None] == [5, 11]
    present = [v for v in result.iou if v is not None]
    assert result.miou == pytest.approx(sum(present) / 14)
    assert result.miou_reference == pytest.approx((sum(present) + 200) / 16)


def test_nothing_to_score() -> None:
    result = scores(torch.zeros(17, 17, dtype=torch.int64))
    assert result.miou is None
    assert result.miou_reference == 100


def test_counts_stay_exact_beyond_two_to_the_24() -> None:
    matrix = torch.zeros(17, 17, dtype=torch.int64)
    matrix[11, 11] = 2**24
    matrix += confusion_matrix(torch.tensor([11]), torch.tensor([11]), 17, 0)
    assert scores(matrix).seen[10] == 2**24 + 1


def test_empty_space_counts_as_a_miss_only() -> None:
    predicted, target = torch.tensor([17, 4, 17]), torch.tensor([4, 4, 0])
    result = scores(confusion_matrix(predicted, target, 18, 0))
    assert result.iou[3] == 50
    assert result.seen[3] == 2
    assert len(result.classes) == 16


def test_table_names_every_class_and_both_means() -> None:
    result: Scores = scores(recorded("absent_classes_5_11"))
    lines = table({"pts": result, "vox": result}, CLASS_NAMES)
    assert len(lines) == 1 + 16 + 2
    assert lines[1].split() == ["barrier", ":", f"{result.iou[0]:.2f}%", f"{result.iou[0]:.2f}%", "(188", "points)"]
    assert "n/a" in lines[5]
    assert lines[-2].startswith("miou over the 14 classes present")
    assert lines[-1].startswith("miou_reference")
