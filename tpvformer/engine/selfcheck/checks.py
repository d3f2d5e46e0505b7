"""Check more than single operations: the optimiser, a training step, and its time."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import statistics
from typing import Any, Dict, Generator, List, Tuple

import torch

from tpvformer.config import Config, OptimConfig
from tpvformer.engine.bench.inputs import POINTS, SIZE, pinned, random_batch, roughen
from tpvformer.engine.bench.step import StepBench
from tpvformer.engine.device.accelerator import peak_memory_mib, pin_options, reset_peak_memory
from tpvformer.engine.device.precompile import small
from tpvformer.engine.forward import predict
from tpvformer.engine.logging.phase_timer import PhaseTimer
from tpvformer.engine.losses import total_loss
from tpvformer.engine.optim import Stepper
from tpvformer.engine.train import build_model
from tpvformer.labels import NUSCENES
from tpvformer.model import TPVFormer

STEPS, WARMUP = 20, 3
UPDATES = 5
SMALL_SIZE, MODEL_POINTS = (208, 120), 2000  # images (W, H) and points of the compared step


def shrunk(config: Config) -> Config:
    """Return the same configuration with few cells, blocks and layers, all cameras, and unscaled images."""
    model = dataclasses.replace(small(config.model), num_cams=config.model.num_cams)
    # published dense labels have a grid of one size
    plain = {"format": "nuscenes", "occupancy": "", "occupancy_mask": ""}
    if config.data.classes is None:
        plain["label_map"] = "nuscenes"
        model = dataclasses.replace(model, num_classes=min(model.num_classes, len(NUSCENES.colors)))
    data = dataclasses.replace(config.data, batch_size=1, image_scale=1.0, **plain)
    # the render loss needs dense labels, and draws other numbers on each device
    weights = config.loss.class_weights[: model.num_classes]
    loss = dataclasses.replace(config.loss, render=0.0, class_weights=weights)
    return dataclasses.replace(config, name=f"a small {config.name}", model=model, data=data, loss=loss)


@contextlib.contextmanager
def plain_operations() -> Generator[None, None, None]:
    """Use the plain PyTorch operations inside the context."""
    before = os.environ.get("TPVFORMER_OPS")
    os.environ["TPVFORMER_OPS"] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TPVFORMER_OPS"]
        else:
            os.environ["TPVFORMER_OPS"] = before


def optimiser(device: torch.device) -> Tuple[bool, str]:
    """Compare five steps of AdamW with clipping on the device and on the CPU, from the same gradients."""
    places = []
    for place in (torch.device("cpu"), device):
        generator = torch.Generator().manual_seed(0)
        layers = torch.nn.ModuleDict({"backbone": torch.nn.Linear(64, 64), "rest": torch.nn.Linear(64, 33)})
        with torch.no_grad():
            for parameter in layers.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        layers = layers.to(place)
        stepper = Stepper(layers, OptimConfig(lr=1e-2), place)
        for _ in range(UPDATES):
            stepper.zero_grad()
            slopes = [torch.randn(p.shape, generator=generator).to(place) for p in layers.parameters()]
            parts = [(p * s).sum() for p, s in zip(layers.parameters(), slopes)]
            stepper.backward(torch.stack(parts).sum())
            norm = stepper.update()
        places.append((float(norm), torch.cat([p.detach().cpu().flatten() for p in layers.parameters()])))
    (norm, expected), (found_norm, found) = places
    gap = float((found - expected).norm() / expected.norm())
    name = type(stepper.optimizer).__name__
    text = f"{name}, {UPDATES} steps: weights {gap:.1e}, norm before clipping {abs(found_norm / norm - 1):.1e}"
    return gap <= 1e-5 and abs(found_norm / norm - 1) <= 1e-4, text


def training_step(config: Config, device: torch.device) -> Tuple[bool, str]:
    """Compare loss and gradients of the configured model, with few cells and blocks, on the device and on the CPU."""
    few = shrunk(config)
    few = dataclasses.replace(few, model=dataclasses.replace(few.model, dropout=0.0))
    few = dataclasses.replace(few, train=dataclasses.replace(few.train, precision="fp32"))
    batch = random_batch(few, SMALL_SIZE, MODEL_POINTS)
    losses: List[float] = []
    gradients: List[Dict[str, torch.Tensor]] = []
    for place in (torch.device("cpu"), device):
        model = build_model(few, place)
        _disturb(model)
        with plain_operations() if not losses else contextlib.nullcontext():
            prediction = predict(model.train(), batch.to(place), few)
            loss = total_loss(prediction, batch.to(place), few.loss, few.data, few.model.grid)
            loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None})
    missing = sorted(set(gradients[0]) ^ set(gradients[1]))
    if missing:
        return False, f"{len(missing)} parameters have a gradient in one place only, {missing[0]} first"
    total = torch.cat([g.flatten() for g in gradients[0].values()]).norm()
    gap = torch.cat([(gradients[1][n] - g).flatten() for n, g in gradients[0].items()]).norm() / total
    text = f"loss {losses[1]:.6f}, the CPU's {losses[0]:.6f}; {len(gradients[0])} gradients {float(gap):.1e}"
    return abs(losses[1] / losses[0] - 1) <= 1e-4 and float(gap) <= 1e-2, text


def _disturb(model: TPVFormer) -> None:
    """Move sampling points off the pixels, where gradients are discontinuous, and activate the residual branches."""
    roughen(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "offsets." in name and name.endswith("bias"):
                parameter.add_((torch.rand(parameter.shape, generator=generator) - 0.5).to(parameter.device))
            elif name.endswith("bn3.weight"):
                parameter.fill_(0.2)


def timing(config: Config, device: torch.device, size: Tuple[int, int]) -> Dict[str, Any]:
    """Time 20 training steps of the configured model on random images of ``size`` (W, H), in ms."""
    points = POINTS * size[0] // SIZE[0]
    batch = pinned(random_batch(config, size, points), **pin_options(device))
    runner = StepBench(config, device, itertools.repeat(batch))
    for _ in range(WARMUP):
        runner.step(by_part=False)
    reset_peak_memory(device)
    spent: List[float] = []
    for _ in range(STEPS):
        marks = PhaseTimer(device)
        runner.step(by_part=False)
        marks.end("step")
        spent.append(1000 * marks.spent["step"].wall)
    assert runner.loss is not None
    return {
        "steps": STEPS,
        "median_ms": statistics.median(spent),
        "least_ms": min(spent),
        "most_ms": max(spent),
        "peak_memory_mib": peak_memory_mib(device),
        "loss": float(runner.loss),
    }
