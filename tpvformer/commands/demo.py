"""Show a first prediction: ``tpvformer demo`` draws a street and predicts it with the weights inside the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from tpvformer.commands.options import add_device
from tpvformer.predict.demo import PAGE, PICTURE, SEED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo``."""
    parser.description = _DEMO
    parser.epilog = "Example: tpvformer demo --seed 77 --out out/another"
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"output folder (default: out/demo-{SEED})")
    parser.add_argument(
        "--seed", type=int, default=SEED, metavar="N", help="another seed, another city (default: %(default)s)"
    )
    parser.add_argument(
        "--dense", action="store_true", help="predict free space as well, with other weights: the whole scene is shown"
    )
    add_device(parser)
    parser.set_defaults(run=_demo)


_DEMO = (
    "A first look, in seconds, without data, training or a network: draws one frame of a synthetic street (six cameras "
    "and a lidar) in a city that the model was not trained in, predicts the class of its points and voxels with the "
    f"weights inside this package, and writes {PAGE}, which any browser opens, and {PICTURE}."
)


def _demo(args: argparse.Namespace) -> int:
    from tpvformer.predict.demo import run_demo

    name = "demo-dense" if args.dense else "demo"
    out = Path("out", f"{name}-{args.seed}") if args.out is None else args.out
    for line in run_demo(out, args.seed, args.device, args.dense):
        print(line, flush=True)
    return 0
