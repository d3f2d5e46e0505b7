"""Predict frames to files, or draw one: ``tpvformer predict`` and ``tpvformer picture``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpvformer.commands.options import add_config, add_device, add_weights, read_model
from tpvformer.errors import ConfigError


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``predict``."""
    add_config(parser, stored=True)
    add_weights(parser)
    add_device(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--rig", metavar="PATH", help="your own cameras and frames: a rig file, or its folder")
    source.add_argument("--root", type=Path, metavar="DIR", help="a nuScenes download, without info files")
    parser.add_argument("--version", help="with --root: its table folder (default: the only one)")
    parser.add_argument(
        "--split", choices=("val", "test"), help="split of --root or of the configured set (default: val)"
    )
    parser.add_argument("--index", type=int, metavar="N", help="number of a single frame, from 0 (default: all)")
    parser.add_argument("--truth", action="store_true", help="also store the set's labels, for tpvformer view")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="folder of <token>.npz (default: %(default)s)"
    )
    parser.set_defaults(run=_predict)


def add_picture(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``picture``."""
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
    from tpvformer.data.nuscenes.infos.write import set_below
    from tpvformer.engine.logging.progress import print_every
    from tpvformer.predict.frames import FramePredictions, print_frames

    if args.rig is not None and args.split is not None:
        raise ConfigError("--split is given, but --rig holds one set; leave one of the two out")
    if args.version is not None and args.root is None:
        raise ConfigError("--version names a table folder of --root; give --root as well")
    config, weights = read_model(args)
    split = args.split or "val"
    with set_below(args.root, args.version, split, config, print_every(5)) as config:
        which = (args.rig, split, args.index, args.device, args.truth, args.which)
        frames = FramePredictions(config, weights, args.out, *which)
        print_frames(frames)
    return 0


def _picture(args: argparse.Namespace) -> int:
    from tpvformer.predict.draw import draw_frame

    print(draw_frame(*read_model(args), args.index, args.out, args.device, args.which))
    return 0
