"""Cross-entropy with a focusing factor and a smoothed target, weights of the losses, and the parts of a loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Dict, Optional

import pytest
import torch
from loss_cases import K, ragged_batch
from torch import Tensor
from torch.nn import functional as F

from tpvformer.config import Config, ConfigError, DataConfig, LossConfig, override
from tpvformer.engine import losses
from tpvformer.engine.losses.entropy import costs, soft_entropy, soft_entropy_of_counts
from tpvformer.model import Prediction

CASES = [(2.0, 0.0), (0.5, 0.0), (0.0, 0.1), (1.5, 0.2)]


def naive(logits: Tensor, labels: Tensor, ignore: int, g: float, s: float, weights: Optional[Tensor]) -> Tensor:
    """The formula of the module's head, row by row."""
    classes = logits.shape[1]
    w = torch.ones(classes, dtype=logits.dtype) if weights is None else weights
    means = []
    for sample, truth in zip(logits, labels.tolist()):
        rows, total = [sample.sum() * 0], 0.0
        for n, y in enumerate(truth):
            if y == ignore:
                continue
            p = torch.exp(sample[:, n]) / torch.exp(sample[:, n]).sum()
            for k in range(classes):
                target = (1 - s) * (k == y) + s / classes
                rows.append(-w[k] * target * (1 - p[k]) ** g * torch.log(p[k]))
            total += float(w[y])
        means.append(torch.stack(rows).sum() / (total or 1.0))
    return torch.stack(means)


def case(seed: int = 3):
    torch.manual_seed(seed)
    logits = torch.randn(3, K, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, K, (3, 7))
    labels[2] = 0  # a sample of which no row has a label
    return logits, labels


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("g", "s"), CASES)
def test_values_and_gradients_are_those_of_the_formula(g: float, s: float, weighted: bool) -> None:
    logits, labels = case()
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25], dtype=torch.float64) if weighted else None
    ours, expected = soft_entropy(logits, labels, 0, g, s, weights), naive(logits, labels, 0, g, s, weights)
    torch.testing.assert_close(ours, expected)
    assert ours[2] == 0
    scale = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    grads = [torch.autograd.grad((scale * loss).sum(), logits, retain_graph=True)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*grads)


