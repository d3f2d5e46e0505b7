"""``tpvformer predict`` and ``tpvformer picture``: what a checkpoint says about frames, as files and to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpvformer.commands.options import add_config, add_device, add_weights, read_model


def add_predict(parser: argparse.ArgumentParser) -> None:
    """The options of ``predict``."""
    add_config(parser, stored=True)
    add_weights(parser)
    add_device(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--rig", metavar="FILE", help="cameras and frames of one's own, as docs/rig.md says")
    source.add_argument("--split", choices=("val", "test"), help="else: the configured set (default: val)")
    parser.add_argument(
        "--index", type=int, metavar="N", help="number of the one frame to look at, from 0 (default: all)"
    )
    parser.add_argument("--truth", action="store_true", help="also store the set's labels, for tpvformer view")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="folder of <token>.npz (default: %(default)s)"
    )
    parser.set_defaults(run=_predict)


def add_picture(parser: argparse.ArgumentParser) -> None:
    """The options of ``picture``."""
    add_config(parser, stored=True)
    add_weights(parser)
    add_device(parser)
    parser.add_argument(
        "--index", type=int, default=0, metavar="N", help="number of the validation frame (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/frame.png"), metavar="FILE", help="the picture (default: %(default)s)"
    )
    parser.set_defaults(run=_picture)


def _predict(args: argparse.Namespace) -> int:
    from tpvformer.engine.log import progress
    from tpvformer.predict_files import FramePredictions, time_split

    what = (*read_model(args), args.out, args.rig, args.split or "val", args.index, args.device, args.truth)
    frames = FramePredictions(*what)
    with progress("predict", len(frames)) as bar:
        for line in frames:
            bar.make_room()
            print(line, flush=True)
            bar.advance()
    print(time_split(frames.seconds))
    return 0


def _picture(args: argparse.Namespace) -> int:
    from tpvformer.predict import draw_frame

    print(draw_frame(*read_model(args), args.index, args.out, args.device))
    return 0
