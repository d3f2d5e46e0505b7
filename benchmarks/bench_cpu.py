"""Measure a processor's limits, the encoder's kernels on it, and training steps of one checkout against another.

    python benchmarks/bench_cpu.py [--threads 1] [--out FILE]
    python benchmarks/bench_cpu.py --against REV-or-PATH [--steps 2] [--threads 1] [--out FILE]
    python benchmarks/bench_cpu.py --configs A B ... [--predict] [--size 800x448] [--steps 2] [--threads 1] [--out FILE]

The first form prints the limits (matrix products at the model's sizes, a convolution, a copy) and the attention kernels
and the projection at dim64's sizes. The second trains a step of dim64 at 384x224 in fp32 and of the demo at 288x160 by
the other checkout and by this one in turn, each in a separate process, and prints the medians and their ratio. The
third does the same with configurations of this checkout, each against the first; with --predict it times one prediction
of each instead, as in a stream: a model that reads the past is given what an earlier frame left. Settings may follow a
configuration in its argument: "config/demo_dense.py loss.render=10". All times are CPU time of the process.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

PARSER = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
PARSER.add_argument("--against", metavar="REV-or-PATH", help="another commit or another checkout")
PARSER.add_argument("--configs", nargs="+", metavar="A", help="configurations of this checkout, with settings")
PARSER.add_argument("--predict", action="store_true", help="time predictions instead of steps, with --configs")
PARSER.add_argument("--size", default="800x448", help="size of images with --configs (default: %(default)s)")
PARSER.add_argument(
    "--steps", type=int, default=2, help="steps that count, of each case and side (default: %(default)s)"
)
PARSER.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
PARSER.add_argument("--precision", default="fp32", help="train.precision of the compared steps (default: %(default)s)")
PARSER.add_argument("--out", type=Path, help="also write JSON")
PARSER.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)  # for the child process: configuration, size
ROOT = Path(__file__).resolve().parents[1]
CASES = {"dim64 384x224": ("config/tpv_lidarseg_dim64.py", "384x224"), "demo 288x160": ("config/demo.py", "288x160")}
PRODUCTS = ((336, 2304, 256), (2016, 1024, 256), (1344, 64, 384), (40000, 64, 384), (46400, 64, 128))


def main() -> int:
    args = PARSER.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(args.threads)  # before they are loaded
    if args.serve:
        return serve(*args.serve, args.precision, args.predict)
    import torch

    from tpvformer.engine.bench import report
    from tpvformer.engine.logging.environment import environment_info

    torch.set_num_threads(args.threads)
    if args.configs:
        numbers = compare_configs(args)
    else:
        numbers = {"limits": limits(), "cpu_ms": kernels()} if args.against is None else compare(args)
    result = {**environment_info(torch.device("cpu"), "python benchmarks/bench_cpu.py"), **machine(), **numbers}
    result.update(command=" ".join(["python", *sys.argv]), threads=args.threads)
    print(json.dumps(numbers, indent=1))
    if args.out:
        report.write(result, args.out)
    return 0


def machine() -> Dict[str, Any]:
    """Return the processor, the instruction sets that PyTorch and Numba use, and the variables that limit them."""
    import torch

    from tpvformer.ops.numba_options import vector_width

    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    limited = {
        name: os.environ[name]
        for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR")
        if name in os.environ
    }
    return {
        "processor": names[0] if names else None,
        "aten": torch.backends.cpu.get_cpu_capability(),
        "numba_lanes": vector_width(),
        "emulated_by": limited,
    }


def cpu_ms(run: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median CPU milliseconds of run(); the first call is not counted."""
    times: List[float] = []
    for repeat in range(repeats + 1):
        began = time.process_time()
        run()
        if repeat:
            times.append(1000 * (time.process_time() - began))
    return round(statistics.median(times), 2)


def limits() -> Dict[str, float]:
    """Return GFLOP/s and GB/s, per second of CPU time."""
    import torch

    found: Dict[str, float] = {}
    for m, k, n in PRODUCTS:
        product = functools.partial(torch.mm, torch.randn(m, k), torch.randn(k, n), out=torch.empty(m, n))
        found[f"sgemm {m}x{k}x{n} GFLOP/s"] = round(2e-6 * m * k * n / cpu_ms(product), 1)
    x, w = torch.randn(6, 128, 28, 48).to(memory_format=torch.channels_last), torch.randn(128, 128, 3, 3)
    flops = 2e-6 * 6 * 28 * 48 * 128 * 128 * 9
    found["convolution 3x3 128 GFLOP/s"] = round(flops / cpu_ms(lambda: torch.conv2d(x, w, padding=1)), 1)
    source = torch.randn(1 << 24)
    target = torch.empty_like(source)
    found["copy GB/s, read and written"] = round(2e-6 * 4 * source.numel() / cpu_ms(lambda: target.copy_(source)), 1)
    return found


