"""Lidar points painted on the camera images. Images are BGR, as OpenCV reads and writes them."""

from __future__ import annotations

from typing import Callable, List, Optional, Sequence

import cv2
import numpy as np

from tpvformer.geometry import inside, project
from tpvformer.labels import NUSCENES, Classes
from tpvformer.viz.boxes import Lines, draw_lines

BACKGROUND = (31, 27, 24)
INK = (235, 232, 228)
FONT = cv2.FONT_HERSHEY_DUPLEX
TILE_WIDTH = 640  # pixels of one camera in a full row; where there are fewer cameras, each is wider
COLUMNS = 3  # cameras in a row
GAP = 4
_PLACES = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
_SUBPIXEL = 4  # bits of fraction in the circle coordinates
_FAR = 60.0  # metres: end of the distance colours
_TURBO = np.asarray(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO))[:, 0]


def palette_bgr(classes: Classes) -> np.ndarray:
    """Return the colour of each class: (K, 3) uint8 BGR."""
    return np.array(classes.colors, np.uint8)[:, ::-1]


def class_colors(labels: np.ndarray, classes: Classes = NUSCENES) -> np.ndarray:
    """Return the colours (P, 3), uint8 BGR, of labels (P,)."""
    return palette_bgr(classes)[np.asarray(labels, np.int64)]


def distance_colors(points: np.ndarray) -> np.ndarray:
    """Colour points (P, 3), metres in the lidar frame, by distance: (P, 3) uint8 BGR, red near, blue from 60 m on."""
    near = 1 - np.clip(np.linalg.norm(points[:, :2], axis=1) / _FAR, 0, 1)
    return _TURBO[(near * 255).astype(np.uint8)]


def paint_points(
    images: Sequence[np.ndarray],
    points: np.ndarray,
    labels: Optional[np.ndarray],
    lidar2img: np.ndarray,
    camera_names: Sequence[str] = (),
    classes: Classes = NUSCENES,
    lines: Optional[Lines] = None,
) -> np.ndarray:
    """Paint the points on all cameras and return them as one picture, up to three cameras in a row.

    images: N of (H, W, 3) uint8, not necessarily equal; points (P, 3) metres, lidar frame; labels (P,) classes, or None
    to colour by distance; lidar2img (N, 4, 4); lines of boxes, lidar frame, are drawn over the points. The six nuScenes
    cameras are arranged as around the vehicle: the front three above the back three. Returns (H', W', 3) uint8 BGR.
    """
    colors = distance_colors(points) if labels is None else class_colors(labels, classes)

    def draw(tile: np.ndarray, i: int, scale: float) -> None:
        height, width = images[i].shape[:2]
        paint_tile(tile, (height, width), points, colors, lidar2img[i], scale)
        if lines is not None:
            draw_lines(tile, lines, lidar2img[i], (width, height))

    return in_tiles(images, camera_names, draw)


def in_tiles(
    images: Sequence[np.ndarray], camera_names: Sequence[str], draw: Callable[[np.ndarray, int, float], None]
) -> np.ndarray:
    """Return all images in one picture, with their names, after a call of ``draw(tile, number, scale)`` on each.

    Up to three are in a row; where there are fewer, they are wider. ``scale``: width of the tile by that of its image.
    """
    tile_width = TILE_WIDTH * COLUMNS // min(len(images), COLUMNS)
    tiles = []
    for i in looking_around(camera_names) if camera_names else range(len(images)):
        height, width = images[i].shape[:2]
        scale = tile_width / width
        shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        tile = cv2.resize(images[i], (tile_width, round(height * scale)), interpolation=shrink)
        draw(tile, i, scale)
        if i < len(camera_names):
            caption(tile, camera_names[i].replace("CAM_", "").replace("_", " ").lower())
        tiles.append(tile)
    return mosaic(tiles, COLUMNS)


def looking_around(names: Sequence[str]) -> List[int]:
    """Return the order of the cameras in a picture: nuScenes' front three, its back three, then others as given."""
    return sorted(range(len(names)), key=lambda i: _PLACES.index(names[i]) if names[i] in _PLACES else len(_PLACES))


def paint_tile(
    tile: np.ndarray,
    shape: Sequence[int],
    points: np.ndarray,
    colors: np.ndarray,
    lidar2img: np.ndarray,
    scale: float,
) -> None:
    """Draw points in place on a tile, which is ``scale`` times as large as its image of ``shape`` (height, width)."""
    pixels, depth = project(points, lidar2img)
    seen = np.flatnonzero(inside(pixels, depth, shape[0], shape[1]))
    seen = seen[np.argsort(-depth[seen])]  # near points cover far ones
    centres = np.rint(((pixels[seen] + 0.5) * scale - 0.5) * 2**_SUBPIXEL).astype(int).tolist()
    radii = np.rint(np.clip(14 / depth[seen], 1.1, 2.6) * 2**_SUBPIXEL).astype(int).tolist()
    for centre, radius, color in zip(centres, radii, colors[seen].tolist()):
        cv2.circle(tile, centre, radius, color, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL)


def caption(image: np.ndarray, text: str, size: float = 0.55) -> None:
    """Write ``text`` into the upper left corner, in place, on a darkened strip."""
    (width, height), _ = cv2.getTextSize(text, FONT, size, 1)
    strip = image[: height + 14, : width + 18]
    strip[:] = (strip * 0.35).astype(np.uint8)
    cv2.putText(image, text, (9, height + 7), FONT, size, INK, 1, cv2.LINE_AA)


def mosaic(tiles: List[np.ndarray], columns: int) -> np.ndarray:
    """Join tiles of equal width into rows of ``columns`` with gaps; a row is as high as its highest tile."""
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights, width = [max(tile.shape[0] for tile in row) for row in rows], tiles[0].shape[1]
    canvas = np.empty((sum(heights) + GAP * (len(rows) - 1), len(rows[0]) * (width + GAP) - GAP, 3), np.uint8)
    canvas[:] = BACKGROUND
    top = 0
    for row, height in zip(rows, heights):
        for i, tile in enumerate(row):
            left = i * (width + GAP)
            canvas[top : top + tile.shape[0], left : left + width] = tile
        top += height + GAP
    return canvas
