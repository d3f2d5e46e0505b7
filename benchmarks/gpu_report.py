"""Everything there is to know on a GPU, in one run of less than 8 minutes: are the kernels right, how fast is it all.

    python benchmarks/gpu_report.py                       # on a machine with a GPU
    python benchmarks/gpu_report.py --device cpu --quick  # the same code at tiny sizes, to see that it runs

Needs torch, triton, numpy, numba and opencv; nothing has to be installed or downloaded. Kernels are compared with plain
PyTorch in float64, then operations, training steps and inference are timed. Every section runs in a process of its own,
with a limit on its time: one that fails is reported and the others go on. Writes <date>_<device>.json and .md under
benchmarks/results; exits with 1 where a section failed or a kernel is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package need not be installed

import torch  # noqa: E402

Lines = Iterator[Dict[str, Any]]
TOTAL = 465.0  # seconds for everything
SHORTEST = 5.0  # seconds under which a section is not started
STEPS, QUICK_STEPS = 10, 1


def main() -> int:
    args = parse()
    if args.section:
        return child(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_report.py: this PyTorch sees no GPU; try the script with --device cpu --quick, or go where one is")
        return 2
    if args.device == "cpu" and not args.quick:
        print("gpu_report.py: --device cpu goes with --quick; bench_ops.py and bench_step.py measure a CPU")
        return 2
    from render import markdown

    from tpvformer.engine.bench import report
    from tpvformer.engine.logging.environment import environment_info

    began = time.monotonic()
    sections = {}
    for name in [args.only] if args.only else SECTIONS:
        limit = SECTIONS[name][1]
        left = TOTAL - (time.monotonic() - began)
        sections[name] = run_section(name, min(limit, left), args)
        state = sections[name]
        print(f"{name}: {state['status']}, {len(state['lines'])} results, {state['seconds']:.0f} s", flush=True)
    head = environment_info(torch.device(args.device), "python benchmarks/gpu_report.py")
    result = {**head, "toolkit": torch.version.cuda, "seconds": time.monotonic() - began, "sections": sections}
    slug = re.sub(r"[^a-z0-9]+", "-", head["device"].lower()).strip("-")
    stem = args.out_dir / f"{head['date'][:10]}_{slug}{'_quick' if args.quick else ''}"
    report.write(result, stem.with_suffix(".json"))
    text = markdown(result)
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {stem}.json and .md")
    wrong = [line for state in sections.values() for line in state["lines"] if not line.get("ok", True)]
    return 1 if wrong or any(state["status"] != "done" for state in sections.values()) else 0


def run_section(name: str, limit: float, args: argparse.Namespace) -> Dict[str, Any]:
    """One section in its own process; what it has found so far counts even where it does not reach its end."""
    began = time.monotonic()
    if limit < SHORTEST:
        return {"status": "left out: no time left", "lines": [], "seconds": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        lines, said = Path(folder) / "lines", Path(folder) / "said"
        command = [sys.executable, str(HERE / "gpu_report.py"), "--section", name, "--device", args.device]
        command += ["--lines", str(lines), *(["--quick"] if args.quick else [])]
        # asked for by name, kernels that cannot be had are an error; by default plain PyTorch would serve instead
        forced = {"TPVFORMER_OPS": "triton"} if args.device == "cuda" else {}
        with said.open("w") as messages:
            process = subprocess.Popen(
                command, stdout=messages, stderr=messages, env={**os.environ, **forced}, start_new_session=True
            )
            try:
                code = process.wait(limit)
                status = "done" if code == 0 else f"failed with status {code}"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = f"stopped after {limit:.0f} s"
        found = lines.read_text().splitlines() if lines.exists() else []
        words = said.read_text(errors="replace").strip().splitlines()[-3:]
    complete = [line for line in found if line.endswith("}")]
    state = {"status": status, "lines": [json.loads(line) for line in complete]}
    return {**state, "said": words, "seconds": time.monotonic() - began}


def child(args: argparse.Namespace) -> int:
    """Run one section and write each of its results as soon as it is there."""
    device = torch.device(args.device)
    section, _ = SECTIONS[args.section]
    with args.lines.open("w") as file:
        for line in section(device, args.quick):
            print(json.dumps(line), file=file, flush=True)
    return 0


def verify(device: torch.device, quick: bool) -> Lines:
    """Errors of the kernels against plain PyTorch in float64: small sizes, then those of dim64."""
    from bench_ops import SHORT, types_of
    from measure import close, errors
    from op_cases import Cases

    for small in (True, False)[: 1 if quick else 2]:
        cases = Cases(device, small, images=2)
        for name in cases.NAMES:
            case = cases.make(name)
            line: Dict[str, Any] = {"name": name, "size": case.size, "ok": True, "error": {}, "failed": {}}
            for dtype in types_of(case, device):
                oracle = case.variant(case.baseline, torch.float64, rounded=dtype == torch.bfloat16)
                try:
                    found = errors(oracle, case.variant(case.ours, dtype))
                except Exception as err:  # of any library; the other operations are to be seen too
                    line["failed"][SHORT[dtype]], line["ok"] = reason(err), False
                    continue
                line["error"][SHORT[dtype]] = found
                line["ok"] &= close(found, dtype)
            yield line


def operations(device: torch.device, quick: bool) -> Lines:
    """Operations against plain PyTorch: time, memory."""
    from bench_ops import measure
    from op_cases import Cases

    cases = Cases(device, quick, images=6)
    for name in cases.NAMES:
        try:
            yield measure(cases.make(name), device, 1 if quick else 10)
        except Exception as err:  # as above
            yield {"name": name, "ms": {}, "ok": False, "failed": reason(err)}


def reason(err: Exception) -> str:
    """An error in a line."""
    return " ".join(f"{type(err).__name__}: {err}".split())[:300]


def settings(name: str, quick: bool, **train: Any) -> Tuple[Any, Any, Any]:
    """Configuration in bf16, size of the images and number of points."""
    from tpvformer.compat import load_config

    config = load_config(HERE.parent / "config" / f"{'debug' if quick else name}.py")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="bf16", **train))
    return config, (96, 64) if quick else None, 300 if quick else None


def step(name: str, **train: Any) -> Callable[[torch.device, bool], Lines]:
    """A section: training steps of a configuration, by part and without marks."""

    def section(device: torch.device, quick: bool) -> Lines:
        from tpvformer.config import TrainConfig
        from tpvformer.engine.bench.step import bench

        unknown = set(train) - {f.name for f in dataclasses.fields(TrainConfig)}
        if unknown:
            return
        config, size, points = settings(name, quick, **train)
        yield {**bench(config, device.type, size, points, QUICK_STEPS if quick else STEPS, data=False), "train": train}

    return section


def inference(device: torch.device, quick: bool) -> Lines:
    """Latency of one frame, from the host's memory to logits on the device."""
    import itertools

    from tpvformer.engine.bench.inputs import POINTS, SIZE, random_batch
    from tpvformer.engine.bench.step import StepBench, median
    from tpvformer.engine.device.accelerator import peak_memory_mib, pick_device, pins_memory, reset_peak_memory

    place, _ = pick_device(device.type)
    for name in ("tpv_lidarseg_dim64", "tpv_lidarseg", "tpv04_occupancy")[: 1 if quick else 3]:
        config, size, points = settings(name, quick)
        batch = random_batch(config, size or SIZE, points or POINTS)
        batch = batch.pin_memory() if pins_memory(place) else batch
        runner = StepBench(config, place, itertools.repeat(batch))
        runner.infer()
        reset_peak_memory(place)
        spent = median(runner.infer() for _ in range(1 if quick else 10))
        yield {"name": name, "ms": 1000 * spent.wall, "peak_memory_mib": peak_memory_mib(place)}
        del runner


# name: (what yields its results, seconds it may take)
SECTIONS: Dict[str, Tuple[Callable[[torch.device, bool], Lines], float]] = {
    "verify": (verify, 150),
    "step dim64": (step("tpv_lidarseg_dim64"), 100),
    "step dim64 compiled": (step("tpv_lidarseg_dim64", compile=True), 120),
    "inference": (inference, 90),
    "step dim128": (step("tpv_lidarseg"), 80),
    "step tpv04": (step("tpv04_occupancy"), 80),
    "operations": (operations, 120),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--out-dir", type=Path, default=HERE / "results")
    parser.add_argument("--only", choices=list(SECTIONS), help="one section")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