def kernels() -> Dict[str, float]:
    """Return CPU ms of dim64's plane attention (46,400 queries, 4 heads, 3 levels, 16 points) and of its projection."""
    import torch

    from tpvformer.compat import load_config
    from tpvformer.model.grid import cross_view_points
    from tpvformer.ops import cross_view_attention

    model = load_config(str(ROOT / CASES["dim64 384x224"][0])).model
    anchors, shapes = cross_view_points(model.grid, model.plane_anchors), model.grid.plane_shapes
    queries, heads, points = len(anchors), model.plane_heads, model.plane_points
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, queries, heads, model.dim // heads, generator=generator).requires_grad_()
    offsets = (4 * torch.randn(1, queries, heads, 3, points, 2, generator=generator)).requires_grad_()
    weights = torch.rand(1, queries, heads, 3, points, generator=generator).requires_grad_()

    def attend() -> Any:
        return cross_view_attention(value, shapes, anchors, offsets, weights)

    out = attend()
    leaves, gradient = (value, offsets, weights), torch.randn_like(out)
    x, weight = torch.randn(queries, model.dim), torch.randn(heads * 3 * points * 2, model.dim)
    return {
        "plane attention, forward": cpu_ms(attend),
        "plane attention, backward": cpu_ms(lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True)),
        "plane projection to offsets": cpu_ms(lambda: torch.nn.functional.linear(x, weight)),
    }


def serve(config_name: str, size: str, precision: str, predicts: bool) -> int:
    """Run in a child process: take a step for each input line and print its parts' CPU milliseconds as a line.

    ``predicts``: a prediction in evaluation mode instead.
    """
    import dataclasses
    import itertools

    import torch

    from tpvformer.compat import load_config
    from tpvformer.config import override
    from tpvformer.engine.bench import inputs
    from tpvformer.engine.bench.step import StepBench
    from tpvformer.engine.device.accelerator import peak_memory_mib
    from tpvformer.engine.forward import predict
    from tpvformer.engine.past import history_of

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    name, ending, settings = config_name.partition(".py ")  # the path may have spaces
    config = override(load_config(name + ending.strip()), settings.split())
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
    width, height = (int(n) for n in size.split("x"))
    batch = inputs.random_batch(config, (width, height), 34_720)
    bench = StepBench(config, torch.device("cpu"), itertools.repeat(batch))
    history = history_of(bench.model, batch, config) if predicts else None
    bench.model.train(not predicts)
    for _ in sys.stdin:
        if predicts:
            began = time.process_time()
            with torch.no_grad():
                predict(bench.model, batch, config, history=history)
            print(json.dumps({"prediction": 1000 * (time.process_time() - began)}), flush=True)
            continue
        spent = {part: 1000 * s.cpu for part, s in bench.step().items()}
        forward = sum(spent[part] for part in ("backbone", "neck", "encoder", "aggregator"))
        spent.update(forward=forward, step=sum(spent.values()), peak_mib=peak_memory_mib(torch.device("cpu")))
        print(json.dumps(spent), flush=True)
    return 0


def compare(args: argparse.Namespace) -> Dict[str, Any]:
    """Time steps of both checkouts in turn, each with its own configuration; the first compiles and is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(args.against)
        if not other.is_dir():
            archive = subprocess.run(
                ["git", "archive", args.against, "tpvformer", "config"], cwd=ROOT, check=True, stdout=subprocess.PIPE
            )
            subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
            other = Path(folder)
        found: Dict[str, Any] = {}
        for name, (config, size) in CASES.items():
            sides = {"before": (other, str(other / config)), "after": (ROOT, str(ROOT / config))}
            found[name] = alternate(sides, size, args)
    return {"against": args.against, "precision": args.precision, "cpu_ms": found}


def compare_configs(args: argparse.Namespace) -> Dict[str, Any]:
    """Time steps of configurations in turn; the first step compiles and is not counted."""
    names = ("before", "after", *(f"after {n}" for n in range(2, len(args.configs))))
    sides = dict(zip(names, ((ROOT, str(ROOT / name)) for name in args.configs)))
    found = {args.size: alternate(sides, args.size, args)}
    return {"configs": args.configs, "precision": args.precision, "cpu_ms": found}


def alternate(sides: Dict[str, Tuple[Path, str]], size: str, args: argparse.Namespace) -> Dict[str, Dict[str, float]]:
    """Return medians and ratio of each part of a step; a side is a checkout and a configuration."""
    options = ["--precision", args.precision, "--threads", str(args.threads), *["--predict"] * args.predict]
    children = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--serve", config, size, *options],
            env={**os.environ, "PYTHONPATH": str(path)}, cwd=path, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for side, (path, config) in sides.items()
    }  # fmt: skip
    runs: Dict[str, List[Dict[str, float]]] = {side: [] for side in children}
    for _ in range(args.steps + 1):
        for side, child in children.items():
            assert child.stdin is not None and child.stdout is not None
            print(file=child.stdin, flush=True)
            runs[side].append(json.loads(child.stdout.readline()))
    for child in children.values():
        child.communicate()
    found = {
        part: {side: round(statistics.median(run[part] for run in steps[1:]), 1) for side, steps in runs.items()}
        for part in runs["before"][0]
    }
    for medians in found.values():
        before = max(medians["before"], 1e-9)
        medians.update({s.replace("after", "ratio"): round(medians[s] / before, 3) for s in runs if s != "before"})
    return found


if __name__ == "__main__":
    sys.exit(main())
