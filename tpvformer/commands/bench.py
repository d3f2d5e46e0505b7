"""Measure this machine's speed, and check its results: ``tpvformer bench`` and ``tpvformer selfcheck``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from tpvformer.commands.options import add_config, add_device, positive, read_config, size


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench``."""
    parser.description = _BENCH
    add_config(parser)
    add_device(parser)
    parser.add_argument(
        "--size", type=size, metavar="WxH", help="size of random images before scaling (default: 1600x900)"
    )
    parser.add_argument("--points", type=positive, metavar="N", help="lidar points of a random sample (default: 34720)")
    parser.add_argument(
        "--steps", type=positive, default=5, metavar="N", help="steps to measure (default: %(default)s)"
    )
    parser.add_argument("--data", action="store_true", help="read the configured training set instead")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="also record some steps, as traces for TensorBoard")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the numbers, the machine and the command as JSON"
    )
    parser.add_argument("--out", dest="json", type=Path, help=argparse.SUPPRESS)  # the former name of --json
    parser.set_defaults(run=_bench)


def add_selfcheck(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``selfcheck``."""
    parser.description = _SELFCHECK
    default = "(default: tpv_lidarseg_dim64, a small one on a CPU)"
    parser.add_argument("--py-config", metavar="CONFIG", help=f"model to time {default}")
    add_device(parser)
    parser.add_argument(
        "--size", type=size, metavar="WxH", help="images of the timed steps (default: 1600x900; small on a CPU)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.set_defaults(run=_selfcheck)


_BENCH = "Weights are random, and so are inputs unless --data is given. OMP_NUM_THREADS sets the processor threads."


_SELFCHECK = (
    "Looks up the device's kernels, compares every operation, the optimiser and a training step with the CPU, forward "
    "and backward, detects work that falls back to the CPU, and times 20 training steps. Exit status 0: all passed."
)


def _bench(args: argparse.Namespace) -> int:
    from tpvformer.engine.bench import report, step
    from tpvformer.engine.device.accelerator import pick_device
    from tpvformer.engine.logging.environment import environment_info

    asked = (args.device, args.size, args.points, args.steps, args.data, args.profile)
    *_, result = step.stages(read_config(args), *asked)
    result["command"] = shlex.join(["tpvformer", *args.argv])
    print(report.step_report(result))
    if args.json is not None:
        report.write({**environment_info(pick_device(args.device)[0], "tpvformer"), **result}, args.json)
        print(f"written to {args.json}")
    if args.profile is not None:
        print(f"traces in {args.profile}")
    return 0


def _selfcheck(args: argparse.Namespace) -> int:
    from tpvformer.compat import load_config
    from tpvformer.engine.bench import report
    from tpvformer.engine.selfcheck.run import selfcheck

    config = None if args.py_config is None else load_config(args.py_config)
    result = selfcheck(config, args.device, args.size, lambda line: print(line, flush=True))
    if args.json is not None:
        report.write(result, args.json)
        print(f"written to {args.json}")
    failed = sum(check["ok"] is False for check in result["checks"])
    print("everything works" if result["passed"] else f"{failed} checks failed")
    return 0 if result["passed"] else 1
