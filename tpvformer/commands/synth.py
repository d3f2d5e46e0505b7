"""Write a synthetic drive in the layout of nuScenes or SemanticKITTI: ``tpvformer synth``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Callable

from tpvformer.commands.options import folder_prefix, positive, size
from tpvformer.errors import ConfigError


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
        default="",
        metavar="PREFIX",
        help="put before the file names in the info files, for TPVFormer's published loader, which opens them from its "
        "working directory (default: names relative to --out)",
    )
    parser.add_argument("--kitti", action="store_true", help="instead: SemanticKITTI's sequences, one a scene")
    parser.set_defaults(run=_synth)


def _synth(args: argparse.Namespace) -> int:
    try:
        from tpvformer.data.street.write import write_dataset, write_sequences
    except (ImportError, RuntimeError) as err:  # Numba raises RuntimeError if it finds no cache folder
        raise ConfigError(
            f"synth draws with Numba and OpenCV, and one of them cannot be used here ({err}); tpvformer doctor says "
            "what is missing. The folder may also be made on another machine and copied"
        ) from err

    began = time.perf_counter()
    scenes, seed, frames, prefix = args.scenes, args.seed, args.frames, folder_prefix(args.prefix)
    if args.kitti:
        if args.size is not None or args.occupancy or prefix:
            raise ConfigError(
                "--kitti: SemanticKITTI has images of its own size, always voxels and no info files; leave --size, "
                "--occupancy and --prefix out"
            )
        fresh = write_sequences(args.out, scenes, seed, frames, args.workers, _quarters())
        what = f"{scenes} sequences of {frames} frames with voxels, seed {seed}"
    else:
        width, height = shape = args.size or (1600, 900)
        fresh = write_dataset(args.out, scenes, shape, seed, frames, args.workers, _quarters(), args.occupancy, prefix)
        what = f"{scenes} scenes of {frames} frames, images {width}x{height}, seed {seed}"
    if fresh:
        print(f"{args.out}: {what}, written in {time.perf_counter() - began:.1f} s")
    else:
        print(f"{args.out}: already holds {what}")
    return 0


def _quarters() -> Callable[[int, int], None]:
    """Return a callback that prints each finished quarter of the frames, and the estimated end."""
    from tpvformer.engine.logging.progress import remaining

    said, began = 0, time.perf_counter()

    def say(done: int, total: int) -> None:
        nonlocal said
        if done < total and done * 4 // total > said:
            said = done * 4 // total
            left = remaining((time.perf_counter() - began) * (total - done) / done)
            print(f"{done} of {total} frames, {left}", file=sys.stderr)

    return say
