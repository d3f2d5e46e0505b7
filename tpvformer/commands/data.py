"""Prepare and check a nuScenes download before training: ``tpvformer data``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Tuple

from tpvformer.commands.options import folder_prefix, version_below
from tpvformer.errors import ConfigError
from tpvformer.untrusted.names import shown

if TYPE_CHECKING:
    from tpvformer.config import GridConfig
    from tpvformer.data.record import Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of ``data`` and their options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    infos = commands.add_parser("infos", help="write info files from the tables", description=_INFOS)
    add_set(infos)
    infos.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="default: those of splits.json, else the version's official ones"
    )
    infos.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the info files (default: the one that holds the root)"
    )
    infos.add_argument(
        "--format", choices=("both", "pkl", "safetensors"), default="both", help="which files (default: %(default)s)"
    )
    infos.add_argument(
        "--prefix",
        metavar="PREFIX",
        help="put before the file names in the infos; TPVFormer's published loader opens these from its working "
        "directory (default: the root as given)",
    )
    infos.add_argument(
        "--sweeps", type=_count, default=10, metavar="N", help="Lidar files before a key frame (default: 10)"
    )
    infos.set_defaults(run=_infos)

    check = commands.add_parser("check", help="check that the download is complete and readable", description=_CHECK)
    add_set(check)
    other = check.add_mutually_exclusive_group()
    other.add_argument(
        "--infos",
        "--rig",
        type=Path,
        metavar="PATH",
        help="instead: check your own rig file or its folder, or an info file, and all files it names",
    )
    check.add_argument(
        "--py-config", metavar="CONFIG", help="with --rig: configuration of the grid (default: the default grid)"
    )
    check.add_argument(
        "--splits", nargs="+", default=[], metavar="SPLIT", help="only the samples of these splits (default: all)"
    )
    check.add_argument("--split", dest="splits", nargs="+", help=argparse.SUPPRESS)  # the former name of --splits
    check.add_argument("--whole", action="store_true", help="decode every image and read every scan and label")
    check.add_argument(
        "--limit", type=_count, default=20, metavar="N", help="faults of a kind to list (default: %(default)s)"
    )
    other.add_argument("--paint", metavar="TOKEN", help="instead: paint this sample's labelled points on its images")
    check.add_argument("--out", default="out/points.png", metavar="FILE", help="the picture (default: %(default)s)")
    check.set_defaults(run=_check)


_INFOS = (
    "Reads six tables (scene, sample, sensor, calibrated_sensor, sample_data, ego_pose), writes two files a split: "
    "nuscenes_infos_<split>.pkl in the layout of TPVFormer, BEVFormer and mmdetection3d 0.x, without boxes and CAN "
    "bus, which TPVFormer does not read; nuscenes_infos_<split>.safetensors, which this package reads faster and "
    "which cannot execute code. data.train_infos and data.val_infos accept either."
)


_CHECK = (
    "Compares the files of the tree with the tables, then checks calibration, poses, images, scans and labels of "
    "every key frame. Each fault is one line with its token. Exit status: 0 no fault, 1 faults, 2 wrong arguments."
)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add ``--root`` and ``--version``."""
    parser.add_argument(
        "--root", type=Path, default=Path("data/nuscenes"), metavar="DIR", help="holds samples/ (default: %(default)s)"
    )
    parser.add_argument(
        "--version",
        help="table folder below the root: v1.0-mini, v1.0-trainval or v1.0-test (default: the only one)",
    )


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def every(seconds: float) -> Callable[[str, int, int], None]:
    """Return a callback that prints progress on stderr every ``seconds``, for example while a large table is read."""
    from tpvformer.engine.logging.progress import remaining

    said = time.perf_counter()
    began: Dict[str, float] = {}

    def say(what: str, done: int, total: int) -> None:
        nonlocal said
        now = time.perf_counter()
        spent = now - began.setdefault(what, now)
        if now - said >= seconds:
            said = now
            size = f"{total / 1e6:.0f} MB" if total >= 1e6 else str(total)  # bytes of a table, else items of a set
            left = f", {remaining(spent * (total - done) / done)}" if done and spent else ""
            print(f"{what}: {done * 100 // max(total, 1)} % of {size}{left}", file=sys.stderr)

    return say


