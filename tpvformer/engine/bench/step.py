"""Time whole training steps of a configuration by part, with the training code, on random or real inputs."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tpvformer import ops
from tpvformer.config import Config
from tpvformer.data.dataset import open_frames
from tpvformer.data.samplers import TrainSampler
from tpvformer.data.types import Batch
from tpvformer.engine.bench.inputs import POINTS, SIZE, pinned, random_batch, roughen
from tpvformer.engine.device.accelerator import (
    PROFILED,
    peak_memory_mib,
    pick_device,
    pin_options,
    profiler,
    reset_peak_memory,
    time_convolutions,
)
from tpvformer.engine.device.compile import compile_network, wanted
from tpvformer.engine.device.memory import keep_freed_memory
from tpvformer.engine.device.precision import choose, prepare
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.forward import predict
from tpvformer.engine.loading import Loading, rows_for
from tpvformer.engine.logging.phase_timer import BACKWARD, FORWARD, PARTS, Elapsed, PhaseTimer, Watch
from tpvformer.engine.losses import total_loss
from tpvformer.engine.optim import Stepper
from tpvformer.engine.optim.average import WeightAverage
from tpvformer.engine.train import build_model, set_precision
from tpvformer.errors import ConfigError
from tpvformer.model.backbone import ModulatedDeformConv3x3

Shape = Tuple[Tuple[int, ...], torch.dtype, int]  # input shape and type, output channels of a DCNv2


class StepBench:
    """Train a model with random weights on given batches; ``step`` takes the next one.

    A residual branch whose initial scale is 0 gets 0.2: gradients behind it would be zeros, which compute faster.
    """

    def __init__(self, config: Config, device: torch.device, batches: Iterator[Batch], loads: bool = False) -> None:
        self.config, self.device, self.batches, self.loads = config, device, batches, loads
        self.model = build_model(config, device)
        roughen(self.model)
        for name, parameter in self.model.backbone.named_parameters():
            if name.endswith("bn3.weight") and not parameter.any():
                torch.nn.init.constant_(parameter, 0.2)
        self.model.train()
        self._uncompiled = ""  # why, where train.compile was asked for and failed
        compiles = wanted(config.train.compile, device)
        self._compiled = compile_network(self.model, device, say=self._note) if compiles else None
        self.stepper = Stepper(self.model, config.optim, device, config.train.precision)
        self._average = WeightAverage(self.model, config.train.ema) if config.train.ema else None
        self.loss: Optional[Tensor] = None
        self._watch = Watch(self.model)

    def _note(self, why: str) -> None:
        self._uncompiled = why
        print(why, file=sys.stderr)

    @property
    def compilation(self) -> str:
        """Return "active", "off" if ``train.compile`` does not ask for it, or why compilation failed."""
        if self._compiled is None:
            return "off"
        return "active" if self._compiled.active else self._uncompiled

    def use(self, precision: str) -> None:
        """Switch to another ``train.precision``."""
        set_precision(self.model, dataclasses.replace(self.config.train, precision=precision), self.device)

    def step(self, by_part: bool = True) -> Dict[str, Elapsed]:
        """Run one training step; ``by_part`` synchronises with the device after each part, otherwise nothing does."""
        marks = self._watch.marks = PhaseTimer(self.device) if by_part else None
        try:
            batch = next(self.batches)
            if marks and self.loads:
                marks.end("decode")
            self.stepper.zero_grad()
            batch = batch.to(self.device, non_blocking=True)
            prediction = predict(self.model, batch, self.config)
            loss = total_loss(prediction, batch, self.config.loss, self.config.data, self.config.model.grid)
            if marks:
                marks.end("loss")
            self.stepper.backward(loss)
            if marks:
                marks.end("backward images")
            self.stepper.update()
            if self._average is not None:
                self._average.update()
            keep_freed_memory(self.device.type)
            if marks:
                marks.end("optimiser")
        finally:
            self._watch.marks = None
        self.loss = loss.detach()
        return marks.spent if marks else {}

    def run(self, steps: int) -> Elapsed:
        """Return the mean time of ``steps`` successive steps, with one synchronisation at the end."""
        marks = PhaseTimer(self.device)
        for _ in range(steps):
            self.step(by_part=False)
        marks.end("all")
        return Elapsed(*(seconds / steps for seconds in marks.spent["all"]))

    @torch.no_grad()
    def infer(self) -> Elapsed:
        """Time one forward pass as in evaluation, transfer included."""
        self.model.eval()
        marks = PhaseTimer(self.device)
        predict(self.model, next(self.batches).to(self.device, non_blocking=True), self.config)
        marks.end("all")
        self.model.train()
        return marks.spent["all"]

    def deformable_convolutions(self) -> Dict[Shape, int]:
        """Run a forward pass; return the input shapes of the DCNv2 layers, with the number of layers of each."""
        found: Counter = Counter()
        handles: List[RemovableHandle] = []
        for layer in self.model.modules():
            if isinstance(layer, ModulatedDeformConv3x3):

                def note(_: torch.nn.Module, inputs: Tuple[Tensor, ...], outputs: int = layer.weight.shape[0]) -> None:
                    found[(tuple(inputs[0].shape), inputs[0].dtype, outputs)] += 1

                handles.append(layer.conv_offset.register_forward_pre_hook(note))  # has the same input as the layer
        try:
            with torch.no_grad():
                predict(self.model, next(self.batches).to(self.device), self.config)
        finally:
            for handle in handles:
                handle.remove()
        return dict(found)


def time_deform_conv(shape: Shape, device: torch.device, repeats: int = 2) -> Tuple[Elapsed, Elapsed]:
    """Return the median times, forward and backward, of ``ops.modulated_deform_conv2d`` alone on such an input."""
    (n, c, h, w), dtype, outputs = shape
    generator = torch.Generator().manual_seed(0)

    def leaf(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator) * scale).to(device)

    x = leaf(n, c, h, w).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    offset, mask = leaf(n, 18, h, w).requires_grad_(), leaf(n, 9, h, w).sigmoid().requires_grad_()
    weight = leaf(outputs, c, 3, 3, scale=(9 * c) ** -0.5).to(dtype).requires_grad_()
    gradient = leaf(n, outputs, h, w).to(dtype).contiguous(memory_format=torch.channels_last)
    runs: List[Dict[str, Elapsed]] = []
    for _ in range(repeats + 1):
        marks = PhaseTimer(device)
        out = ops.modulated_deform_conv2d(x, offset, mask, weight, padding=1)
        marks.end("forward")
        torch.autograd.grad(out, (x, offset, mask, weight), gradient)
        marks.end("backward")
        runs.append(marks.spent)
    return median(run["forward"] for run in runs[1:]), median(run["backward"] for run in runs[1:])


def median(values: Iterator[Elapsed]) -> Elapsed:
    """Return the medians of the wall times and of the CPU times."""
    both = list(values)
    return Elapsed(statistics.median(v.wall for v in both), statistics.median(v.cpu for v in both))


def medians(runs: Sequence[Dict[str, Elapsed]]) -> Dict[str, Elapsed]:
    """Return medians by part, and of the sums "forward", "backward" and "step" of each step."""
    out = {part: median(run[part] for run in runs) for part in PARTS if part in runs[0]}
    for name, parts in (("forward", FORWARD), ("backward", BACKWARD), ("step", PARTS)):
        sums = ([run[part] for part in parts if part in run] for run in runs)
        out[name] = median(Elapsed(sum(s.wall for s in each), sum(s.cpu for s in each)) for each in sums)
    return out


def stages(
    config: Config,
    device_name: str,
    size: Optional[Tuple[int, int]],
    points: Optional[int],
    steps: int,
    data: bool,
    profile: Optional[Path] = None,
) -> Iterator[Dict[str, Any]]:
    """Measure ``steps`` training steps; yield the numbers as they are written to JSON, times in milliseconds.

    The same dictionary is yielded when the steps are timed, when the deformable convolutions are, and after the
    profile. "compilation" is "active", "off", or why ``train.compile`` failed: then the times are those of eager code.

    Random inputs have images of ``size`` (W, H), as on the disk, and ``points`` lidar points. With ``data`` the
    configured training set is read through the training's loader instead. ``profile`` is a folder for the traces of
    some further steps. Raises ConfigError and DataError.
    """
    if data and (size or points):
        raise ConfigError("--size and --points describe random inputs; leave them out with --data")
    device, _ = pick_device(device_name)
    decoding: Optional[Elapsed] = None
    if data:
        decoding, batches = _configured(config, device)
    else:
        batch = random_batch(config, size or SIZE, points or POINTS, rows_for(config, device))
        batches = itertools.repeat(pinned(batch, **pin_options(device)))
    precision = choose(config.train.precision, device)
    notes = [*prepare(config, device), *([precision.warning] if precision.warning else ())]
    time_convolutions(device)
    runner = StepBench(config, device, batches, loads=data)
    first = next(runner.batches)
    shapes = runner.deformable_convolutions()
    runner.run(1 if device.type == "cpu" else 4)  # the first steps compile
    reset_peak_memory(device)
    runs = [runner.step() for _ in range(steps)]
    whole = median(runner.run(steps) for _ in range(3)) if device.type != "cpu" else None
    peak = peak_memory_mib(device)
    assert runner.loss is not None
    result: Dict[str, Any] = {
        "config": config.name,
        **precision.facts(),
        "notes": notes,
        "compilation": runner.compilation,
        "inputs": "the configured data" if data else "random",
        "batch": len(first.tokens),
        "images": list(first.images.shape),
        "points": first.point_lengths.tolist(),
        "voxels": first.voxel_lengths.tolist(),
        "steps": steps,
        "loss": float(runner.loss),
        "peak_memory_mib": peak,
        "ms": {name: _ms(spent) for name, spent in medians(runs).items()},
    }
    if whole is not None:  # synchronisation at each part prevents overlap between parts
        result["ms"]["step without marks"] = _ms(whole)
    if decoding is not None:
        result["ms"]["one sample, decoded in this process"] = _ms(decoding)
    yield result
    result["deform_conv"] = _deform_conv(shapes, device)
    yield result
    if profile is not None:
        with profiler(device, profile) as recorder:
            for _ in range(sum(PROFILED.values())):
                runner.step(by_part=False)
                recorder.step()
        result["kernels"] = kernel_table(recorder)
        yield result


def kernel_table(recorder: Any, most: int = 60) -> List[Dict[str, Any]]:
    """Return a row a kernel (on the CPU an operation) of a finished profile: name, calls and milliseconds a step.

    The longest come first, ``most`` of them; a last row holds the sum of the others. Empty where the profiler of the
    device has no such averages (torch_npu's).
    """
    averages = getattr(recorder, "key_averages", None)
    if averages is None:
        return []
    events = list(averages())
    on_device = [e for e in events if "CPU" not in str(getattr(e, "device_type", "CPU"))]
    rows = []
    for event in on_device or events:
        spent = getattr(event, "self_device_time_total", getattr(event, "self_cuda_time_total", 0))
        spent = spent if on_device else event.self_cpu_time_total
        rows.append((spent / 1000 / PROFILED["active"], event.count / PROFILED["active"], event.key))
    rows.sort(reverse=True)
    rest = rows[most:]
    if rest:
        rows[most:] = [(sum(r[0] for r in rest), sum(r[1] for r in rest), f"{len(rest)} others")]
    return [{"name": name[:160], "calls": round(calls, 2), "ms": round(ms, 4)} for ms, calls, name in rows]


def _ms(spent: Elapsed) -> Dict[str, float]:
    return {"wall": round(1000 * spent.wall, 3), "cpu": round(1000 * spent.cpu, 3)}


def _deform_conv(shapes: Dict[Shape, int], device: torch.device) -> Dict[str, Any]:
    """Return the time of a step's DCNv2 operations, each kind of layer measured alone and multiplied by its number."""
    layers, totals = [], {"forward": [0.0, 0.0], "backward": [0.0, 0.0]}
    for shape, count in shapes.items():
        for name, spent in zip(totals, time_deform_conv(shape, device)):
            totals[name][0] += count * spent.wall
            totals[name][1] += count * spent.cpu
        layers.append({"input": list(shape[0]), "type": str(shape[1]), "outputs": shape[2], "layers": count})
    return {"layers": layers, "ms": {name: _ms(Elapsed(*sums)) for name, sums in totals.items()}}


def _configured(config: Config, device: torch.device) -> Tuple[Elapsed, Iterator[Batch]]:
    """Return the time to read one sample in this process, and the training loader's batches, epoch after epoch."""
    dataset = open_frames(config, "train")

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    loader = Loading(dataset, config, World(), device, say, say).loader(dataset, train=True)
    dataset[0]  # the first reading compiles kernels and opens files
    runs = []
    for index in range(min(3, len(dataset))):
        began = Elapsed(time.perf_counter(), time.process_time())
        dataset[index]
        runs.append(Elapsed(time.perf_counter() - began.wall, time.process_time() - began.cpu))

    def batches() -> Iterator[Batch]:
        for epoch in itertools.count():
            cast(TrainSampler, loader.sampler).set_epoch(epoch)
            yield from loader

    return median(iter(runs)), batches()
