"""The detection head: pooling of columns, shapes, losses, and a model that is unchanged without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tpvformer.compat import load_config
from tpvformer.config import Config, ConfigError, DetectionConfig, GridConfig, override
from tpvformer.data.detection.boxes import GROUP_OF
from tpvformer.engine.bench.inputs import random_batch
from tpvformer.engine.forward import predict
from tpvformer.engine.losses import sample_losses, total_loss
from tpvformer.engine.losses.detection import box_l1, detection_losses, focal
from tpvformer.model import TPVFormer
from tpvformer.model.columns import pooled_columns
from tpvformer.model.detection import DetectionMaps

GRID = GridConfig(w=5, h=7, z=3)


def small(detection: bool = True, **loss: float) -> Config:
    config = load_config("config/debug.py")
    if not detection:
        return config
    model = replace(config.model, detection=DetectionConfig(scale=2, channels=16, group_channels=8, blocks=1))
    return replace(config, model=model, loss=replace(config.loss, detection=1.0, **loss))


@pytest.mark.parametrize("step", [None, 1 << 20])
def test_columns_are_pooled_over_heights(step: Optional[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one dense tensor of all voxels, in float64: values and gradients, with ties of two heights."""
    monkeypatch.setattr("tpvformer.model.columns.ROWS_VOXELS", step or GRID.w * GRID.z * 2)
    torch.manual_seed(0)
    first = nn.Linear(4, 6).double()
    planes = torch.randn(2, GRID.num_queries, 4, dtype=torch.float64, requires_grad=True)
    hw, zh, wz = (part.unflatten(1, shape) for part, shape in zip(planes.split(GRID.plane_sizes, 1), GRID.plane_shapes))
    voxels = F.softplus(first(hw[:, None] + zh[:, :, :, None] + wz.transpose(1, 2)[:, :, None]))
    dense = torch.cat([voxels.amax(1), voxels.mean(1)], -1).permute(0, 3, 1, 2)
    weights = torch.randn_like(dense)
    expected = torch.autograd.grad((dense * weights).sum(), (planes, *first.parameters()))
    pooled = pooled_columns(GRID, planes, first)
    assert torch.allclose(pooled, dense, rtol=1e-12)
    for found, wanted in zip(torch.autograd.grad((pooled * weights).sum(), (planes, *first.parameters())), expected):
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(pooled_columns(GRID, planes, first), pooled)


@pytest.mark.parametrize("planes", [("hw", "zh", "wz"), ("hw",)])
def test_output_and_training_step(planes: tuple) -> None:
    config = small()
    if len(planes) == 1:
        dim = config.model.dim
        config = replace(
            config, model=replace(config.model, planes=planes, view_attn="hw", position_dims=(dim // 2, dim - dim // 2))
        )
    torch.manual_seed(0)
    model, batch = TPVFormer(config.model), random_batch(config, (160, 96), 500)
    prediction = predict(model, batch, config)
    grid = config.model.grid
    assert isinstance(prediction.detection, DetectionMaps)
    assert prediction.detection.heatmaps.shape == (2, 10, grid.h * 2, grid.w * 2)
    assert prediction.detection.values.shape == (2, 6, 10, grid.h * 2, grid.w * 2)
    assert prediction.detection.heatmaps.sigmoid().mean().item() == pytest.approx(0.1, abs=0.02)
    total_loss(prediction, batch, config.loss, config.data).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert model.detection is not None and all(p.grad.abs().max() > 0 for p in model.detection.parameters())


def test_a_model_without_the_head_is_unchanged() -> None:
    """The head comes last: the same seed gives the same weights before it, and the same logits but for rounding."""
    torch.manual_seed(3)
    plain = TPVFormer(small(False).model).eval()
    torch.manual_seed(3)
    both = TPVFormer(small().model).eval()
    state, more = plain.state_dict(), both.state_dict()
    assert all(value.equal(more[name]) for name, value in state.items())
    assert {name.split(".")[0] for name in set(more) - set(state)} == {"detection"}
    batch = random_batch(small(), (160, 96), 300)
    with torch.no_grad():
        one, other = (predict(m, batch, c) for m, c in ((plain, small(False)), (both, small())))
    assert len(one) == 2
    torch.testing.assert_close(one.voxel_logits, other.voxel_logits, rtol=1e-5, atol=1e-5)


def test_frozen_parts_keep_their_weights_and_have_no_dropout() -> None:
    config = small()
    model = TPVFormer(config.model)
    model.freeze(("backbone", "neck", "encoder", "aggregator"))
    model.train()
    assert model.detection is not None and model.detection.training and not model.encoder.training
    batch = random_batch(config, (160, 96), 300)
    total_loss(predict(model, batch, config), batch, config.loss, config.data).backward()
    learned = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {"detection"}


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0]]]])
    p = logits.sigmoid().flatten().tolist()
    expected = -np.log(p[0]) * (1 - p[0]) ** 2 - np.log(1 - p[1]) * p[1] ** 2 * (1 - 0.5) ** 4
    assert focal(logits, torch.tensor([[[[1.0, 0.5]]]])).item() == pytest.approx(expected, rel=1e-6)


