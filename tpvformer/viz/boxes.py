"""Boxes as lines: their edges, a mark of the heading, and an arrow to where the object is one second later."""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from tpvformer.data.detection.boxes import DETECTION_CLASSES as DETECTION_CLASSES  # viz imports them from here
from tpvformer.data.detection.boxes import Boxes as Boxes
from tpvformer.data.detection.corners import EDGES as EDGES
from tpvformer.data.detection.corners import LID as LID
from tpvformer.data.detection.corners import corners as corners
from tpvformer.data.detection.corners import headings
from tpvformer.geometry import segments_in_image
from tpvformer.labels import CLASS_NAMES, COLORS

SHOWN_SCORE = 0.2  # least score of the predicted boxes in pictures, videos and files; the page has a slider
SLOW = 0.3  # m/s: slower boxes have no arrow
_TRUE = (255, 255, 255)
_UNDER = (24, 20, 18)  # BGR, drawn below each line, because a box may have the colour of what it stands before
_SUBPIXEL = 4  # bits of fraction in coordinates


class Lines(NamedTuple):
    """S coloured lines."""

    segments: np.ndarray  # (S, 2, 3) float64, metres
    colors: np.ndarray  # (S, 3) uint8, RGB
    labels: np.ndarray  # (S,) uint8: class of the box


class PictureBoxes(NamedTuple):
    """What ``frame_picture`` draws of boxes."""

    on_images: Lines  # lidar frame
    predicted: Lines  # grid's frame, for the view of predicted voxels
    true: Lines  # grid's frame, for the view of true voxels
    above: np.ndarray  # (4, 4): metres in the grid's frame to fractions of the view from above, as ``project`` takes it


def box_colors(names: Sequence[str]) -> np.ndarray:
    """Return the colour (K, 3), uint8 RGB, of each class of boxes: that of the nuScenes class of this name, if any."""
    numbers = [CLASS_NAMES.index(name) if name in CLASS_NAMES else 1 + i % 16 for i, name in enumerate(names)]
    return np.array(COLORS, np.uint8)[numbers]


def arrows(boxes: Boxes) -> Tuple[np.ndarray, np.ndarray]:
    """Return the arrows (A, 3, 2, 3) of the boxes that move, three lines each, in metres, and their rows (A,).

    An arrow begins in the middle of the box and ends where the object is after one second.
    """
    speed = np.linalg.norm(boxes.velocities.astype(np.float64), axis=1)
    rows = np.flatnonzero(speed > SLOW)  # comparisons with NaN, an unknown velocity, are false
    start = boxes.centres[rows].astype(np.float64)
    step = np.concatenate([boxes.velocities[rows], np.zeros((len(rows), 1))], 1)
    end = start + step
    back = -step / np.maximum(speed[rows], SLOW)[:, None] * np.clip(0.3 * speed[rows], 0.3, 1.5)[:, None]
    across = np.stack([-back[:, 1], back[:, 0], back[:, 2]], 1) * 0.5
    lines = [
        np.stack([start, end], 1),
        np.stack([end, end + back + across], 1),
        np.stack([end, end + back - across], 1),
    ]
    return np.stack(lines, 1), rows


def lines_of(boxes: Boxes, colors: np.ndarray, edges: np.ndarray = EDGES) -> Lines:
    """Return the ``edges`` of boxes, their headings and arrows, with ``colors`` (N, 3), uint8 RGB, of the boxes."""
    moving, rows = arrows(boxes)
    segments = [corners(boxes)[:, edges].reshape(-1, 2, 3), headings(boxes), moving.reshape(-1, 2, 3)]
    labels = boxes.labels.astype(np.uint8)
    owners = np.arange(len(boxes))
    owners = np.concatenate([owners.repeat(len(edges)), owners, rows.repeat(3)])
    return Lines(np.concatenate(segments), colors[owners], labels[owners])


def certain(boxes: Boxes) -> np.ndarray:
    """Return a mask (N,), bool, of the boxes with a score of ``SHOWN_SCORE`` at least; boxes without scores count."""
    return np.ones(len(boxes), bool) if boxes.scores is None else boxes.scores >= SHOWN_SCORE


def predicted_lines(boxes: Optional[Boxes], names: Sequence[str], edges: np.ndarray = EDGES) -> Lines:
    """Return the lines of the predicted boxes that are ``certain``, in the colours of their classes."""
    if boxes is None:
        return lines_of(Boxes.none(), np.empty((0, 3), np.uint8), edges)
    kept = boxes.take(certain(boxes))
    return lines_of(kept, box_colors(names)[kept.labels], edges)


def true_lines(boxes: Optional[Boxes], edges: np.ndarray = EDGES) -> Lines:
    """Return the lines of the true boxes, white."""
    found = Boxes.none() if boxes is None else boxes
    return lines_of(found, np.full((len(found), 3), _TRUE, np.uint8), edges)


def joined(first: Lines, second: Lines) -> Lines:
    """Return the lines of both; the second are drawn over the first."""
    return Lines(*(np.concatenate(parts) for parts in zip(first, second)))


def moved(boxes: Optional[Boxes], matrix: np.ndarray) -> Optional[Boxes]:
    """Return boxes in another frame; ``matrix`` as for ``Boxes.transformed``."""
    return None if boxes is None else boxes.transformed(matrix)


def draw_lines(
    image: np.ndarray, lines: Lines, to_pixels: np.ndarray, size: Sequence[float], thickness: int = 1
) -> None:
    """Draw lines in place on a BGR image.

    to_pixels (4, 4) takes metres to pixels of a picture of ``size`` (width, height), of which the image is an enlarged
    or reduced copy.
    """
    ends, rows = segments_in_image(lines.segments, to_pixels, size)
    scale = np.array([image.shape[1] / size[0], image.shape[0] / size[1]])
    places = np.rint(((ends + 0.5) * scale - 0.5) * 2**_SUBPIXEL).astype(int).tolist()
    colors = lines.colors[rows][:, ::-1].tolist()
    for start, end in places:
        cv2.line(image, start, end, _UNDER, thickness + 2, cv2.LINE_AA, _SUBPIXEL)
    for (start, end), color in zip(places, colors):
        cv2.line(image, start, end, color, thickness, cv2.LINE_AA, _SUBPIXEL)


def picture_boxes(
    predicted: Optional[Boxes],
    true: Optional[Boxes],
    names: Sequence[str],
    lidar2grid: np.ndarray,
    above: np.ndarray,
) -> Optional[PictureBoxes]:
    """Return what ``frame_picture`` draws of boxes in the lidar frame; None where there are neither.

    ``above`` as in ``PictureBoxes``.
    """
    if predicted is None and true is None:
        return None
    return PictureBoxes(
        joined(true_lines(true), predicted_lines(predicted, names)),
        predicted_lines(moved(predicted, lidar2grid), names, LID),
        true_lines(moved(true, lidar2grid), LID),
        above,
    )
