"""IoU against the reference's recorded counts, and exactness beyond them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tpvformer.engine.metrics import Scores, confusion_matrix, scores, table
from tpvformer.labels import CLASS_NAMES

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
