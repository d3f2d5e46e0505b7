"""Show the archives of ``tpvformer predict`` as a page, pictures, video or PLY files: ``tpvformer view``.

No display is needed.
"""

from __future__ import annotations

import argparse
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Sequence

from tpvformer.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from tpvformer.viz.frame_prediction import FramePrediction


FOLDER, PAGE = Path("out"), "view.html"  # the default folder of predict; the page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``view``."""
    parser.description = _VIEW
    parser.add_argument(
        "results",
        type=Path,
        nargs="*",
        metavar="RESULT",
        help=f"files, or folders of them (default: {FOLDER}, where predict writes)",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help=f"one page with everything, to be opened in a browser (default: {PAGE} beside the first RESULT, if "
        "nothing else is asked for)",
    )
    parser.add_argument("--title", default="TPVFormer", metavar="TEXT", help="title of the page (default: %(default)s)")
    parser.add_argument("--png", type=Path, metavar="DIR", help="<token>.png a frame: cameras, voxels from two places")
    parser.add_argument("--video", type=Path, metavar="FILE", help="the same pictures as one .gif, .mp4 or .avi")
    parser.add_argument(
        "--fps", type=float, default=2.0, metavar="N", help="frames a second of the video (default: %(default)s)"
    )
    parser.add_argument("--ply", type=Path, metavar="DIR", help="<token>.points.ply and <token>.voxels.ply a frame")
    parser.add_argument("--rrd", type=Path, metavar="FILE", help="for the Rerun viewer; needs pip install rerun-sdk")
    parser.set_defaults(run=_run)


_VIEW = (
    "RESULTs come from tpvformer predict (with --truth also the labels of the set), or are published labels: Occ3D's "
    "labels.npz, SurroundOcc's .npy, SemanticKITTI's .label. The page needs no network and no "
    "other file; its slider goes over all frames given: files in their order, folders by scene and time. Pictures, "
    "video and PLY files show what is predicted; of a model that was not taught free space, where lidar points lie."
)


def _run(args: argparse.Namespace) -> int:
    from tpvformer.predict.read_results import read_results

    if args.video and args.video.suffix not in (".gif", ".mp4", ".avi"):
        raise ConfigError(f"--video is {args.video}; expected a name that ends in .gif, .mp4 or .avi")
    if not 0 < args.fps <= 100:
        raise ConfigError(f"--fps is {args.fps}; expected a number above 0, 100 at most")
    places = args.results or [_found()]
    results = read_results(places)
    if not (args.html or args.png or args.video or args.ply or args.rrd):
        args.html = (places[0] if places[0].is_dir() else places[0].parent) / PAGE
    if args.html:
        _write_page(args.html, results, args.title)
    if args.ply:
        for result in results:
            _write_ply(args.ply, result)
    if args.png or args.video:
        _write_pictures(args, results)
    if args.rrd:
        _write_rerun(args.rrd, results)
    return 0


def _found() -> Path:
    """Return the default folder of predict. Raises ConfigError if it holds no archive."""
    if any(FOLDER.glob("*.npz")):
        return FOLDER
    raise ConfigError(
        f"RESULT is not given, and {FOLDER}, where tpvformer predict writes, holds no .npz files; name what it wrote"
    )


def _write_page(path: Path, results: Sequence[FramePrediction], title: str) -> None:
    from tpvformer.files import atomic_file
    from tpvformer.viz.viewer import write_page

    with atomic_file(path) as file:
        write_page(file, results, title)
    print(f"{path}: {len(results)} frames, {path.stat().st_size / 1e6:.1f} MB")


def _write_ply(folder: Path, result: FramePrediction) -> None:
    from tpvformer.files import atomic_file
    from tpvformer.viz import ply
    from tpvformer.viz.frame_prediction import believed, shown

    kinds = shown(result.class_names, result.frame)
    there = believed(result, kinds)
    with atomic_file(folder / f"{result.token}.voxels.ply") as file:
        ply.write_voxels(file, result.voxels, there, result.pc_range, kinds.classes)
    with atomic_file(folder / f"{result.token}.points.ply") as file:
        ply.write_points(file, result.grid_points(), result.point_labels, kinds.classes)
    print(f"{folder}: {result.token}, {int(there.sum())} voxels, {len(result.points)} points")


def _write_rerun(path: Path, results: Sequence[FramePrediction]) -> None:
    from tpvformer.viz.rerun_file import write_rerun

    try:
        write_rerun(path, results)
    except (OSError, ValueError) as err:
        raise ConfigError(str(err)) from err
    print(f"{path}: {len(results)} frames, {path.stat().st_size / 1e6:.1f} MB")


def _write_pictures(args: argparse.Namespace, results: Sequence[FramePrediction]) -> None:
    from tpvformer.viz.picture import write_png
    from tpvformer.viz.video import video_frame, write_video

    def frames() -> Iterator[np.ndarray]:
        for result in results:
            picture = video_frame(result)
            if args.png:
                write_png(args.png / f"{result.token}.png", picture)
                print(f"{args.png / result.token}.png", flush=True)
            yield picture

    try:
        if args.video:
            write_video(args.video, frames(), args.fps)
            print(f"{args.video}: {len(results)} frames, {args.video.stat().st_size / 1e6:.1f} MB")
        else:
            deque(frames(), maxlen=0)
    except (OSError, ValueError) as err:
        raise ConfigError(str(err)) from err