def test_box_values_are_read_at_the_centres() -> None:
    """Wrong by 1 in one value, at one box, of its own group; an unknown velocity is not learned."""
    config = small()
    batch = random_batch(config, (160, 96), 300)
    assert batch.box_cells is not None and batch.box_labels is not None and batch.box_values is not None
    rows, columns = batch.heatmaps.shape[2:]
    values = torch.zeros(2, 6, 10, rows * columns)
    for i in range(2):
        for cell, label, row in zip(batch.box_cells[i], batch.box_labels[i], batch.box_values[i]):
            values[i, GROUP_OF[label], :, cell] = row
    values = values.unflatten(3, (rows, columns))
    unique = len({(int(c), GROUP_OF[int(k)]) for c, k in zip(batch.box_cells[0], batch.box_labels[0])})
    if unique == len(batch.box_cells[0]):
        assert box_l1(values, batch)[0] == 0
    cell, group = int(batch.box_cells[1, -1]), GROUP_OF[int(batch.box_labels[1, -1])]
    base = box_l1(values, batch)[1]
    values[1, group, 3, cell // columns, cell % columns] += 1
    assert box_l1(values, batch)[1] - base == pytest.approx(1, abs=1e-4)
    values[1, group, 8, cell // columns, cell % columns] += 1
    assert box_l1(values, batch)[1] - base == pytest.approx(1.2, abs=1e-4)
    batch.box_values[1, -1, 8:] = torch.nan
    assert box_l1(values, batch)[1] - base == pytest.approx(1, abs=1e-4)


def test_every_box_weighs_the_same_in_a_batch() -> None:
    config = small()
    batch = random_batch(config, (160, 96), 300)
    batch.heatmaps[1] = 0  # a sample without boxes
    batch.box_labels[1] = -1
    model = TPVFormer(config.model).eval()
    maps = predict(model, batch, config).detection
    sums = focal(maps.heatmaps, batch.heatmaps) + 0.25 * box_l1(maps.values, batch)
    count = (batch.heatmaps[0] == 1).sum()
    alone, together = (detection_losses(maps, batch, together=t) for t in (False, True))
    assert torch.allclose(alone, sums / torch.stack([count, torch.tensor(1)]))
    assert torch.allclose(together, sums / (count / 2))
    lonely = override(config, ["loss.segmentation=0"])
    prediction = predict(model, batch, lonely)
    assert torch.allclose(sample_losses(prediction, batch, lonely.loss, lonely.data), alone)
    assert torch.allclose(total_loss(prediction, batch, lonely.loss, lonely.data), together.mean())


def test_weights_and_head_belong_together() -> None:
    with pytest.raises(ConfigError, match=r"loss.detection is 0.0 and model.detection is set"):
        override(small(), ["loss.detection=0"])
    with pytest.raises(ConfigError, match="both 0"):
        override(small(False), ["loss.segmentation=0"])
    asked = override(small(False), ["model.detection.channels=8", "loss.detection=2"])
    assert asked.model.detection == DetectionConfig(channels=8)
    assert override(asked, ["model.detection=null", "loss.detection=0"]) == small(False)
    with pytest.raises(ConfigError, match="train.freeze"):
        override(small(), ["train.freeze=[head]"])
