"""A frame in the layout of the reference's videos, and videos of such frames.

The upper two rows have three cameras each and, beside them, the predicted voxels seen from the same three cameras.
Below are the voxels seen from behind the vehicle and from straight above, and last the legend.
"""

from __future__ import annotations

from pathlib import Path
from typing import List, Set, Tuple

import cv2
import numpy as np

from tpvformer.files import replacing
from tpvformer.viz.boxes import EDGES, LID, SHOWN_SCORE, certain, draw_lines
from tpvformer.viz.frame_prediction import CameraView, FramePrediction, believed, shown
from tpvformer.viz.legend import legend_strip
from tpvformer.viz.paint import BACKGROUND, caption, class_colors, looking_around, paint_tile
from tpvformer.viz.render import look_at, render_voxels

VIDEOS = (".gif", ".mp4", ".avi")  # what write_video can write
TILE = (480, 270)
GAP = 10
_WIDTH = 6 * TILE[0] + 5 * GAP
_BEHIND = (1920, 1080)
_ABOVE = (_WIDTH - _BEHIND[0] - GAP, 1080)


def video_frame(result: FramePrediction) -> np.ndarray:
    """Draw a frame: (H, 2930, 3) uint8 BGR. Three cameras take a row; H is 1756 for six cameras and 16 classes."""
    kinds = shown(result.class_names, result.frame, result.classes)
    there = believed(result, kinds)
    hatched = None if result.remembered is None else result.remembered & there
    cameras = [result.cameras[i] for i in looking_around([camera.name for camera in result.cameras])]
    rows = [cameras[i : i + 3] for i in range(0, len(cameras), 3)]
    present = set(np.unique(result.voxels[there]).tolist()) | _classes_of_boxes(result)
    legend = legend_strip(_WIDTH, kinds.drawn, present, kinds.classes)
    views = len(rows) * (TILE[1] + GAP) + _BEHIND[1]
    canvas = np.empty((views + len(legend), _WIDTH, 3), np.uint8)
    canvas[:] = BACKGROUND
    canvas[views:] = legend

    def voxels(to_pixels: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
        return render_voxels(result.voxels, there, result.pc_range, to_pixels, size, kinds.classes, hatched)

    for row, some in enumerate(rows):
        top = row * (TILE[1] + GAP)
        for column, camera in enumerate(some):
            left = column * (TILE[0] + GAP)
            canvas[top : top + TILE[1], left : left + TILE[0]] = _photo(camera, result)
            left += 3 * (TILE[0] + GAP)
            size = np.diag([TILE[0] / camera.size[0], TILE[1] / camera.size[1], 1, 1])
            tile = canvas[top : top + TILE[1], left : left + TILE[0]]
            tile[:] = voxels(size @ result.grid2img(camera), TILE)
            caption(tile, f"{_called(camera)}, voxels")
    below = canvas[len(rows) * (TILE[1] + GAP) : views]
    behind, above = _from_behind(result, kinds.forward, kinds.ground), _from_above(result, kinds.forward)
    for to_pixels, size, left, edges in ((behind, _BEHIND, 0, EDGES), (above, _ABOVE, _BEHIND[0] + GAP, LID)):
        view = voxels(to_pixels, size)
        draw_lines(view, result.box_lines(True, edges), to_pixels, size, 2)
        below[:, left : left + size[0]] = view
    caption(below[:, _BEHIND[0] + GAP :], "from above", 0.8)
    said = f"labels of {result.labels_of}" if result.labels_of else "predicted voxels"
    said += "" if result.boxes is None else f", boxes with a score of {SHOWN_SCORE:g} and more"
    said += "" if result.true_boxes is None else ", true boxes in white"
    if hatched is not None and hatched.any():
        said += f"; hatched: {int(hatched.sum())} voxels that only past frames saw"
    caption(below, f"{result.token}: {said}", 0.8)
    return canvas


def _photo(camera: CameraView, result: FramePrediction) -> np.ndarray:
    tile = cv2.resize(camera.picture(), TILE, interpolation=cv2.INTER_AREA)
    kinds = shown(result.class_names, result.frame, result.classes)
    said = np.isin(result.point_labels, kinds.drawn)
    to_tile = np.diag([TILE[0] / camera.size[0], TILE[1] / camera.size[1], 1, 1]) @ camera.lidar2img
    colors = class_colors(result.point_labels[said], kinds.classes)
    paint_tile(tile, (TILE[1], TILE[0]), result.points[said], colors, to_tile, 1.0)
    draw_lines(tile, result.box_lines(False), to_tile, TILE)
    caption(tile, _called(camera))
    return tile


def _classes_of_boxes(result: FramePrediction) -> Set[int]:
    """Return the classes of voxels that have the name of a drawn box."""
    if result.boxes is None:
        return set()
    names = {result.box_names[label] for label in result.boxes.labels[certain(result.boxes)]}
    return {i for i, name in enumerate(result.class_names) if name in names}


def _called(camera: CameraView) -> str:
    return camera.name.replace("CAM_", "").replace("_", " ").lower()


def _from_behind(result: FramePrediction, forward: str, ground: float) -> np.ndarray:
    ahead = np.array([1.0, 0, 0] if forward == "x" else [0, 1.0, 0])
    base = np.array([0, 0, ground])
    eye = base - 22 * ahead + np.array([0, 0, 14.0])
    return look_at(eye, base + 12 * ahead, _BEHIND, 50)


def _from_above(result: FramePrediction, forward: str) -> np.ndarray:
    low, high = np.array(result.pc_range[:3]), np.array(result.pc_range[3:])
    ahead = np.array([1.0, 0, 0] if forward == "x" else [0, 1.0, 0])
    middle = (low + high) / 2
    extent = float((high - low)[:2].max())
    eye = middle + np.array([0, 0, 2 * extent])
    angle = 2 * np.degrees(np.arctan(0.5 / 2 * max(1.0, _ABOVE[1] / _ABOVE[0]) * 1.04))
    return look_at(eye, middle, _ABOVE, angle, ahead.tolist())


def write_video(path: Path, frames: List[np.ndarray], fps: float) -> None:
    """Write BGR pictures as ``narrowed`` returns them to a .gif, .mp4 or .avi. The file gets its name when complete.

    Raises ValueError where it cannot be written, OSError where the folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, path.suffix) as partial:
        (_write_gif if path.suffix == ".gif" else _write_coded)(partial, frames, fps)


def _write_coded(path: Path, frames: List[np.ndarray], fps: float) -> None:
    height, width = frames[0].shape[:2]
    code = "mp4v" if path.suffix == ".mp4" else "MJPG"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, (width, height))
    if not writer.isOpened():
        raise ValueError(f"OpenCV cannot write {path.suffix} into {path.parent}; ask for a .gif, or for --png")
    for frame in frames:
        writer.write(frame)
    writer.release()


def narrowed(frame: np.ndarray, width: int = 1464) -> np.ndarray:
    """Return a BGR picture (H, W, 3) as a video's frame, ``width`` pixels wide."""
    height = 2 * round(frame.shape[0] * width / frame.shape[1] / 2)  # MP4 needs even sizes
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _write_gif(path: Path, frames: List[np.ndarray], fps: float) -> None:
    """Write a GIF with Pillow where it is installed, else with OpenCV, which writes GIF since 4.12.

    Raises ValueError where neither can.
    """
    pause = round(1000 / fps)
    try:
        from PIL import Image  # ty: ignore[import-not-found]  # optional
    except ImportError:
        done = False
        if hasattr(cv2, "imwriteanimation"):
            animation = cv2.Animation()
            animation.frames, animation.durations = frames, [pause] * len(frames)
            done = cv2.imwriteanimation(str(path), animation)
        if not done:
            raise ValueError(
                "a GIF needs Pillow (pip install pillow) or OpenCV 4.12 or later; or ask for .mp4"
            ) from None
        return
    pictures = [Image.fromarray(np.ascontiguousarray(frame[..., ::-1])) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=pause, loop=0)
