"""The engine on the pretended card, whatever the Driving SDK: run by test_npu.py in a process of its own."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from afresh import forget_kernels
from small import CPU, PUBLISHED, shrunk, trained

from tpvformer import ops
from tpvformer.config import OptimConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import make_loader
from tpvformer.engine import train as run
from tpvformer.engine.bench import step as bench
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.checkpoint import state as checkpoint
from tpvformer.engine.checkpoint.state import Progress
from tpvformer.engine.device import preflight as limits
from tpvformer.engine.device.accelerator import pick_device, pin_options, profiler
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation.evaluate import evaluate
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.optim import Stepper
from tpvformer.errors import ConfigError
from tpvformer.model import TPVFormer

NPU, _ = pick_device("npu")


def test_evaluation_matches_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = shrunk(PUBLISHED[0], tmp_path)
    scores = []
    for device in (CPU, NPU):
        model, log = run.build_model(config, device), RunLog(None, False)
        data = FrameDataset(config.data, config.model.grid, "val", 0)
        loader = make_loader(data, config.data, 0, 1, False, 0, **pin_options(device))
        scores.append(evaluate(model, loader, config, World(), device, log))
    assert scores[1].loss == pytest.approx(scores[0].loss, rel=1e-5)
    assert scores[1].pts == scores[0].pts and scores[1].vox == scores[0].vox


def test_half_precision_scales_its_loss_and_a_batch_that_overflows_changes_nothing() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4).to(NPU)
    stepper = Stepper(layer, OptimConfig(), NPU, "fp16")
    assert stepper.scaler is not None
    x = torch.ones(2, 4).to(NPU)
    stepper.zero_grad()
    stepper.backward(layer(x).sum())
    assert float(stepper.update()) == pytest.approx(float(torch.full((20,), 2.0).norm()))  # unscaled before clipping
    before, scale = layer.weight.cpu().clone(), stepper.scaler.get_scale()
    stepper.zero_grad()
    stepper.backward(layer(x).sum() * float("inf"))
    stepper.update()
    assert torch.equal(layer.weight.cpu(), before)
    assert stepper.scaler.get_scale() == scale / 2


def test_a_parameter_without_a_gradient_is_packed_all_the_same() -> None:
    """The fused optimiser would never update it again."""
    used, idle = torch.nn.Linear(3, 3).to(NPU), torch.nn.Linear(3, 3).to(NPU)
    stepper = Stepper(torch.nn.ModuleList([used, idle]), OptimConfig(weight_decay=0.0), NPU)
    assert type(stepper.optimizer).__name__ == "NpuFusedAdamW" and len(stepper.optimizer.param_groups) == 2
    before = idle.weight.cpu().clone()
    for layer in (used, idle):
        stepper.zero_grad()
        stepper.backward(layer(torch.ones(1, 3).to(NPU)).sum())
        stepper.update()
    assert not torch.equal(idle.weight.cpu(), before)


def test_a_checkpoint_of_another_device_goes_on_here_and_back(tmp_path: Path) -> None:
    """Step counts are tensors in PyTorch's AdamW and Python's numbers in the vendor's."""
    config = shrunk(PUBLISHED[0], tmp_path)
    states = []
    source = None
    for device in (CPU, NPU, CPU):
        torch.manual_seed(1)
        model = TPVFormer(config.model).to(device)
        stepper = Stepper(model, config.optim, device)
        if source is not None:
            checkpoint.resume(store.read(source), source, model, stepper, config)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.01) if parameter.requires_grad else None
        stepper.update()
        folder = tmp_path / f"{len(states)}"
        folder.mkdir()
        source = store.write(folder, "epoch_1.pth", checkpoint.capture(model, stepper, config, Progress(epoch=1)))
        states.append(store.read(source))
    steps = [{float(state["step"]) for state in content["optimizer"]["state"].values()} for content in states]
    assert steps == [{1.0}, {2.0}, {3.0}]


def test_what_the_kernels_do_not_take_is_said_when_the_model_is_built(tmp_path: Path, monkeypatch) -> None:
    config = shrunk(PUBLISHED[0], tmp_path)
    odd = dataclasses.replace(config.model, backbone=dataclasses.replace(config.model.backbone, base_width=8))
    with torch.no_grad():
        model = TPVFormer(odd)
    monkeypatch.delenv("TPVFORMER_OPS", raising=False)
    remarks = limits.check_kernels(model, NPU)
    assert remarks == [
        "a deformable convolution has 32 channels in and 32 out, multiples of 64 are supported by the device's kernel: "
        "plain PyTorch does it, more slowly"
    ]
    assert limits.check_kernels(model, CPU) == []
    monkeypatch.setenv("TPVFORMER_OPS", "mx_driving")
    with pytest.raises(ConfigError, match="32 channels in and 32 out"):
        limits.check_kernels(model, NPU)


def test_a_step_that_nothing_was_fused_for_still_waits_for_nothing(tmp_path: Path, monkeypatch) -> None:
    """Without the Driving SDK (PyTorch 2.9 and newer have none) plain operations serve, in static shapes too."""
    from torch_npu.card import events

    config = shrunk(PUBLISHED[0], tmp_path)
    forget_kernels()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mx_driving", None)
        npu = trained(config, NPU, tmp_path / "npu", patch)
        assert sorted(ops.npu.find_all()) == sorted(ops.npu.NAMES)
    forget_kernels()
    assert npu["losses"][0] > 0 and events
    for noted in npu["steps"]:
        assert [event.what for event in noted if event.kind in ("wait", "double")] == []


def test_profiles_are_the_vendors(tmp_path: Path) -> None:
    import torch_npu

    with profiler(NPU, tmp_path / "traces") as recorder:
        for _ in range(5):
            recorder.step()
    assert torch_npu.calls[-2] == ("profiler.schedule", 1, 1, 3, 1)
    assert [kind.name for kind in torch_npu.calls[-1][1]] == ["CPU", "NPU"]
    assert list((tmp_path / "traces").iterdir())


def test_a_step_is_measured(tmp_path: Path) -> None:
    config = shrunk(PUBLISHED[0], tmp_path)
    *_, result = bench.stages(config, "npu", (77, 45), 50, 1, False)
    assert result["ms"]["step"]["wall"] > 0 and result["deform_conv"]["layers"]
