"""Show the archives of ``tpvformer predict`` as a page, pictures, video or PLY files: ``tpvformer view``.

No display is needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tpvformer.commands.parser import text
from tpvformer.errors import ConfigError

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
    parser.add_argument(
        "--title", type=text, default="TPVFormer", metavar="TEXT", help="title of the page (default: %(default)s)"
    )
    parser.add_argument("--png", type=Path, metavar="DIR", help="<token>.png a frame: cameras, voxels from two places")
    parser.add_argument("--video", type=Path, metavar="FILE", help="the same pictures as one .gif, .mp4 or .avi")
    parser.add_argument(
        "--fps", type=float, default=2.0, metavar="N", help="frames a second of the video (default: %(default)s)"
    )
    parser.add_argument(
        "--ply", type=Path, metavar="DIR", help="<token>.points.ply, .voxels.ply and .boxes.ply a frame"
    )
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
    from tpvformer.viz.write import check_video, write_views

    check_video(args.video, args.fps)
    places = args.results or [_found()]
    results = read_results(places)
    if not (args.html or args.png or args.video or args.ply or args.rrd):
        args.html = (places[0] if places[0].is_dir() else places[0].parent) / PAGE
    for line in write_views(results, args.title, args.fps, args.html, args.ply, args.png, args.video, args.rrd):
        print(line, flush=True)
    return 0


def _found() -> Path:
    """Return the default folder of predict. Raises ConfigError if it holds no archive."""
    if any(FOLDER.glob("*.npz")):
        return FOLDER
    raise ConfigError(
        f"RESULT is not given, and {FOLDER}, where tpvformer predict writes, holds no .npz files; name what it wrote"
    )
