"""One picture of one frame: the predicted points on the images, and the predicted voxels beside the true ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from tpvformer.labels import NUSCENES, Classes
from tpvformer.viz.boxes import PictureBoxes, draw_lines
from tpvformer.viz.legend import legend_panel
from tpvformer.viz.paint import BACKGROUND, FONT, GAP, INK, caption, paint_points
from tpvformer.viz.top_view import voxel_top_view

_HEADER = 44
_LEGEND = 300
_HEAD = 33  # bytes of a PNG file before its second chunk: the signature and IHDR


def frame_picture(
    images: Sequence[np.ndarray],
    camera_names: Sequence[str],
    lidar2img: np.ndarray,
    points: np.ndarray,
    predicted: np.ndarray,
    predicted_voxels: np.ndarray,
    true_voxels: np.ndarray,
    title: str,
    classes: Classes = NUSCENES,
    vehicle: Tuple[float, float] = (0.5, 0.5),
    boxes: Optional[PictureBoxes] = None,
) -> np.ndarray:
    """Draw the cameras with the predicted points on them; below, predicted voxels, true voxels and the legend.

    images: N of (H, W, 3) uint8 BGR; lidar2img (N, 4, 4); points (P, 3) metres, lidar frame; predicted (P,) classes;
    predicted_voxels and true_voxels (X, Y, Z) classes; classes that are not evaluated are not drawn. A model of lidar
    segmentation predicts a class for every voxel, free space too; the caller then sets voxels without points to 0.
    ``vehicle`` as in ``voxel_top_view``. ``boxes`` are drawn on the cameras and on both views.
    Returns (H', W', 3) uint8 BGR.
    """
    lines = None if boxes is None else boxes.on_images
    cameras = paint_points(images, points, predicted, lidar2img, camera_names, classes, lines)
    width = cameras.shape[1]
    size = (width - _LEGEND - 2 * GAP) // 2
    views = []
    more = "" if boxes is None else " and boxes"
    for voxels, kind in ((predicted_voxels, "predicted"), (true_voxels, "true")):
        view = voxel_top_view(voxels, size, classes, vehicle)
        if boxes is not None:
            lines = boxes.predicted if kind == "predicted" else boxes.true
            draw_lines(view, lines, np.diag([size, size, 1, 1]) @ boxes.above, (size, size), 2)
        caption(view, f"{kind} voxels{more}, from above")
        views.append(view)
    present = set(np.unique(predicted).tolist()) | set(np.unique(true_voxels).tolist())
    canvas = np.empty((_HEADER + cameras.shape[0] + GAP + size, width, 3), np.uint8)
    canvas[:] = BACKGROUND
    cv2.putText(canvas, title, (12, 30), FONT, 0.7, INK, 1, cv2.LINE_AA)
    canvas[_HEADER : _HEADER + cameras.shape[0]] = cameras
    below = canvas[_HEADER + cameras.shape[0] + GAP :]
    below[:, :size] = views[0]
    below[:, size + GAP : 2 * size + GAP] = views[1]
    legend_panel(below[:, 2 * (size + GAP) :], present, classes)
    return canvas


def write_png(path: Union[str, Path], image: np.ndarray, title: str = "") -> None:
    """Write a BGR picture as PNG, with ``title`` as metadata that ``title_of`` reads. A missing folder is made.

    Raises OSError where the file cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(titled(cv2.imencode(".png", image)[1].tobytes(), title))


def titled(png: bytes, title: str) -> bytes:
    """Return a PNG file with a title as PNG metadata; the same bytes where the title is empty."""
    if not title:
        return png
    content = b"tEXtTitle\0" + title.encode("latin-1", "replace")
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:_HEAD] + chunk + png[_HEAD:]


def title_of(png: bytes) -> str:
    """Return the title of a PNG file that ``titled`` made; "" where it has none."""
    length, kind = struct.unpack(">I4s", png[_HEAD : _HEAD + 8])
    content = png[_HEAD + 8 : _HEAD + 8 + length]
    return content[6:].decode("latin-1") if kind == b"tEXt" and content.startswith(b"Title\0") else ""


def jpeg_of(path: Union[str, Path], width: int) -> bytes:
    """Read a picture and return it as a JPEG file, ``width`` pixels wide. Raises OSError where it cannot be read."""
    image = cv2.imread(str(path))
    if image is None:
        raise OSError(f"{path} is no picture")
    size = (width, round(image.shape[0] * width / image.shape[1]))
    smaller = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
