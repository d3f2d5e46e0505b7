"""Losses against the recorded cases of the reference, and what the reference cannot do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Dict, Tuple

import numpy as np
import pytest
import torch
from loss_cases import K, ragged_batch
from torch import Tensor
from torch.nn import functional as F

from tpvformer.config import DataConfig, LossConfig
from tpvformer.data.types import Batch
from tpvformer.engine import losses
from tpvformer.model import Prediction
from tpvformer.model.image_head import ImageLogits
from tpvformer.model.tpvformer import FullPrediction

GOLDEN = Path(__file__).parents[1] / "golden_data" / "data_side"
CASES = ("points_17", "voxel_18", "points_missing_classes", "points_confident", "batch2_voxel_17")
LIDARSEG, OCCUPANCY = LossConfig("points", "voxel"), LossConfig("voxel", "voxel")


@pytest.fixture(scope="module")
def golden() -> Tuple[Dict, Dict]:
    return json.loads(GOLDEN.with_suffix(".json").read_text()), np.load(GOLDEN.with_suffix(".npz"))


@pytest.mark.parametrize("case", CASES)
def test_recorded_losses_and_gradients(golden, case: str) -> None:
    numbers, arrays = golden
    stored = torch.from_numpy(arrays[f"loss/{case}/logits"]).requires_grad_()
    labels = torch.from_numpy(arrays[f"loss/{case}/labels"]).long().reshape(1, -1)
    logits = stored.flatten(2).transpose(0, 1).flatten(1)[None]  # the reference flattens the batch
    lovasz = losses.lovasz_labels(logits, labels, 0).sum()
    entropy = losses.cross_entropy(logits, labels, 0).sum()
    assert lovasz.item() == pytest.approx(numbers[f"loss/{case}"]["lovasz"], abs=1e-6)
    assert entropy.item() == pytest.approx(numbers[f"loss/{case}"]["ce"], rel=1e-6)
    for loss, name in ((lovasz, "lovasz"), (entropy, "ce")):
        (grad,) = torch.autograd.grad(loss, stored, retain_graph=True)
        assert np.abs(grad.numpy() - arrays[f"loss/{case}/grad_{name}"]).max() < 1e-9


def one(batch: Batch, i: int) -> Batch:
    """Sample ``i`` alone, without padding."""
    p, m = int(batch.point_lengths[i]), int(batch.voxel_lengths[i])
    cut = {"grid_index": p, "point_labels": p, "point2voxel": p, "voxel_coords": m}
    given = {k: v for k, v in vars(batch).items() if v is not None}
    values = {k: v[i : i + 1, : cut[k]] if k in cut else v[i : i + 1] for k, v in given.items()}
    return replace(batch, **values)


def logits_for(batch: Batch, dense: bool) -> Prediction:
    b, m = batch.voxel_coords.shape[:2]
    points = torch.randn(b, K, m, requires_grad=True)
    return Prediction(torch.randn((b, K, 3, 2, 2) if dense else (b, K, m), requires_grad=True), points)


def test_points_counted_by_voxel_equal_points_one_by_one() -> None:
    batch = ragged_batch()
    logits = torch.randn(2, K, batch.voxel_coords.shape[1], requires_grad=True)
    by_voxel = losses.lovasz_counts(logits, losses.point_counts(batch, K, 0))
    each = logits.gather(2, batch.point2voxel[:, None].expand(-1, K, -1))
    by_point = losses.lovasz_labels(each, batch.point_labels, 0)
    torch.testing.assert_close(by_voxel, by_point)
    grads = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (by_voxel, by_point)]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("loss", "dense"),
    [(LIDARSEG, False), (LIDARSEG, True), (OCCUPANCY, True), (LossConfig("points", "points"), False)],
)
def test_batch_of_two_is_the_mean_of_two_batches_of_one(loss: LossConfig, dense: bool) -> None:
    batch, data = ragged_batch(), DataConfig()
    prediction = logits_for(batch, dense)
    together = losses.total_loss(prediction, batch, loss, data)
    parts = []
    for i in range(2):
        m = int(batch.voxel_lengths[i])
        voxel = prediction.voxel_logits[i : i + 1]
        alone = Prediction(voxel if dense else voxel[..., :m], prediction.point_logits[i : i + 1, :, :m])
        parts.append(losses.total_loss(alone, one(batch, i), loss, data))
    torch.testing.assert_close(together, torch.stack(parts).mean())


def test_what_single_cameras_say_is_a_mean_over_the_labelled_voxels_each_sees() -> None:
    batch, data = ragged_batch(), DataConfig()
    m = batch.voxel_coords.shape[1]
    logits, visible = torch.randn(2, 3, K, m, requires_grad=True), torch.rand(2, 3, m) < 0.5
    plain = logits_for(batch, dense=False)
    prediction = FullPrediction(*plain, ImageLogits(logits, visible), None)
    weighted = replace(LIDARSEG, image=0.5)
    parts = []
    for i in range(2):
        length = int(batch.voxel_lengths[i])
        labels = losses.labels_at_voxels(batch, 0)[i, :length]
        each = [
            F.cross_entropy(logits[i, n].T[j][None], labels[j][None])
            for n, j in visible[i].nonzero().tolist()
            if j < length and labels[j] != 0
        ]
        parts.append(torch.stack(each).mean())
    expected = losses.total_loss(plain, batch, LIDARSEG, data) + 0.5 * torch.stack(parts).mean()
    total = losses.total_loss(prediction, batch, weighted, data)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(
        losses.sample_losses(prediction, batch, weighted, data).mean(), losses.total_loss(plain, batch, LIDARSEG, data)
    )
    unseen = prediction._replace(image=ImageLogits(logits, torch.zeros_like(visible)))
    torch.testing.assert_close(
        losses.total_loss(unseen, batch, weighted, data), losses.total_loss(plain, batch, LIDARSEG, data)
    )


def test_sparse_voxels_equal_dense_ones_where_empty_is_ignored() -> None:
    batch = ragged_batch()
    occupied = torch.zeros_like(batch.voxel_labels)
    for i in range(2):
        cells = batch.voxel_coords[i, : batch.voxel_lengths[i]]
        occupied[i][tuple(cells.T)] = batch.voxel_labels[i][tuple(cells.T)]
    batch.voxel_labels = occupied
    dense = torch.randn(2, K, 3, 2, 2)
    index = losses.flat_index(batch.voxel_coords, (3, 2, 2))[:, None].expand(-1, K, -1)
    points = torch.randn(2, K, batch.voxel_coords.shape[1])
    values = [
        losses.total_loss(Prediction(voxel, points), batch, LIDARSEG, DataConfig())
        for voxel in (dense, dense.flatten(2).gather(2, index))
    ]
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("loss", [LIDARSEG, OCCUPANCY])
def test_without_any_label_the_loss_is_zero_and_has_a_gradient(loss: LossConfig) -> None:
    batch = ragged_batch()
    batch.point_labels.zero_()
    batch.voxel_labels.zero_()
    prediction = logits_for(batch, dense=True)
    value = losses.total_loss(prediction, batch, loss, DataConfig())
    assert value.item() == 0
    value.backward()
    assert prediction.voxel_logits.grad is not None
    assert not prediction.voxel_logits.grad.any()


def test_a_single_labelled_point() -> None:
    labels = torch.tensor([[0, 3, 0]])
    logits = torch.randn(1, K, 3)
    value = losses.lovasz_labels(logits, labels, 0)
    torch.testing.assert_close(value, 1 - logits.softmax(1)[:, 3, 1])


def test_padding_has_no_influence() -> None:
    batch, data = ragged_batch(), DataConfig()
    prediction = logits_for(batch, dense=False)
    before = losses.total_loss(prediction, batch, LIDARSEG, data)
    changed = [x.detach().clone() for x in prediction]
    for x in changed:
        x[1, :, batch.voxel_lengths[1] :] = 1e3
    torch.testing.assert_close(losses.total_loss(Prediction(*changed), batch, LIDARSEG, data), before)


@pytest.mark.parametrize(
    ("loss", "fill", "dense"),
    [(LIDARSEG, 0, False), (OCCUPANCY, 17, True), (OCCUPANCY, 0, False), (LIDARSEG, 17, True)],
)
def test_dense_logits_are_asked_for_only_where_empty_space_is_labelled(
    loss: LossConfig, fill: int, dense: bool
) -> None:
    assert losses.needs_dense_voxels(loss, DataConfig(fill_label=fill)) is dense


def brute_force(probability: Tensor, labels: Tensor) -> Tensor:
    """Lovász-softmax written as the sum over set functions, class by class."""
    values = []
    for c in labels.unique().tolist():
        foreground = (labels == c).float()
        errors = (foreground - probability[c]).abs()
        order = errors.argsort(descending=True)
        previous, value = 0.0, torch.zeros(())
        for k in range(len(order)):
            chosen = foreground[order[: k + 1]]
            jaccard = 1 - (foreground.sum() - chosen.sum()) / (foreground.sum() + (1 - chosen).sum())
            value = value + errors[order[k]] * (jaccard - previous)
            previous = jaccard
        values.append(value)
    return torch.stack(values).mean()


def test_against_the_definition() -> None:
    torch.manual_seed(1)
    labels = torch.randint(1, K, (1, 23))
    logits = torch.randn(1, K, 23)
    torch.testing.assert_close(losses.lovasz_labels(logits, labels, 0)[0], brute_force(logits.softmax(1)[0], labels[0]))
