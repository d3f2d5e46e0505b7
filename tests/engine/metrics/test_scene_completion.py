"""Scene completion's metrics and losses against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Dict, List, Optional, Tuple

import pytest
import torch
from engine_tools import CPU, MODEL, ROOT
from loss_cases import K, ragged_batch
from torch import Tensor
from torch.nn import functional as F

from tpvformer.compat import load_config
from tpvformer.config import OCCUPANCY_GRIDS, Config, DataConfig, LossConfig
from tpvformer.data.types import Batch
from tpvformer.engine import losses
from tpvformer.engine.bench.inputs import random_batch
from tpvformer.engine.losses.affinity import affinity
from tpvformer.engine.metrics.collect import MetricCounts
from tpvformer.model import Prediction

CAR, ROAD, UNKNOWN = 1, 9, 255


@pytest.fixture
def config(monkeypatch) -> Config:
    """config/tpv_kitti_ssc.py on a grid of 4x3x2 voxels."""
    small = OCCUPANCY_GRIDS["semantickitti"]._replace(shape=(4, 3, 2))
    shipped = load_config(str(ROOT / "config" / "tpv_kitti_ssc.py"))
    monkeypatch.setitem(OCCUPANCY_GRIDS, "semantickitti", small)
    grid = dataclasses.replace(shipped.model.grid, w=4, h=3, z=2, scale_w=1, scale_h=1, scale_z=1)
    return dataclasses.replace(shipped, model=dataclasses.replace(MODEL, grid=grid, num_classes=20, num_cams=1))


def scored(config: Config, truth: Tensor, guess: Tensor) -> Dict[str, Optional[float]]:
    """The metrics of one sample with labels and predicted classes (24,)."""
    batch: Batch = random_batch(config, (96, 64), 50)
    assert batch.voxel_labels.shape == (1, 4, 3, 2) and batch.ray_origins is None
    batch = dataclasses.replace(batch, voxel_labels=truth.view(1, 4, 3, 2).to(torch.uint8))
    logits = F.one_hot(guess.view(1, 4, 3, 2), 20).permute(0, 4, 1, 2, 3).float()
    tally = MetricCounts(config, {batch.tokens[0]: 0}, False, CPU, points=False)
    tally.add(Prediction(logits, None), batch)
    tally.sum_over_processes()
    return {name: metric.value for name, metric in tally.metrics().items()}


def grid(cells: Dict[int, List[int]]) -> Tensor:
    """24 empty voxels but for ``cells``: positions by class."""
    voxels = torch.zeros(24, dtype=torch.int64)
    for number, positions in cells.items():
        voxels[positions] = number
    return voxels


TRUTH = grid({CAR: [0, 1], ROAD: [2, 3, 4, 5], UNKNOWN: [6, 7, 8]})
EVERYTHING = ("sc_iou", "sc_precision", "sc_recall", "ssc_miou")


@pytest.mark.parametrize(
    ("guess", "expected"),
    [
        (grid({CAR: [0, 1], ROAD: [2, 3, 4, 5]}), (100, 100, 100, 100)),
        (grid({CAR: [0, 1], ROAD: [2, 3, 4, 5], 19: [6, 7, 8]}), (100, 100, 100, 100)),  # nothing is known there
        (grid({}), (0, None, 0, 0)),
        # car 1 of 2 and 1 more where road is; road 2 of 4 and 1 more where nothing is
        (grid({CAR: [0, 2], ROAD: [3, 4, 23]}), (400 / 7, 80, 400 / 6, (100 / 3 + 40) / 2)),
        # all of another class: completion is right, no class is; that class is absent and left out of the mean
        (grid({13: [0, 1, 2, 3, 4, 5]}), (100, 100, 100, 0)),
    ],
)
def test_scene_completion_by_hand(config: Config, guess: Tensor, expected: Tuple[Optional[float], ...]) -> None:
    found = scored(config, TRUTH, guess)
    assert tuple(found) == EVERYTHING
    for name, value in zip(EVERYTHING, expected):
        assert found[name] == (None if value is None else pytest.approx(value)), name


def test_nothing_is_known(config: Config) -> None:
    assert scored(config, grid({UNKNOWN: list(range(24))}), grid({CAR: [0]})) == dict.fromkeys(EVERYTHING)


def test_affinity_by_hand() -> None:
    """Free space, two voxels of class 1, one unlabelled; class 2 is absent."""
    shares = [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]
    logits = torch.tensor(shares).log().T[None]
    free = (0.5 / 1.25, 0.5 / 1, (0.75 + 0.5) / 2)
    one = (0.75 / 1.0, 0.75 / 2, 0.75 / 1)
    occupied = (1.25 / 1.75, 1.25 / 2, 0.5 / 1)
    expected = -sum(map(math.log, free + one)) / 2 - sum(map(math.log, occupied))
    assert affinity(logits, torch.tensor([[0, 1, 1, 255]]), 255, 0).tolist() == pytest.approx([expected])


def by_formula(logits: Tensor, labels: Tensor, empty: int) -> Tensor:
    """The affinity losses of one sample, (K,N) and (N,), class by class from whole tables."""
    known = labels != 255
    p, labels = logits.softmax(0)[:, known], labels[known]

    def terms(share: Tensor, truth: Tensor) -> Tensor:
        parts = [((share * truth).sum(), share.sum()), ((share * truth).sum(), truth.sum())]
        parts.append((((1 - share) * (1 - truth)).sum(), (1 - truth).sum()))
        return -torch.stack([(part / whole).log() for part, whole in parts if whole > 0]).sum()

    semantic = torch.stack([terms(p[c], (labels == c).double()) for c in labels.unique()]).mean()
    return semantic + terms(1 - p[empty], (labels != empty).double())


def test_affinity_is_the_formula_and_so_is_its_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 40, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (2, 40))  # class 5 is absent
    labels[0, :7] = 255
    labels[1] = 3  # one class alone: specificity has no denominator
    ours = affinity(logits, labels, 255, 2)
    theirs = torch.stack([by_formula(logits[b], labels[b], 2) for b in range(2)])
    assert torch.allclose(ours, theirs)
    for b in range(2):
        grads = [torch.autograd.grad(loss[b], logits, retain_graph=True)[0] for loss in (ours, theirs)]
        assert torch.allclose(*grads)


def test_affinity_stays_finite() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[0, 1] = 1e4  # certain, and wrong everywhere
    logits.requires_grad_()
    labels = torch.tensor([[0, 0, 2, 2], [255] * 4])  # the second sample has no label
    loss = affinity(logits, labels, 255, 0)
    assert loss[0].isfinite() and loss[0] > 10 and loss[1] == 0
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and not logits.grad[1].any()


def test_weighted_cross_entropy_is_pytorchs() -> None:
    torch.manual_seed(1)
    logits, labels, weights = torch.randn(2, K, 30), torch.randint(0, K, (2, 30)), torch.rand(K) + 0.1
    labels[0, :9] = 255
    found = losses.cross_entropy(logits, labels, 255, weights)
    expected = [F.cross_entropy(logits[b : b + 1], labels[b : b + 1], weights, ignore_index=255) for b in range(2)]
    assert torch.allclose(found, torch.stack(expected))
    nothing = losses.cross_entropy(logits, torch.full((2, 30), 255), 255, weights)
    assert nothing.tolist() == [0, 0]


def test_the_configured_losses_add_up() -> None:
    batch, weights = ragged_batch(), tuple(0.5 + 0.1 * c for c in range(K))
    data = DataConfig(fill_label=0, ignore_label=255)
    prediction = Prediction(torch.randn(2, K, 3, 2, 2), None)
    logits, labels = prediction.voxel_logits.flatten(2), batch.voxel_labels.long().flatten(1)
    entropy = losses.cross_entropy(logits, labels, 255, torch.tensor(weights))
    both = losses.total_loss(prediction, batch, LossConfig("none", "voxel", weights, affinity=True), data)
    assert both.item() == pytest.approx((entropy + affinity(logits, labels, 255, 0)).mean().item(), rel=1e-5)
    assert losses.total_loss(prediction, batch, LossConfig("none", "voxel", weights), data) < both
