"""Check, install or remove our files in mmcv and mmdet: ``tpvformer overlay``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``overlay``."""
    parser.add_argument(
        "action", choices=("check", "apply", "revert"), help="check: exit status 1 unless all files are ours"
    )
    parser.add_argument(
        "--mmcv", type=Path, metavar="DIR", help="folder of mmcv, or a checkout (default: both installed packages)"
    )
    parser.add_argument(
        "--mmdet",
        type=Path,
        metavar="DIR",
        help="folder of mmdet, or a checkout; with one option, the other package is not changed",
    )
    parser.set_defaults(run=_overlay)


def _overlay(args: argparse.Namespace) -> int:
    from tpvformer.compat import overlay

    places = overlay.find(args.mmcv, args.mmdet)
    if args.action != "check":
        count = overlay.apply(places) if args.action == "apply" else overlay.revert(places)
        print(f"{count} of {len(places)} files {'exchanged' if args.action == 'apply' else 'given back'}")
        places = overlay.find(args.mmcv, args.mmdet)
    print(overlay.table(places))
    return int(args.action == "check" and any(place.state != overlay.OURS for place in places))
