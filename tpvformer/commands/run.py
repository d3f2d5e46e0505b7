"""Run somebody's training script, unedited, on this device: ``tpvformer run``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tpvformer.commands.options import add_device, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``run``."""
    parser.description = _RUN
    add_device(parser)
    many = parser.add_mutually_exclusive_group()
    many.add_argument(
        "--cards", type=positive, metavar="N", help="on a processor, count N cards (default: 1), for scripts that "
        "start a process for each themselves"
    )  # fmt: skip
    many.add_argument(
        "--processes", type=positive, default=1, metavar="N", help="start the script N times, as torchrun does, for "
        "scripts that it starts (default: %(default)s)"
    )  # fmt: skip
    parser.add_argument("script", type=Path, metavar="SCRIPT", help="the script to run, such as train.py")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="ARGUMENTS", help="are given to the script unchanged")
    parser.set_defaults(run=_run)


_RUN = (
    "Runs a training script that was written for mmcv 1.x, without editing it: with our operations in place of mmcv's "
    "compiled ones, names that numpy has removed, and stand-ins for nuscenes-devkit and timm's scheduler where they "
    "are not installed; on the device that is here, whatever card the script names. The script is a program and can do "
    "whatever you can: read it before you run it, as any program."
)


def _run(args: argparse.Namespace) -> int:
    from tpvformer.engine.foreign.script import run_processes, run_script

    if args.processes > 1 and "RANK" not in os.environ:
        return run_processes(args.processes, args.argv)
    return run_script(args.script, args.rest, args.device, args.cards)