def _infos(args: argparse.Namespace) -> int:
    from tpvformer.data.nuscenes.infos.build import build
    from tpvformer.data.nuscenes.infos.pickle_file import write_pickle
    from tpvformer.data.nuscenes.infos.tensor_file import write_tensors
    from tpvformer.data.nuscenes.splits import default_splits, further, scenes_of

    version = args.version or version_below(args.root)
    folder = args.root / version
    splits = args.splits or default_splits(folder)
    if not splits:
        raise ConfigError(f"version is {version}, which has no official splits; {further(folder)}")
    prefix = folder_prefix(args.root.as_posix() if args.prefix is None else args.prefix)
    out = args.root.parent if args.out is None else args.out
    writers = {"pkl": write_pickle, "safetensors": write_tensors}
    formats = list(writers) if args.format == "both" else [args.format]
    built = build(args.root, version, splits, prefix, args.sweeps, every(5))
    for split, infos in built.items():
        scenes, wanted = len(set(infos.scenes)), len(set(scenes_of(folder, split)))
        what = f"{len(infos)} samples of {scenes} scenes, {len(infos.cameras)} cameras, {len(infos.sweeps)} sweeps"
        if scenes < wanted:
            print(f"{split}: {scenes} of its {wanted} scenes are in {folder}", file=sys.stderr)
        for kind in formats:
            path = out / f"nuscenes_infos_{split}.{kind}"
            writers[kind](infos, path)
            print(f"{path}: {what}, {path.stat().st_size / 1e6:.1f} MB")
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.infos is not None:
        return _check_rig(args)
    args.version = args.version or version_below(args.root, "; --rig FILE checks a rig of your own")
    if args.paint is not None:
        return _paint(args)
    from tpvformer.data.check.examine import examine

    report = examine(args.root, args.version, args.splits, args.whole, every(5))
    print("\n".join(map(shown, report.lines(args.limit))))
    return 1 if report.count else 0


def _check_rig(args: argparse.Namespace) -> int:
    from tpvformer.compat import load_config
    from tpvformer.config import Config
    from tpvformer.data.check.rig import examine_rig, views

    config = load_config(args.py_config) if args.py_config else Config(name="usual")
    grid = config.model.grid
    report, records = examine_rig(args.infos, args.whole, args.root)
    if records:
        record = records[0]
        origin = "lidar" if grid.frame == "lidar" else "ego"
        print(f"{args.infos}: {len(record.images)} cameras; the grid is {grid.pc_range} m in the {origin} frame")
        if grid.frame != "lidar" and record.lidar2ego is None:
            report.fault("rig", f"{args.infos}: has no lidar2ego, which model.grid.frame=ego needs; add it")
        else:
            if record.sizes:
                shares, any_camera = _seen(record, grid)
                print("\n".join(view.line(share) for view, share in zip(views(record), shares)))
                print(f"  all cameras together see {100 * any_camera:.1f} % of the grid")
    print("\n".join(report.lines(args.limit)))
    return 1 if report.count else 0


def _seen(record: Record, grid: GridConfig) -> Tuple[List[float], float]:
    """Return the share of the grid's pillar anchors that each camera sees, and the share that any camera sees."""
    import numpy as np
    import torch

    from tpvformer.model.grid import pillar_points
    from tpvformer.model.projection import project

    grid2img = record.lidar2img
    if grid.frame != "lidar" and record.lidar2ego is not None:
        grid2img = grid2img @ np.linalg.inv(record.lidar2ego)
    points, pc_range = pillar_points(grid, 0, grid.z), torch.tensor(grid.pc_range)
    seen = [
        project(points, pc_range, torch.from_numpy(matrix)[None, None], (height, width)).visible[0, 0]
        for matrix, (width, height) in zip(grid2img, record.sizes)
    ]
    return [float(v.float().mean()) for v in seen], float(torch.stack(seen).any(0).float().mean())


def _paint(args: argparse.Namespace) -> int:
    from tpvformer.commands.check_geometry import count_points, write_picture
    from tpvformer.data.frames import read_frame
    from tpvformer.data.nuscenes.infos.build import build_scene
    from tpvformer.data.nuscenes.infos.read import record_of
    from tpvformer.data.nuscenes.lidarseg import LabelFiles, label_table
    from tpvformer.labels import raw_to_class
    from tpvformer.viz.paint import paint_points

    record = record_of(*build_scene(args.root, args.version, args.paint, every(5)))
    file = None
    if label_table(args.root, args.version) is not None:
        file = LabelFiles(args.root, args.version).find(record.token, Path(record.scan).name)
    frame = read_frame(record, args.root, file, raw_to_class("nuscenes"))
    labels = None if file is None else frame.labels
    images = list(frame.images.numpy())
    write_picture(args.out, paint_points(images, frame.points, labels, frame.lidar2img, frame.camera_names))
    print("\n".join(count_points(frame).lines()))
    print(
        f"  {args.out}: coloured by {'distance, because there are no lidarseg tables' if labels is None else 'class'}"
    )
    return 0