def test_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4 of a row of the first class."""
    logits, labels = torch.tensor([0.5, 0.25, 0.25]).log()[None, :, None], torch.tensor([[0]])

    def value(g: float, s: float) -> float:
        return soft_entropy(logits, labels, 9, g, s).item()

    assert value(2.0, 0.0) == pytest.approx(0.25 * math.log(2))
    assert value(1.0, 0.0) == pytest.approx(0.5 * math.log(2))
    assert value(0.0, 0.3) == pytest.approx((0.7 + 0.1) * math.log(2) + 2 * 0.1 * math.log(4))
    assert value(2.0, 0.3) == pytest.approx(0.8 * 0.25 * math.log(2) + 2 * 0.1 * 0.5625 * math.log(4))


@pytest.mark.parametrize("weighted", [False, True])
def test_smoothing_alone_is_that_of_pytorch(weighted: bool) -> None:
    logits, labels = case()
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25], dtype=torch.float64) if weighted else None
    for i in range(2):
        each = F.cross_entropy(logits[i : i + 1], labels[i : i + 1], weights, ignore_index=0, label_smoothing=0.2)
        torch.testing.assert_close(soft_entropy(logits, labels, 0, 0.0, 0.2, weights)[i], each)


@pytest.mark.parametrize(("g", "s"), CASES)
def test_points_counted_by_voxel_equal_points_one_by_one(g: float, s: float) -> None:
    batch = ragged_batch()
    logits = torch.randn(2, K, batch.voxel_coords.shape[1], requires_grad=True)
    by_voxel = soft_entropy_of_counts(logits, losses.point_counts(batch, K, 0), g, s)
    each = logits.gather(2, batch.point2voxel[:, None].expand(-1, K, -1))
    torch.testing.assert_close(by_voxel, soft_entropy(each, batch.point_labels, 0, g, s))


@pytest.mark.parametrize("g", [0.5, 2.0])
def test_a_certain_row_has_a_finite_gradient(g: float) -> None:
    """The slope of (1 - p)^g is infinite at p = 1 for g < 1, and its product with log p = 0 would be NaN."""
    logits = torch.tensor([[[200.0], [0.0]]], requires_grad=True)
    costs(logits, g)[:, 0].sum().backward()
    assert logits.grad is not None and not logits.grad.any()


def predicted(dense: bool = False) -> Prediction:
    torch.manual_seed(1)
    m = ragged_batch().voxel_coords.shape[1]
    return Prediction(torch.randn((2, K, 3, 2, 2) if dense else (2, K, m)), torch.randn(2, K, m))


VOXELS = {"fill_label": 4, "ignore_label": 0}
TERMS: Dict[str, Any] = {
    "points": (LossConfig("points", "points"), {}),
    "both": (LossConfig("points", "voxel"), {}),
    "dense": (LossConfig("voxel", "voxel", affinity=True), VOXELS),
}


@pytest.mark.parametrize("name", TERMS)
def test_weights_of_the_terms_and_their_shares(name: str) -> None:
    config, data = TERMS[name][0], DataConfig(**TERMS[name][1])
    prediction, batch = predicted(name == "dense"), ragged_batch()
    terms = losses.segmentation_terms(prediction, batch, config, data)
    assert list(terms) == ["ce", "lovasz", *(["affinity"] if config.affinity else [])]
    weighed = replace(config, ce_weight=10.0, lovasz_weight=0.5, segmentation=3.0)
    weights = {"ce": 10.0, "lovasz": 0.5, "affinity": 1.0}
    parts: Dict[str, Tensor] = {}
    total = losses.total_loss(prediction, batch, weighed, data, parts=parts)
    for term, share in parts.items():
        torch.testing.assert_close(share, 3 * weights[term] * terms[term].mean())
    assert list(parts) == list(terms)
    torch.testing.assert_close(total, torch.stack(list(parts.values())).sum())
    torch.testing.assert_close(losses.sample_losses(prediction, batch, weighed, data).mean(), total)


@pytest.mark.parametrize("name", TERMS)
def test_off_is_the_sum_as_it_was(name: str) -> None:
    """To the bit, with the functions that were there before."""
    config, data = TERMS[name][0], DataConfig(**TERMS[name][1])
    prediction, batch = predicted(name == "dense"), ragged_batch()
    points, voxels = prediction.point_logits, prediction.voxel_logits.flatten(2)
    assert points is not None
    counts = losses.point_counts(batch, K, 0)
    labels = losses.taught_labels(batch, data).flatten(1) if name == "dense" else losses.labels_at_voxels(batch, 0)
    if name == "points":
        loss = -(F.log_softmax(points, 1) * counts).sum((1, 2)) / counts.sum((1, 2)).clamp(min=1)
    else:
        loss = losses.cross_entropy(voxels, labels, 0)
    if name == "dense":
        loss = losses.lovasz_labels(voxels, labels, 0) + loss
        loss = losses.affinity(voxels, labels, 0, 4) + loss
    else:
        loss = losses.lovasz_counts(points, counts) + loss
    assert torch.equal(losses.total_loss(prediction, batch, config, data, parts={}), loss.mean())


@pytest.mark.parametrize("name", TERMS)
def test_the_settings_reach_cross_entropy(name: str) -> None:
    config, data = TERMS[name][0], DataConfig(**TERMS[name][1])
    prediction, batch = predicted(name == "dense"), ragged_batch()
    soft = replace(config, focal=2.0, label_smoothing=0.1)
    plain, changed = (losses.segmentation_terms(prediction, batch, c, data) for c in (config, soft))
    if name == "points":
        counts = losses.point_counts(batch, K, 0)
        expected = soft_entropy_of_counts(prediction.point_logits, counts, 2.0, 0.1)
    else:
        dense = name == "dense"
        labels = losses.taught_labels(batch, data).flatten(1) if dense else losses.labels_at_voxels(batch, 0)
        expected = soft_entropy(prediction.voxel_logits.flatten(2), labels, 0, 2.0, 0.1)
    assert torch.equal(changed["ce"], expected) and not torch.equal(plain["ce"], changed["ce"])
    assert all(torch.equal(plain[term], changed[term]) for term in plain if term != "ce")


def test_wrong_settings_are_named() -> None:
    config = Config(name="x")
    for setting in ("loss.label_smoothing=1", "loss.focal=-1", "loss.ce_weight=-1"):
        with pytest.raises(ConfigError, match=setting.split("=")[0]):
            override(config, [setting])
    with pytest.raises(ConfigError, match="loss.ce_weight is 0 and there is no other loss of points and voxels"):
        override(config, ["loss.ce_weight=0", "loss.lovasz_input=none"])
    override(config, ["loss.ce_weight=0"])
