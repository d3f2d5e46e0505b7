"""Predict frames to files, or draw one: ``tpvformer predict`` and ``tpvformer picture``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Generator, Optional

from tpvformer.commands.options import add_config, add_device, add_weights, folder, read_model, version_below
from tpvformer.config import Config
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
        "--out", type=folder, default=Path("out"), metavar="DIR", help="folder of <token>.npz (default: %(default)s)"
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
    from tpvformer.engine.logging.log import progress
    from tpvformer.predict.frames import FramePredictions, time_split

    if args.rig is not None and args.split is not None:
        raise ConfigError("--split is given, but --rig holds one set; leave one of the two out")
    if args.version is not None and args.root is None:
        raise ConfigError("--version names a table folder of --root; give --root as well")
    config, weights = read_model(args)
    split = args.split or "val"
    with _set_below(args.root, args.version, split, config) as config:
        frames = FramePredictions(config, weights, args.out, args.rig, split, args.index, args.device, args.truth)
        for note in frames.notes:
            print(note, flush=True)
        if frames.warning:
            print(f"warning: {frames.warning}", file=sys.stderr)
        with progress("predict", len(frames)) as bar:
            for line in frames:
                bar.make_room()
                print(line, flush=True)
                bar.advance()
    print(time_split(frames.seconds))
    return 0


@contextlib.contextmanager
def _set_below(
    root: Optional[Path], version: Optional[str], split: str, config: Config
) -> Generator[Config, None, None]:
    """Yield the configuration with the set of a nuScenes download, or unchanged without ``root``.

    The tables are read when the context is entered. Raises ConfigError and DataError.
    """
    if root is None:
        yield config
        return
    from tpvformer.commands.data import every
    from tpvformer.data.nuscenes.infos.build import build
    from tpvformer.data.nuscenes.infos.tensor_file import write_tensors
    from tpvformer.data.nuscenes.splits import default_splits, further

    version = version or version_below(root)
    splits = default_splits(root / version)
    named = [name for name in splits if name.endswith(split)] or (splits if len(splits) == 1 else [])
    if not named:
        raise ConfigError(
            f"{root / version} has no split that is called {split}; give another --split or --version; "
            f"{further(root / version)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        infos = Path(folder, "infos.safetensors")
        write_tensors(build(root, version, named[:1], f"{root.as_posix()}/", 0, every(5))[named[0]], infos)
        places = {"root": str(root), "version": version, f"{split}_infos": str(infos)}
        yield dataclasses.replace(config, data=dataclasses.replace(config.data, **places))


def _picture(args: argparse.Namespace) -> int:
    from tpvformer.predict.encoded_frame import draw_frame

    print(draw_frame(*read_model(args), args.index, args.out, args.device))
    return 0
