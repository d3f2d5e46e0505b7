"""Measure training steps of a configuration; variants are interleaved, so that other work affects all alike.

    python benchmarks/bench_step.py [--py-config config/demo.py] [--size 288x160] [--points 34720] [--steps 5]
                                    [--variants reference:fp32,default:fp32,default:bf16] [--threads 1] [--out FILE]

A variant is OPS:PRECISION: OPS is "default" or a value of TPVFORMER_OPS, PRECISION one of train.precision. Prints
medians of each part's CPU time (wall time on an accelerator), each variant's peak memory, and its time relative to the
last variant's. `tpvformer bench` shows one variant in more detail.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any, Dict, List

PARSER = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
PARSER.add_argument("--py-config", default="config/demo.py")
PARSER.add_argument("--size", default="288x160", help="images as they lie on the disk, WxH (default: %(default)s)")
PARSER.add_argument("--points", type=int, default=34_720)
PARSER.add_argument("--steps", type=int, default=5, help="steps of each variant that count (default: %(default)s)")
PARSER.add_argument("--variants", default="reference:fp32,default:fp32,default:bf16", help="default: %(default)s")
PARSER.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
PARSER.add_argument("--device", default="cpu")
PARSER.add_argument("--out", type=Path, help="also write JSON")


def main() -> int:
    args = PARSER.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(args.threads)  # before they are loaded
    from tpvformer.errors import ConfigError

    try:
        result = measure(args)
    except ConfigError as err:
        print(f"bench_step.py: {err}", file=sys.stderr)
        return 2
    if args.out:
        from tpvformer.engine.bench import report

        report.write(result, args.out)
    return 0


def measure(args: argparse.Namespace) -> Dict[str, Any]:
    import torch

    from tpvformer.compat import load_config
    from tpvformer.engine.bench import inputs, report
    from tpvformer.engine.bench.step import StepBench, medians
    from tpvformer.engine.device.accelerator import peak_memory_mib, pick_device, reset_peak_memory
    from tpvformer.engine.logging.environment import environment_info
    from tpvformer.errors import ConfigError

    torch.set_num_threads(args.threads)
    config, (device, _) = load_config(args.py_config), pick_device(args.device)
    width, height = (int(n) for n in args.size.split("x"))
    variants = args.variants.split(",")
    if not all(":" in variant for variant in variants):
        raise ConfigError(f"--variants {args.variants!r}: expected OPS:PRECISION,... such as reference:fp32")
    bench = StepBench(config, device, itertools.repeat(inputs.random_batch(config, (width, height), args.points)))
    runs: Dict[str, List[Any]] = {variant: [] for variant in variants}
    peaks = dict.fromkeys(variants, 0.0)
    for repeat in range(args.steps + 1):
        for variant in variants:
            backend, _, precision = variant.partition(":")
            os.environ.pop("TPVFORMER_OPS", None)
            if backend != "default":
                os.environ["TPVFORMER_OPS"] = backend
            bench.use(precision)
            reset_peak_memory(device)
            spent = bench.step()
            if repeat:  # the first compiles
                runs[variant].append(spent)
                peaks[variant] = max(peaks[variant], peak_memory_mib(device) or 0.0)
    os.environ.pop("TPVFORMER_OPS", None)

    kind = "cpu" if device.type == "cpu" else "wall"
    numbers = {variant: medians(steps) for variant, steps in runs.items()}
    ms = {v: {part: 1000 * getattr(s, kind) for part, s in numbers[v].items()} for v in variants}
    last = variants[-1]
    rows = [[f"{kind} ms, {args.threads} thread(s)", *variants, *(f"{v} / {last}" for v in variants[:-1])]]
    for part in ms[last]:
        ratios = [f"{ms[v][part] / max(ms[last][part], 1e-9):.2f}" for v in variants[:-1]]
        rows.append([part, *(f"{ms[v][part]:.1f}" for v in variants), *ratios])
    rows.append(["peak memory MiB", *(f"{peaks[v]:.0f}" for v in variants), *("" for _ in variants[1:])])
    print(f"{config.name}, {device}, images {args.size}, {args.points} points, medians of {args.steps} steps")
    print(report.table(rows))
    return {
        **environment_info(device, "python benchmarks/bench_step.py"),
        "config": config.name,
        "size": args.size,
        "points": args.points,
        "steps": args.steps,
        f"{kind}_ms": ms,
        "peak_memory_mib": peaks,
    }


if __name__ == "__main__":
    sys.exit(main())
