"""Train a configuration in one or in many processes: ``tpvformer train``."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from tpvformer.commands.options import add_config, add_device, add_own_model, positive, read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``."""
    parser.description = _TRAIN
    add_config(parser)
    add_device(parser)
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="folder of the run (default: output/<name>)")
    parser.add_argument(
        "--resume-from", type=Path, metavar="FILE", help="checkpoint to continue (default: latest.pth of the work dir)"
    )
    parser.add_argument("--max-epochs", type=positive, metavar="N", help="short for --set train.epochs=N")
    parser.add_argument(
        "--max-steps", type=positive, metavar="N", help="measure speed: stop after N steps, neither evaluate nor save"
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="results that do not depend on timing: bit-equal runs on a CPU"
    )
    many = parser.add_mutually_exclusive_group()
    many.add_argument(
        "--processes", type=positive, default=1, metavar="N", help="start N processes here (default: %(default)s)"
    )
    many.add_argument(
        "--max-processes", type=positive, metavar="N", help="one for each visible card, at most N; N without any card"
    )
    add_own_model(parser)
    parser.set_defaults(run=_train)


_TRAIN = "torchrun (-m tpvformer train ...) can start it in many processes; --processes does so without torchrun."


def _train(args: argparse.Namespace) -> int:
    if (args.processes > 1 or args.max_processes) and "RANK" not in os.environ:
        from tpvformer.engine.distributed.launch import launch, one_a_card

        processes = one_a_card(args.max_processes, args.device) if args.max_processes else args.processes
        if processes > 1:
            return launch(processes, args.argv)

    from tpvformer.engine.train import train

    extra = () if args.max_epochs is None else (f"train.epochs={args.max_epochs}",)
    config, own, said = read_run(args, extra)
    work_dir = args.work_dir or Path("output") / config.name
    how = args.max_steps, args.deterministic, shlex.join(["tpvformer", *args.argv]), own, said
    outcome = train(config, work_dir, args.device, args.resume_from, *how)
    if outcome and args.max_steps is None:
        from tpvformer.viz.report.write import after_training

        after_training(work_dir, args.device, pictures=own is None)
    return 0
