"""Measuring: parts add up to steps, made-up inputs resemble real ones, and what is refused is refused in a sentence."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import List

import numpy as np
import pytest
import torch
from engine_tools import CPU, POINTS, tiny_config, write_config
from tiny_nuscenes import write_tiny

from tpvformer.cli import main
from tpvformer.config import Config, DataConfig, GridConfig
from tpvformer.data.voxels.voxelize import grid_index, occupied_voxels
from tpvformer.engine.bench import inputs, report, step
from tpvformer.engine.logging.phase_timer import PARTS, PhaseTimer

pytestmark = pytest.mark.usefixtures("quick")
SIZE = (64, 36)


@pytest.fixture(scope="module")
def config() -> Config:
    return tiny_config(DataConfig(workers=0))


@pytest.fixture(scope="module")
def runner(config: Config) -> step.StepBench:
    return step.StepBench(config, CPU, itertools.repeat(inputs.random_batch(config, SIZE, 500)))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    return write_config(folder / "tiny.py", tiny_config(write_tiny(folder / "set", POINTS)))


def arguments(file: Path, *more: str) -> List[str]:
    return ["bench", "--py-config", str(file), "--device", "cpu", "--steps", "1", *more]


@pytest.mark.parametrize("seed", range(3))
def test_a_lidar_turn_fills_as_many_voxels_as_a_real_one(seed: int) -> None:
    grid = GridConfig()
    points, labels = inputs.lidar_turn(inputs.POINTS, np.random.RandomState(seed))
    assert points.shape == (inputs.POINTS, 3)
    assert np.isfinite(points).all()
    assert labels.shape == (inputs.POINTS,)
    assert len(np.unique(labels)) > 10
    cells, _ = occupied_voxels(grid_index(points, grid.shape, grid.pc_range), grid.shape)
    assert 5000 < len(cells) < 7500  # a frame of nuScenes with 34,688 points: 5,884


def test_the_rig_sees_in_all_directions() -> None:
    angles = np.radians(np.arange(0, 360, 15))
    circle = np.stack([12 * np.cos(angles), 12 * np.sin(angles), 0 * angles, 1 + 0 * angles])  # metres
    u, v, depth = (inputs.nuscenes_rig((1600, 900)) @ circle).transpose(1, 0, 2)[:3]  # (6 cameras, angles) each
    inside = (depth > 0) & (u > 0) & (u < 1600 * depth) & (v > 0) & (v < 900 * depth)
    assert inside.any(0).all()


def test_parts_follow_each_other(runner: step.StepBench) -> None:
    spent = runner.step()
    assert list(spent) == [part for part in PARTS if part != "decode"]
    assert all(s.wall > 0 for s in spent.values())
    sums = step.medians([spent])
    assert sums["step"].wall == pytest.approx(sum(s.wall for s in spent.values()))
    assert sums["forward"].wall + sums["backward"].wall < sums["step"].wall


def test_without_marks_the_same_training_happens(config: Config) -> None:
    losses = []
    for by_part in (True, False):
        bench = step.StepBench(config, CPU, itertools.repeat(inputs.random_batch(config, SIZE, 500)))
        for _ in range(2):
            bench.step(by_part)
        losses.append(float(bench.loss))
    assert losses[0] == losses[1]


def test_gradients_are_not_zeros(runner: step.StepBench) -> None:
    runner.step()
    for name, parameter in runner.model.backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_evaluation_mode_is_left_again(runner: step.StepBench) -> None:
    assert runner.infer().wall > 0
    assert runner.model.training


def test_a_part_ends_once() -> None:
    marks = PhaseTimer(CPU)
    marks.end("neck")
    first = marks.spent["neck"]
    marks.end("neck")
    assert marks.spent == {"neck": first}


def test_deformable_layers_are_counted(runner: step.StepBench) -> None:
    shapes = runner.deformable_convolutions()
    assert sum(shapes.values()) == sum(runner.config.model.backbone.blocks[3:])
    (size, dtype, outputs) = next(iter(shapes))
    assert dtype == torch.float32
    assert size[1] == outputs
    forward, backward = step.time_deform_conv((size, dtype, outputs), CPU)
    assert forward.cpu >= 0
    assert backward.wall > 0


def test_command_on_random_inputs(file: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "deep" / "bench.json"
    traces = tmp_path / "traces"
    more = ("--size", "64x36", "--points", "300", "--json", str(out), "--profile", str(traces))
    assert main(arguments(file, *more)) == 0
    text = capsys.readouterr().out
    assert f"traces in {traces}" in text and any(traces.iterdir())
    for part in ("backbone", "encoder", "aggregator", "backward", "optimiser", "step without DCNv2", "peak memory"):
        assert part in text
    result = json.loads(out.read_text())
    assert result["points"] == [300]
    assert result["command"].startswith(f"tpvformer bench --py-config {file}")
    assert result["versions"]["torch"] == torch.__version__
    assert result["ms"]["step"]["wall"] > result["ms"]["backbone"]["wall"] > 0


def test_command_on_the_configured_data(file: Path, capsys) -> None:
    assert main(arguments(file, "--data", "--set", "data.workers=0")) == 0
    text = capsys.readouterr().out
    assert "decode" in text
    assert "one sample, decoded in this process" in text


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--data", "--points", "5"], "--size and --points describe random inputs"),
        (["--data", "--set", "data.train_infos=nowhere.pkl"], "nowhere.pkl"),
        (["--device", "quantum"], "device 'quantum' is unknown"),
        (["--set", "train.precision=fp8"], "expected 'auto', 'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_mistakes_are_one_line(file: Path, more: List[str], text: str, capsys) -> None:
    assert main(arguments(file, *more)) == 2
    err = capsys.readouterr().err
    assert err.startswith("tpvformer bench: ")
    assert err.count("\n") == 1
    assert text in err


def test_tables_line_up() -> None:
    lines = report.table([["ms", "wall"], ["backbone", "7.0"], ["neck", "123.4"]]).splitlines()
    assert lines == ["ms         wall", "backbone    7.0", "neck      123.4"]
