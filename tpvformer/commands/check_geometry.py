"""Paint lidar points on the images of one sample: ``tpvformer check-geometry``."""

from __future__ import annotations

import argparse
from dataclasses import replace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--py-config", metavar="CONFIG", help="configuration whose data section is used (default: the default settings)"
    )
    parser.add_argument(
        "--infos", "--rig", metavar="PATH", help="info file; rig file or its folder (default: the configuration's)"
    )
    parser.add_argument(
        "--root", metavar="DIR", help="folder of samples/, or of the files themselves (default: the configuration's)"
    )
    parser.add_argument("--version", help="name of the table folder below the root (default: the configuration's)")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="which set (default: %(default)s)")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="number of the frame (default: %(default)s)")
    parser.add_argument("--augment", action="store_true", help="paint the images as training shows them")
    parser.add_argument("--out", default="out/geometry.png", metavar="FILE", help="the picture (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from tpvformer.compat.config_file import load_config
    from tpvformer.config import Config
    from tpvformer.viz.check_geometry import paint_frame

    config = load_config(args.py_config) if args.py_config else Config(name="check-geometry")
    given = {"root": args.root, "version": args.version, f"{args.split}_infos": args.infos}
    data = replace(config.data, **{name: value for name, value in given.items() if value is not None})
    print("\n".join(paint_frame(replace(config, data=data), args.split, args.index, args.out, args.augment)))
    return 0
