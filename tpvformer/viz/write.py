"""Write predictions as a page, pictures, a video, PLY files or a Rerun recording. No display is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional, Sequence

from tpvformer.errors import ConfigError
from tpvformer.files import atomic_file
from tpvformer.viz.boxes import certain, moved, predicted_lines, true_lines
from tpvformer.viz.frame_prediction import FramePrediction, believed, shown
from tpvformer.viz.picture import write_png
from tpvformer.viz.ply import write_lines, write_points, write_voxels
from tpvformer.viz.rerun_file import write_rerun
from tpvformer.viz.video import VIDEOS, narrowed, video_frame, write_video
from tpvformer.viz.viewer import write_page


def check_video(path: Optional[Path], fps: float) -> None:
    """Raise ConfigError if a video of this name or of ``fps`` frames a second cannot be made."""
    if path is not None and path.suffix not in VIDEOS:
        raise ConfigError(f"--video is {path}; expected a name that ends in {', '.join(VIDEOS[:-1])} or {VIDEOS[-1]}")
    if not 0 < fps <= 100:
        raise ConfigError(f"--fps is {fps}; expected a number above 0, 100 at most")


def write_views(
    results: Sequence[FramePrediction],
    title: str,
    fps: float,
    html: Optional[Path] = None,
    ply: Optional[Path] = None,
    png: Optional[Path] = None,
    video: Optional[Path] = None,
    rrd: Optional[Path] = None,
) -> Iterator[str]:
    """Write what has a path: a page, folders of PLY files and of pictures, a video, a recording; yield lines about it.

    Raises ConfigError.
    """
    if html is not None:
        yield from _page(html, results, title)
    if ply is not None:
        yield from _ply(ply, results)
    if png is not None or video is not None:
        yield from _pictures(png, video, fps, results)
    if rrd is not None:
        yield from _recording(rrd, results)


def _page(path: Path, results: Sequence[FramePrediction], title: str) -> Iterator[str]:
    """Write the viewer's page; yield a line about it. Raises ConfigError."""
    with atomic_file(path) as file:
        write_page(file, results, title)
    yield _said(path, results)


def _ply(folder: Path, results: Sequence[FramePrediction]) -> Iterator[str]:
    """Write ``<token>.voxels.ply`` and ``<token>.points.ply`` a frame; yield a line a frame. Raises ConfigError.

    Boxes are written as ``<token>.boxes.ply`` and ``<token>.true_boxes.ply``, where the frame has them.
    """
    for result in results:
        kinds = shown(result.class_names, result.frame, result.classes)
        there = believed(result, kinds)
        with atomic_file(folder / f"{result.token}.voxels.ply") as file:
            write_voxels(file, result.voxels, there, result.pc_range, kinds.classes)
        with atomic_file(folder / f"{result.token}.points.ply") as file:
            write_points(file, result.grid_points(), result.point_labels, kinds.classes)
        boxes, true_boxes = (moved(some, result.lidar2grid) for some in (result.boxes, result.true_boxes))
        if boxes is not None:
            with atomic_file(folder / f"{result.token}.boxes.ply") as file:
                write_lines(file, predicted_lines(boxes, result.box_names))
        if true_boxes is not None:
            with atomic_file(folder / f"{result.token}.true_boxes.ply") as file:
                write_lines(file, true_lines(true_boxes))
        many = "" if boxes is None else f", {int(certain(boxes).sum())} boxes"
        yield f"{folder}: {result.token}, {int(there.sum())} voxels, {len(result.points)} points{many}"


def _pictures(
    folder: Optional[Path], video: Optional[Path], fps: float, results: Sequence[FramePrediction]
) -> Iterator[str]:
    """Draw each frame once, as ``<token>.png`` below ``folder`` and for the ``video``; yield a line about each file.

    Raises ConfigError.
    """
    small = []
    try:
        for result in results:
            picture = video_frame(result)
            if folder is not None:
                write_png(folder / f"{result.token}.png", picture)
                yield f"{folder / result.token}.png"
            if video is not None:
                small.append(narrowed(picture))
        if video is not None:
            write_video(video, small, fps)
            yield _said(video, results)
    except (OSError, ValueError) as err:
        raise ConfigError(str(err)) from err


def _recording(path: Path, results: Sequence[FramePrediction]) -> Iterator[str]:
    """Write a recording for the Rerun viewer; yield a line about it. Raises ConfigError."""
    try:
        write_rerun(path, results)
    except (OSError, ValueError) as err:
        raise ConfigError(str(err)) from err
    yield _said(path, results)


def _said(path: Path, results: Sequence[FramePrediction]) -> str:
    return f"{path}: {len(results)} frames, {path.stat().st_size / 1e6:.1f} MB"
