"""Options that several commands share: what they are called, what they mean, and how they are read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Tuple

from tpvformer.config import Config, override


def add_config(parser: argparse.ArgumentParser) -> None:
    """``--py-config`` and ``--set``; ``read_config`` reads them."""
    parser.add_argument("--py-config", "--py_config", required=True, help="configuration: ours or the reference's")
    parser.add_argument(
        "--set",
        dest="assignments",
        metavar="SECTION.FIELD=VALUE",
        action="append",
        default=[],
        help="change one setting; may be given again",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """``--ckpt-path``."""
    parser.add_argument("--ckpt-path", type=Path, required=True, help="weights: ours or the reference's")


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", default="auto", help="auto, cpu, or a kind of accelerator (default: auto)")


def read_config(args: argparse.Namespace, extra: Tuple[str, ...] = ()) -> Config:
    """The configuration that was asked for, with its changes; ``extra`` are more of them."""
    from tpvformer.compat import load_config

    return override(load_config(args.py_config), [*args.assignments, *extra])


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def size(text: str) -> Tuple[int, int]:
    """Width and height."""
    width, x, height = text.partition("x")
    if not (x and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1600x900")
    return int(width), int(height)
