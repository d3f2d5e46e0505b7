"""Place images of different sizes on canvases of one size, because the network takes all images of a sample at once."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, List, Sequence, Tuple

import torch  # before OpenCV: see "static TLS" in docs/ascend.md
from torch import Tensor

# isort: split
import cv2
import numpy as np

from tpvformer.data.images.decode import Size, alloc_images, read_image, read_images
from tpvformer.data.images.preprocess import MEAN_BGR


def canvas_size(sizes: Sequence[Size]) -> Size:
    """Return width and height of the camera with the most pixels; among equals, of the widest."""
    return max(sizes, key=lambda size: (size[0] * size[1], size[0]))


def fitted(size: Size, canvas: Size) -> Size:
    """Return width and height of an image scaled to fit the canvas; its aspect ratio is kept."""
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def placements(sizes: Sequence[Size]) -> Tuple[np.ndarray, List[Tuple[int, int]]]:
    """Return (N, 4, 4) float64, factors from the left for the projections, and the (h, w) that each image fills."""
    canvas = canvas_size(sizes)
    to_canvas, valid_sizes = np.tile(np.eye(4), (len(sizes), 1, 1)), []
    for matrix, size in zip(to_canvas, sizes):
        width, height = fitted(size, canvas)
        matrix[0, 0], matrix[1, 1] = width / size[0], height / size[1]
        valid_sizes.append((height, width))
    return to_canvas, valid_sizes


def read_pictures(paths: Sequence[Path], token: str, sizes: Sequence[Size] = ()) -> Tensor:
    """Read the images of one sample, (N, H, W, 3) uint8 BGR, each in the upper left corner of a canvas as large as the
    largest. ``sizes`` are the expected sizes; without them all images must have one size.

    Raises DataError as ``read_images`` does.
    """
    if len(set(sizes)) <= 1:
        return read_images(paths, token, sizes)
    return on_canvas((read_image(path, token, size) for path, size in zip(paths, sizes)), sizes)


def on_canvas(pictures: Iterable[np.ndarray], sizes: Sequence[Size]) -> Tensor:
    """Place images (h, w, 3) BGR of these sizes on canvases, (N, H, W, 3) uint8."""
    # The rest has the mean colour, so that next to nothing is left of it where the mean is subtracted. Pillars that
    # project there count as visible, as they do in the rows that the published models pad images with.
    canvas = canvas_size(sizes)
    out = alloc_images((len(sizes), canvas[1], canvas[0], 3))
    out[:] = torch.tensor(np.rint(MEAN_BGR).astype(np.uint8))
    for room, image, size in zip(out, pictures, sizes):
        width, height = fitted(size, canvas)
        if (width, height) != size:
            smooth = cv2.INTER_AREA if width < size[0] else cv2.INTER_LINEAR
            image = cv2.resize(image, (width, height), interpolation=smooth)
        room[:height, :width] = torch.from_numpy(image)
    return out
