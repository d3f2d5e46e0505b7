"""Report a run: ``tpvformer results`` as lines, ``tpvformer report`` as a page with its worst frames."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpvformer.commands.options import add_device
from tpvformer.viz.report.write import PAGE


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``results``."""
    parser.add_argument("--work-dir", type=Path, metavar="DIR", required=True, help="folder of a finished run")
    parser.add_argument(
        "--duration", type=float, metavar="SECONDS", help="duration of the run, if the caller has measured it"
    )
    parser.set_defaults(run=_results)


def _results(args: argparse.Namespace) -> int:
    from tpvformer.engine.logging.modelzoo_log import publish

    print("\n".join(publish(args.work_dir, args.duration)))
    return 0


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``report``."""
    parser.description = _ABOUT
    parser.add_argument("--work-dir", type=Path, metavar="DIR", required=True, help="folder of the run")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the page (default: {PAGE} in the work dir)")
    parser.add_argument(
        "--pictures", action="store_true", help="draw the worst frames again, with latest.pth and the data of the run"
    )
    add_device(parser, "for --pictures: ")
    parser.set_defaults(run=_run)


_ABOUT = "Writes one HTML file that needs neither network nor scripts. It also works for a running or interrupted run."


def _run(args: argparse.Namespace) -> int:
    from tpvformer.viz.report.write import draw_worst, write_report

    if args.pictures:
        for line in draw_worst(args.work_dir, args.device):
            print(line, flush=True)
    out = args.work_dir / PAGE if args.out is None else args.out
    print(f"{write_report(args.work_dir, out)}: {out.stat().st_size / 1e6:.1f} MB")
    return 0
