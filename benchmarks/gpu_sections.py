"""The sections of gpu_report.py: each yields its results one by one, as JSON values."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple, Tuple

import torch

HERE = Path(__file__).resolve().parent
Lines = Iterator[Dict[str, Any]]
STEPS = 10


class Section(NamedTuple):
    """``lines(device, tiny)`` yields the results; ``limit`` is the time in seconds that it may take."""

    lines: Callable[[torch.device, bool], Lines]
    limit: float


def ceilings(device: torch.device, tiny: bool) -> Lines:
    """Measure the device's limits."""
    import ceilings as measured

    yield from measured.ceilings(device, tiny)


def verify(small: bool) -> Callable[[torch.device, bool], Lines]:
    """Return a section: errors of the kernels against plain PyTorch in float64, at small or at dim64's sizes."""

    def lines(device: torch.device, tiny: bool) -> Lines:
        from bench_ops import SHORT, types_of
        from measure import close, errors
        from op_cases import Cases

        cases = Cases(device, small or tiny, images=2)
        for name in cases.NAMES:
            case = cases.make(name)
            line: Dict[str, Any] = {"name": name, "size": case.size, "ok": True, "error": {}, "failed": {}}
            for dtype in types_of(case, device):
                oracle = case.variant(case.baseline, torch.float64, rounded=dtype == torch.bfloat16)
                try:
                    found = errors(oracle, case.variant(case.ours, dtype))
                except Exception as err:  # of any library; the other operations still run
                    line["failed"][SHORT[dtype]], line["ok"] = reason(err), False
                    continue
                line["error"][SHORT[dtype]] = found
                line["ok"] &= close(found, dtype)
            yield line

    return lines


def operations(device: torch.device, tiny: bool) -> Lines:
    """Compare operations with plain PyTorch: time, memory."""
    from bench_ops import measure
    from op_cases import Cases

    cases = Cases(device, tiny, images=6)
    for name in cases.NAMES:
        try:
            yield measure(cases.make(name), device, 1 if tiny else 10)
        except Exception as err:  # as above
            yield {"name": name, "ms": {}, "ok": False, "failed": reason(err)}


def reason(err: Exception) -> str:
    """Format an error as one line."""
    return " ".join(f"{type(err).__name__}: {err}".split())[:300]


def settings(name: str, tiny: bool, **train: Any) -> Tuple[Any, Any, Any]:
    """Return the configuration, by default in bf16, the size of its images and the number of points."""
    from tpvformer.compat import load_config

    config = load_config(HERE.parent / "config" / f"{'debug' if tiny else name}.py")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **{"precision": "bf16", **train}))
    return config, (96, 64) if tiny else None, 300 if tiny else None


def step(name: str, profile: bool = False, **train: Any) -> Callable[[torch.device, bool], Lines]:
    """Return a section: training steps by part and without marks, with a table of their kernels if ``profile``."""

    def lines(device: torch.device, tiny: bool) -> Lines:
        from tpvformer.engine.bench.step import stages

        config, size, points = settings(name, tiny, **train)
        with tempfile.TemporaryDirectory() as folder:
            traces = Path(folder) / "traces" if profile else None
            for found in stages(config, device.type, size, points, 1 if tiny else STEPS, False, traces):
                if train.get("compile") and found["compilation"] != "active":
                    raise RuntimeError(f"nothing was compiled, so there is no compiled step: {found['compilation']}")
                yield {**found, "train": train}

    return lines


def inference(device: torch.device, tiny: bool) -> Lines:
    """Measure the latency of one frame, from host memory to logits on the device."""
    from tpvformer.engine.bench.inputs import POINTS, SIZE, random_batch
    from tpvformer.engine.bench.step import StepBench, median
    from tpvformer.engine.device.accelerator import peak_memory_mib, pick_device, pins_memory, reset_peak_memory

    place, _ = pick_device(device.type)
    for name in ("tpv_lidarseg_dim64", "tpv_lidarseg", "tpv04_occupancy")[: 1 if tiny else 3]:
        config, size, points = settings(name, tiny)
        batch = random_batch(config, size or SIZE, points or POINTS)
        batch = batch.pin_memory() if pins_memory(place) else batch
        runner = StepBench(config, place, itertools.repeat(batch))
        runner.infer()
        reset_peak_memory(place)
        spent = median(runner.infer() for _ in range(1 if tiny else 10))
        yield {"name": name, "ms": 1000 * spent.wall, "peak_memory_mib": peak_memory_mib(place)}
        del runner


def sanitizer(device: torch.device, tiny: bool) -> Lines:
    """Check the kernels' memory accesses at small sizes, by NVIDIA's compute-sanitizer where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or device.type != "cuda":
        yield {"name": "memcheck", "ok": True, "said": "not run: compute-sanitizer is not installed"}
        return
    script = str(HERE / "gpu_report.py")
    inner = [sys.executable, script, "--section", "verify small", "--device", "cuda", "--lines", "/dev/null"]
    done = subprocess.run(
        [tool, "--tool", "memcheck", "--error-exitcode", "9", *inner], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = done.stdout.decode(errors="replace")
    print(text)
    last = text.strip().splitlines()[-1:] or [""]
    yield {"name": "memcheck", "ok": done.returncode == 0, "said": last[0][:300]}


# the most valuable first, because the last ones may be left out for lack of time
SECTIONS: Dict[str, Section] = {
    "ceilings": Section(ceilings, 30),
    "verify small": Section(verify(small=True), 60),
    "step dim64": Section(step("tpv_lidarseg_dim64", profile=True, compile=False), 100),
    "operations": Section(operations, 90),
    "step dim64 compiled": Section(step("tpv_lidarseg_dim64", profile=True, compile=True), 180),
    "step dim64 fp32": Section(step("tpv_lidarseg_dim64", compile=False, precision="fp32", tf32=False), 60),
    "step dim64 TF32": Section(step("tpv_lidarseg_dim64", compile=False, precision="fp32", tf32=True), 60),
    "verify full": Section(verify(small=False), 100),
    "inference": Section(inference, 60),
    "step dim128": Section(step("tpv_lidarseg", compile=False), 60),
    "step tpv04": Section(step("tpv04_occupancy", compile=False), 60),
    "sanitizer": Section(sanitizer, 60),
}
FIRST = ("ceilings", "verify small", "step dim64")  # of a quick stage
