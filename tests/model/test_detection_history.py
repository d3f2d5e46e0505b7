"""What the head of boxes is shown of the past: the same places, nothing without a past, nothing before training."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tpvformer.compat import load_config
from tpvformer.config import DetectionConfig, HistoryConfig, ModelConfig
from tpvformer.model import TPVFormer
from tpvformer.model.detection_history import REACH, DetectionHistory
from tpvformer.model.grid import own_plane_points
from tpvformer.model.history import PlaneHistory


def _config(frames: int = 1) -> ModelConfig:
    model = load_config("config/debug.py").model
    return dataclasses.replace(model, history=HistoryConfig(frames=frames), detection=DetectionConfig())


def _history(config: ModelConfig, frames: int = 1, batch: int = 2) -> PlaneHistory:
    queries = sum(config.grid.plane_sizes)
    torch.manual_seed(1)
    planes = torch.randn(batch, frames, queries, config.dim)
    ages = 0.5 * torch.arange(1, frames + 1).float().expand(batch, frames)
    return PlaneHistory(planes, torch.eye(4).repeat(batch, frames, 1, 1), ages)


def _shows(config: ModelConfig, channel: int, factor: float = 1.0) -> DetectionHistory:
    """A module that returns one channel of what it compares, times ``factor``, where that is positive."""
    module = DetectionHistory(config)
    with torch.no_grad():
        for layer in (module.compare, module.output):
            layer.weight.zero_()
            layer.bias.zero_()
        module.sharpness.fill_(100.0)
        module.compare.weight[0, channel, 1, 1] = factor
        module.output.weight[0, 0, 1, 1] = 1.0
    return module


def _shows_the_past(config: ModelConfig) -> DetectionHistory:
    return _shows(config, config.dim)


def test_a_fresh_module_changes_no_box_and_gets_gradients() -> None:
    config = _config()
    torch.manual_seed(0)
    model = TPVFormer(config).train()
    assert model.detection_history is not None
    planes, history = torch.randn(2, sum(config.grid.plane_sizes), config.dim), _history(config)
    alone, beside = model.boxes(planes), model.boxes(planes, history)
    assert alone is not None and beside is not None
    assert torch.equal(alone.heatmaps, beside.heatmaps) and torch.equal(alone.values, beside.values)
    beside.values.square().sum().backward()
    gradient = model.detection_history.output.weight.grad
    assert gradient is not None and gradient.any()


@pytest.mark.parametrize("turn", [0.0, 30.0])
def test_the_past_is_shown_at_the_same_places_of_the_street(turn: float) -> None:
    """A field that is linear in the place is read exactly, whatever the vehicle did."""
    config = _config()
    grid, module = config.grid, _shows_the_past(config)
    low, high = torch.tensor(grid.pc_range[:2]), torch.tensor(grid.pc_range[3:5])
    cells = own_plane_points(grid, 0)
    metres = low + cells * (high - low)
    history = _history(config, batch=1)
    angle, shift = math.radians(turn), torch.tensor([3.0, -2.0])
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    history.to_past[0, 0, :2, :2], history.to_past[0, 0, :2, 3] = rotation, shift
    slope, bias = torch.tensor([0.3, -0.2]), 1000.0
    history.planes[0, 0, : len(cells), 0] = metres @ slope + bias
    found = module(torch.zeros(1, sum(grid.plane_sizes), config.dim), history).features[0, 0].flatten()
    then = metres @ rotation.T + shift
    edge = (high - low) / torch.tensor([grid.w, grid.h]) / 2
    inside = ((then > low + edge) & (then < high - edge)).all(1)  # nearer to the border zeros are mixed in
    assert 0.2 < inside.float().mean() < 1
    torch.testing.assert_close(found[inside], (then @ slope + bias)[inside], atol=2e-3, rtol=0)
    assert not found[((then < low - edge) | (then > high + edge)).any(1)].any()


def test_of_several_frames_the_newest_that_is_known_is_shown() -> None:
    config = _config(frames=3)
    module, history = _shows_the_past(config), _history(config, frames=3, batch=3)
    history = history._replace(planes=history.planes.abs())
    unknown = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
    found = module(torch.zeros_like(history.planes[:, 0]), history.of_samples(unknown)).features[:, 0].flatten(1)
    hw = config.grid.plane_sizes[0]
    for sample, frame in ((0, 0), (1, 1)):
        torch.testing.assert_close(found[sample], history.planes[sample, frame, :hw, 0], atol=1e-5, rtol=1e-5)
    assert not found[2].any()


@pytest.mark.parametrize(("axis", "cells"), [(0, 3), (0, -5), (1, 2), (1, -7)])
def test_a_displacement_is_told_as_a_velocity(axis: int, cells: int) -> None:
    """What lies ``cells`` further along an axis than half a second ago has moved by so many cells in that time."""
    config = _config()
    grid = dataclasses.replace(config.grid, w=26, h=22)
    config = dataclasses.replace(config, grid=grid)
    history = _history(config, batch=1)
    rows, cols = grid.plane_shapes[0]
    then = history.planes[0, 0, : rows * cols].unflatten(0, (rows, cols))
    now = then.roll(cells, 1 if axis == 0 else 0)  # columns run along x, rows along y
    planes = torch.zeros(1, sum(grid.plane_sizes), config.dim)
    planes[0, : rows * cols] = now.flatten(0, 1)
    speed = cells * (grid.pc_range[axis + 3] - grid.pc_range[axis]) / (cols, rows)[axis] / 0.5
    module = _shows(config, 0)
    with torch.no_grad():
        module.output.bias[-2] = 1.0  # the gate of the fifth group of classes
    found = module(planes, history).velocities[0]
    assert not found[[0, 1, 2, 3, 5]].any()
    other = found[4, 1 - axis, REACH:-REACH, REACH:-REACH]
    torch.testing.assert_close(other, torch.zeros_like(other), atol=0.05 * abs(speed), rtol=0)
    found = found[4, axis]
    inner = found[REACH:-REACH, REACH:-REACH]
    assert inner.numel() == 8 * 12
    torch.testing.assert_close(inner, torch.full_like(inner, speed), atol=0.05 * abs(speed), rtol=0)
