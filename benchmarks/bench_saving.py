"""Measure the cost of saving: training steps while a checkpoint is written against steps without, block by block.

    python benchmarks/bench_saving.py [--py-config config/demo.py] [--size 288x160] [--points 34720] [--steps 20]
                                      [--blocks 5] [--threads 1] [--device cpu] [--out FILE]

Blocks of ``--steps`` steps alternate: one begins a save and waits at its end until the file is on the disk, the next
saves nothing. Prints the median CPU time of a step of both kinds (on an accelerator: wall time), the time of a save
alone, which other work on the machine affects less, and how long training waits for a save.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

PARSER = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
PARSER.add_argument("--py-config", default="config/demo.py")
PARSER.add_argument("--size", default="288x160", help="images as they lie on the disk, WxH (default: %(default)s)")
PARSER.add_argument("--points", type=int, default=34_720)
PARSER.add_argument("--steps", type=int, default=20, help="steps a block, and a save (default: %(default)s)")
PARSER.add_argument("--blocks", type=int, default=5, help="blocks of each kind (default: %(default)s)")
PARSER.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
PARSER.add_argument("--device", default="cpu")
PARSER.add_argument("--folder", type=Path, help="where to write (default: the folder for temporary files)")
PARSER.add_argument("--out", type=Path, help="also write JSON")


def main() -> int:
    args = PARSER.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(args.threads)  # before they are loaded
    result = measure(args)
    if args.out:
        from tpvformer.engine.bench import report

        report.write(result, args.out)
    return 0


def measure(args: argparse.Namespace) -> Dict[str, Any]:
    import torch

    from tpvformer.compat import load_config
    from tpvformer.engine.bench import inputs, report
    from tpvformer.engine.bench.step import StepBench
    from tpvformer.engine.checkpoint import state as checkpoint
    from tpvformer.engine.checkpoint.resume import capture_mid_epoch_state
    from tpvformer.engine.checkpoint.saver import Saver
    from tpvformer.engine.checkpoint.state import Progress
    from tpvformer.engine.device.accelerator import pick_device, synchronize
    from tpvformer.engine.distributed.collectives import World
    from tpvformer.engine.logging.environment import environment_info
    from tpvformer.engine.logging.log import RunLog
    from tpvformer.engine.logging.meters import LossMeter

    torch.set_num_threads(args.threads)
    config, (device, _) = load_config(args.py_config), pick_device(args.device)
    width, height = (int(n) for n in args.size.split("x"))
    bench = StepBench(config, device, itertools.repeat(inputs.random_batch(config, (width, height), args.points)))
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: Dict[str, List[float]] = {"without": [], "with": []}
    still: List[float] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        work_dir, losses = Path(folder), LossMeter(World())
        saver = Saver(work_dir, config.train, RunLog(None, False))

        def begin_save(step: int) -> None:
            now, progress = time.perf_counter(), Progress(global_iter=step)
            extra = capture_mid_epoch_state(1, losses, World(), device)
            content = checkpoint.capture(bench.model, bench.stepper, config, progress, extra)
            saver.submit(f"step_{step}.pth", content, required=True)
            still.append(time.perf_counter() - now)

        for block in range(2 * args.blocks + 1):
            kind = ("without", "with")[block % 2]
            synchronize(device)
            began = clock()
            if kind == "with":
                begin_save(block)
            for _ in range(args.steps):
                bench.step(by_part=False)
            synchronize(device)
            saver.wait()
            if block:  # the first compiles
                times[kind].append((clock() - began) / args.steps)
        alone = []
        for block in range(args.blocks):
            began = clock()
            begin_save(10**6 + block)
            saver.wait()
            alone.append(clock() - began)
        size = max(path.stat().st_size for path in work_dir.glob("*.pth")) / 2**20
    step, saving, cost = (statistics.median(values) for values in (times["without"], times["with"], alone))
    kind = "CPU" if device.type == "cpu" else "wall"
    print(f"{config.name}, {device}, images {args.size}, {args.threads} thread(s), checkpoint {size:.1f} MiB")
    print(f"{kind} ms a step, medians of {args.blocks} blocks of {args.steps} steps, one save a block")
    row = [f"{1e3 * step:.1f}", f"{1e3 * saving:.1f}", f"{saving / step - 1:.2%}", f"{cost / (step * args.steps):.2%}"]
    print(report.table([["without", "with", "slower", "as a save alone takes"], row]))
    standstill = 1e3 * statistics.median(still)
    print(f"a save alone: {1e3 * cost:.0f} ms; training stands still for {standstill:.0f} ms of wall time;")
    print(f"once in ten minutes that is {cost / 600:.3%}")
    return {
        **environment_info(device, "python benchmarks/bench_saving.py"),
        "config": config.name,
        "size": args.size,
        "steps": args.steps,
        "checkpoint_mib": size,
        f"{kind.lower()}_ms": {name: [1e3 * value for value in values] for name, values in times.items()},
        "alone_ms": [1e3 * value for value in alone],
        "standstill_ms": [1e3 * value for value in still],
    }


if __name__ == "__main__":
    sys.exit(main())
