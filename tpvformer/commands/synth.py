"""Write a synthetic drive in the layout of nuScenes or SemanticKITTI: ``tpvformer synth``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpvformer.commands.options import positive, size
from tpvformer.commands.parser import text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``synth``."""
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder to create")
    parser.add_argument(
        "--scenes", type=positive, default=10, metavar="N", help="streets, 2 or more (default: %(default)s)"
    )
    parser.add_argument("--size", type=size, metavar="WxH", help="image size (default: 1600x900)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another seed, another city (default: %(default)s)"
    )
    parser.add_argument(
        "--frames", type=positive, default=8, metavar="N", help="key frames a scene (default: %(default)s)"
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--occupancy", action="store_true", help="also dense labels, as in Occ3D and SurroundOcc")
    parser.add_argument(
        "--prefix",
        type=text,
        default="",
        metavar="PREFIX",
        help="put before the file names in the info files, for TPVFormer's published loader, which opens them from its "
        "working directory (default: names relative to --out)",
    )
    parser.add_argument("--kitti", action="store_true", help="instead: SemanticKITTI's sequences, one a scene")
    parser.set_defaults(run=_synth)


def _synth(args: argparse.Namespace) -> int:
    from tpvformer.data.street.synthesize import synthesize
    from tpvformer.engine.logging.progress import print_quarters

    layout = (args.size, args.workers, args.occupancy, args.prefix, args.kitti)
    print(synthesize(args.out, args.scenes, args.seed, args.frames, *layout, print_quarters("frames")))
    return 0
