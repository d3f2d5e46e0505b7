"""Preprocess images on the CPU with OpenCV. M images = B samples x N cameras, (H, W) stored, (h, w) after scaling."""

from __future__ import annotations

from typing import Optional, Sequence

from torch import Tensor  # before OpenCV: see "static TLS" in docs/ascend.md

# isort: split
import cv2
import numpy as np


def fill(
    out: Tensor,
    images: Tensor,
    draws: Optional[Tensor],
    mean: Sequence[float],
    crops: Optional[Tensor] = None,
) -> None:
    """Distort, subtract the mean, scale: images (M, H, W, 3) uint8 into out (M, h, w, 3) float32.

    draws (M, 8): parameters of ``photometric.draw_photometric``; None applies no distortion. crops (M, 5) as
    ``crops.draw_crops`` makes them; None scales whole images. What crops leave free of ``out`` keeps
    its value.
    """
    height, width = images.shape[1:3]
    channel_mean = np.asarray(mean, np.float32)
    row_mean = np.tile(channel_mean, width)
    values, hsv = np.empty((2, height, width, 3), np.float32)
    for i, image in enumerate(images.numpy()):
        view, order = out[i].numpy(), [0, 1, 2]
        if draws is not None:
            draw = draws[i].numpy()
            distort(image, draw, values, hsv)
            image, order = values, draw[5:].astype(int).tolist()
        if crops is None and view.shape == image.shape and order == [0, 1, 2]:
            rows = view.reshape(height, -1)  # NumPy is several times faster along whole rows than along three channels
            np.subtract(image.reshape(height, -1), row_mean, out=rows, dtype=np.float32)
            continue
        for channel, source in enumerate(order):
            plane = np.subtract(image[..., source], channel_mean[channel], dtype=np.float32)
            if crops is not None:
                place(plane, crops[i].tolist(), view[..., channel])
                continue
            if plane.shape != view.shape[:2]:
                plane = cv2.resize(plane, view.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            view[..., channel] = plane


def place(plane: np.ndarray, crop: Sequence[int], out: np.ndarray) -> None:
    """Scale and mirror a plane (H, W), and copy what its crop shows of it into out (h, w)."""
    rows, columns, top, left, flipped = crop
    if plane.shape != (rows, columns):
        plane = cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_LINEAR)
    if flipped:
        plane = plane[:, ::-1]
    height, width = out.shape
    shown = plane[max(top, 0) : top + height, max(left, 0) : left + width]
    down, right = max(-top, 0), max(-left, 0)
    out[down : down + shown.shape[0], right : right + shown.shape[1]] = shown


def distort(image: np.ndarray, draw: np.ndarray, out: np.ndarray, hsv: np.ndarray) -> None:
    """Apply the distortion of one image except the order of its channels: image (H, W, 3) into ``out`` float32.

    draw (8,): parameters of ``photometric.draw_photometric``. ``hsv`` is a buffer like ``out``: hue in degrees,
    saturation 0..1, value 0..255.
    """
    brightness, contrast, saturation, degrees, contrast_after = draw[:5]
    np.copyto(out, image)
    if brightness != 0:
        out += brightness
    if contrast != 1:
        out *= contrast
    cv2.cvtColor(out, cv2.COLOR_BGR2HSV, dst=hsv)
    if saturation != 1:
        hsv[..., 1] *= saturation
    if degrees != 0:
        hue = hsv[..., 0]
        hue += degrees
        if degrees > 0:
            np.subtract(hue, np.float32(360), out=hue, where=hue > 360)
        else:
            np.add(hue, np.float32(360), out=hue, where=hue < 0)
    # Done also where nothing was drawn, because values below 0 do not survive the way there and back.
    cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=out)
    if contrast_after != 1:
        out *= contrast_after


def mask(out: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Apply GridMask to out (B, N, h, w, 3): a pixel stays iff its row or its column is kept, the same for all
    cameras."""
    for sample, row, column in zip(out.numpy(), rows.numpy(), columns.numpy()):
        sample.reshape(*sample.shape[:2], -1)[:, ~row] *= column.repeat(3)
