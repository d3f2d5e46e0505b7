"""Define and read the options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Tuple

from tpvformer.config import Config, override
from tpvformer.engine.device.names import ACCEPTED
from tpvformer.errors import ConfigError

if TYPE_CHECKING:
    from tpvformer.compat.own_model import OwnSource


def add_config(parser: argparse.ArgumentParser, stored: bool = False) -> None:
    """Add ``--py-config`` and ``--set``. ``stored``: the configuration may come from ``--ckpt-path``."""
    text = "configuration: a file, ours or the reference's, or a shipped one's name"
    parser.add_argument(
        "--py-config",
        metavar="CONFIG",
        required=not stored,
        help=f"{text} (default: the one stored with the weights, or inferred from shapes)" if stored else text,
    )
    parser.add_argument(
        "--set",
        dest="assignments",
        metavar="SECTION.FIELD=VALUE",
        action="append",
        default=[],
        help="change one setting; may be given again",
    )


def add_own_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--own-model``."""
    parser.add_argument(
        "--own-model",
        action=argparse.BooleanOptionalAction,
        help="the model code of the checkout in the working folder, which is executed, in place of this package's "
        "(default: TPVFORMER_OWN_MODEL, else this package's; docs/fork.md)",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add ``--ckpt-path``."""
    parser.add_argument(
        "--ckpt-path",
        metavar="PATH",
        required=True,
        help="weights: a file, ours or the reference's; a run's work dir; a folder of convert; demo, those inside "
        "this package (./demo: a path); a hub's owner/name",
    )
    add_which(parser)


def add_which(parser: argparse.ArgumentParser) -> None:
    """Add ``--which``."""
    parser.add_argument(
        "--which",
        choices=("ema", "raw"),
        help="of a run with train.ema: the average, or the last step's (default: the average where there is one)",
    )


def add_device(parser: argparse.ArgumentParser, use: str = "") -> None:
    """Add ``--device``; ``use`` is a prefix of its help."""
    parser.add_argument("--device", default="auto", metavar="NAME", help=f"{use}{ACCEPTED} (default: auto)")


def read_config(args: argparse.Namespace, extra: Tuple[str, ...] = ()) -> Config:
    """Return the named configuration with the changes of ``--set`` and of ``extra``."""
    from tpvformer.compat import load_config

    return override(load_config(args.py_config), [*args.assignments, *extra])


def read_run(args: argparse.Namespace, extra: Tuple[str, ...] = ()) -> Tuple[Config, Optional[OwnSource], bool]:
    """Return the configuration, what builds the checkout's own model if that is meant, and whether one was chosen."""
    from tpvformer.compat.own_model import asked, hinted, load_own

    chosen = asked(args.own_model)
    if chosen:
        return (*load_own(args.py_config, [*args.assignments, *extra], Path.cwd()), True)
    with hinted(Path.cwd(), chosen):
        return read_config(args, extra), None, chosen is not None


def read_scored(args: argparse.Namespace) -> Tuple[Config, Path, Optional[OwnSource], bool]:
    """Return what ``read_run`` does, with the weight file; the configuration as in ``read_model``."""
    from tpvformer.compat.own_model import asked
    from tpvformer.compat.pretrained import find_weights

    if args.py_config is None and asked(args.own_model):
        raise ConfigError("--own-model needs --py-config FILE: the model section is read from the checkout's own file")
    if args.py_config is None:
        return (*read_model(args), None, asked(args.own_model) is not None)
    weights = find_weights(args.ckpt_path)
    config, own, said = read_run(args)
    return config, weights, own, said


def read_model(args: argparse.Namespace) -> Tuple[Config, Path]:
    """Return the configuration, by default that of ``--ckpt-path``, and the weight file. Raises CheckpointError."""
    from tpvformer.compat.pretrained import config_of, find_weights

    weights = find_weights(args.ckpt_path)
    if args.py_config is not None:
        return read_config(args), weights
    return override(config_of(weights), args.assignments), weights


def positive(text: str) -> int:
    """Parse an integer above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def size(text: str) -> Tuple[int, int]:
    """Parse a width and a height."""
    width, x, height = text.partition("x")
    if not (x and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1600x900")
    return int(width), int(height)
