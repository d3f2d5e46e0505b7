"""Lines on the ground and the horizon, drawn on camera images to judge a calibration by eye where there is no lidar.

With a right calibration the lines lie on the road and the drawn horizon is at the horizon of the image.
"""

from __future__ import annotations

from typing import List, Sequence, Tuple

import cv2
import numpy as np

from tpvformer.geometry import inside, project
from tpvformer.viz.paint import INK, in_tiles

STEP = 10.0  # metres between the lines
_PIECE = 0.25  # metres: lines are drawn in pieces, each wholly in front of the camera
_HORIZON = (80, 200, 255)
_FORWARD, _RIGHT, _OTHER = (90, 220, 120), (90, 120, 255), (235, 200, 120)  # BGR
_FAR = 1e6  # metres
_SUBPIXEL = 4  # bits of fraction in coordinates
_LETTERS = 12  # pixels: the least height between two printed distances


def paint_ground(
    images: Sequence[np.ndarray],
    ground2img: np.ndarray,
    reach: Sequence[float],
    camera_names: Sequence[str] = (),
) -> np.ndarray:
    """Draw lines on the ground every 10 m, and the horizon, on all cameras, and return them as one picture.

    images: N of (h, w, 3) uint8 BGR; ground2img: (N, 4, 4), from metres right of, in front of and above an origin on
    the ground; reach: the left, back, right and front end of the lines, in metres from that origin. The line straight
    ahead of the origin is green, the one to its right red. Returns (H, W, 3) uint8 BGR.
    """
    lines = _lines(reach)
    return in_tiles(images, camera_names, lambda image, i, scale: _draw(image, ground2img[i], lines, scale))


def _lines(reach: Sequence[float]) -> List[Tuple[np.ndarray, Tuple[int, int, int], int]]:
    """Return each line's points (P, 3) in metres, its colour (BGR) and its width in pixels."""
    left, behind, right, front = reach
    made: List[Tuple[np.ndarray, Tuple[int, int, int], int]] = []
    for axis, (low, high), (start, stop) in (
        (0, (left, right), (behind, front)),
        (1, (behind, front), (left, right)),
    ):
        for place in np.arange(np.ceil(low / STEP), np.floor(high / STEP) + 1) * STEP:
            along = np.arange(start, stop + _PIECE, _PIECE)
            points = np.zeros((len(along), 3))
            points[:, axis], points[:, 1 - axis] = place, along
            made.append((points, _OTHER, 1))
            if place == 0:
                ahead = points[along >= 0]
                made.append((ahead, _FORWARD if axis == 0 else _RIGHT, 2))
    turn = np.radians(np.arange(0, 360.25, 0.25))
    made.append((_FAR * np.stack([np.sin(turn), np.cos(turn), np.zeros(len(turn))], 1), _HORIZON, 1))
    return made


def _draw(
    image: np.ndarray,
    ground2img: np.ndarray,
    lines: List[Tuple[np.ndarray, Tuple[int, int, int], int]],
    scale: float,
) -> None:
    """Draw the lines in place on an image that is ``scale`` times the size that ``ground2img`` projects to."""
    height, width = image.shape[0] / scale, image.shape[1] / scale
    for points, color, thickness in lines:
        pixels, depth = project(points, ground2img)
        seen = inside(pixels, depth, height, width)
        for run in np.split(np.arange(len(points)), np.flatnonzero(seen[1:] != seen[:-1]) + 1):
            if seen[run[0]]:
                where = np.rint(pixels[run] * scale * 2**_SUBPIXEL).astype(np.int32)
                cv2.polylines(image, [where], False, color, thickness, cv2.LINE_AA, _SUBPIXEL)
    lowest = float(image.shape[0])
    for ahead in np.arange(STEP, 60, STEP):
        pixels, depth = project(np.array([[0, ahead, 0]]), ground2img)
        u, v = pixels[0] * scale
        if inside(pixels, depth, height, width)[0] and v < lowest - _LETTERS:
            lowest, place = v, (round(u) + 4, round(v) - 3)
            cv2.putText(image, f"{ahead:.0f} m", place, cv2.FONT_HERSHEY_DUPLEX, 0.35, INK, 1, cv2.LINE_AA)
