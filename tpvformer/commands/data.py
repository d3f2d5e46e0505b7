"""Prepare and check a nuScenes download before training: ``tpvformer data``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tpvformer.commands.parser import text
from tpvformer.untrusted.names import shown


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
        type=text,
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

    drive = commands.add_parser("drive", help="write a rig file from folders of images and poses", description=_DRIVE)
    drive.add_argument(
        "--rig", type=Path, required=True, metavar="FILE", help="the calibration: a rig file without frames"
    )
    drive.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="holds a folder of images for each camera, by its name",
    )
    drive.add_argument("--poses", type=Path, required=True, metavar="FILE", help="times and poses of the vehicle")
    drive.add_argument(
        "--pose-of",
        default="ego",
        metavar="NAME",
        help="what the poses are of: ego, the vehicle; lidar; or a camera's name (default: %(default)s)",
    )
    drive.add_argument("--scene", metavar="NAME", help="the drive's name (default: that of the folder)")
    drive.add_argument("--out", type=Path, required=True, metavar="FILE", help="the rig file to write")
    drive.set_defaults(run=_drive)


_DRIVE = (
    "Writes a rig file of many frames, which predict streams. The n-th image of each camera, by the numbers in the "
    "names, and the n-th pose are one frame. A table is CSV whose first line has the names "
    "timestamp,x,y,z,qw,qx,qy,qz, or text with TUM's eight numbers a line: timestamp x y z qx qy qz qw. Seconds and "
    "metres."
)


_INFOS = (
    "Reads six tables (scene, sample, sensor, calibrated_sensor, sample_data, ego_pose), and sample_annotation, "
    "instance, category and attribute for boxes; writes two files a split: nuscenes_infos_<split>.pkl in the layout of "
    "TPVFormer, BEVFormer and mmdetection3d 0.x, without CAN bus, which TPVFormer does not read; "
    "nuscenes_infos_<split>.safetensors, which this package reads faster "
    "and which cannot execute code. data.train_infos and data.val_infos accept either."
)


_CHECK = (
    "Compares the files of the tree with the tables, then checks calibration, poses, boxes, images, scans and labels "
    "of every key frame. Each fault is one line with its token. Exit status: 0 no fault, 1 faults, 2 wrong arguments."
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


def _infos(args: argparse.Namespace) -> int:
    from tpvformer.data.nuscenes.infos.write import WRITERS, write_infos
    from tpvformer.engine.logging.progress import print_every

    formats = tuple(WRITERS) if args.format == "both" else (args.format,)
    asked = (args.version, args.splits or (), args.out, formats, args.prefix, args.sweeps, print_every(5))
    for line in write_infos(args.root, lambda text: print(text, file=sys.stderr), *asked):
        print(line)
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.infos is not None:
        return _check_rig(args)
    from tpvformer.data.check.examine import examine
    from tpvformer.data.nuscenes.tables import version_below
    from tpvformer.engine.logging.progress import print_every

    args.version = args.version or version_below(args.root, "; --rig FILE checks a rig of your own")
    if args.paint is not None:
        return _paint(args)
    report = examine(args.root, args.version, args.splits, args.whole, print_every(5))
    print("\n".join(map(shown, report.lines(args.limit))))
    return 1 if report.count else 0


def _check_rig(args: argparse.Namespace) -> int:
    from tpvformer.compat import load_config
    from tpvformer.config import Config
    from tpvformer.engine.device.preflight import check_rig

    config = load_config(args.py_config) if args.py_config else Config(name="usual")
    lines, report = check_rig(args.infos, config, args.whole, args.root)
    print("\n".join([*lines, *report.lines(args.limit)]))
    return 1 if report.count else 0


def _paint(args: argparse.Namespace) -> int:
    from tpvformer.engine.logging.progress import print_every
    from tpvformer.viz.check_geometry import paint_sample

    print("\n".join(paint_sample(args.root, args.version, args.paint, args.out, print_every(5))))
    return 0


def _drive(args: argparse.Namespace) -> int:
    from tpvformer.data.rig.from_folders import write_drive

    lines = write_drive(args.rig, args.images, args.poses, args.out, args.pose_of, args.scene)
    print("\n".join(map(shown, lines)))
    return 0
