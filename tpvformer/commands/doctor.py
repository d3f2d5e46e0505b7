"""Report installed packages, the backend of each operation, and the first problem to fix: ``tpvformer doctor``."""

from __future__ import annotations

import argparse

from tpvformer.commands.options import add_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor``."""
    parser.description = (
        "Checks versions, devices and kernels without running a model. Exit status: 0 if there is no problem, else 1."
    )
    add_device(parser)
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from tpvformer.engine.selfcheck.doctor import examine

    lines, mend = examine(args.device)
    print("\n".join(lines))
    print(f"fix first: {mend}" if mend else "nothing to fix; tpvformer selfcheck also runs and compares the operations")
    return 1 if mend else 0
