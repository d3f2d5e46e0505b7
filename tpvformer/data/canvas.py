"""Cameras of different sizes on one canvas, because the network takes all images of a sample at once."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence, Tuple

import cv2
import numpy as np
import torch
from torch import Tensor

from tpvformer.data.images import Size, read_image, room
from tpvformer.data.pixels import MEAN_BGR


def canvas_size(sizes: Sequence[Size]) -> Size:
    """Width and height of the camera with the most pixels; of equal ones, of the widest."""
    return max(sizes, key=lambda size: (size[0] * size[1], size[0]))


def fitted(size: Size, canvas: Size) -> Size:
    """Width and height of an image scaled until it fills the canvas in one direction; its shape stays as it is."""
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def read_canvas(
    paths: Sequence[Path], token: str, sizes: Sequence[Size]
) -> Tuple[Tensor, np.ndarray, List[Tuple[int, int]]]:
    """The images of one sample, each in the upper left corner of a canvas as large as the largest.

    Returns them as (N, H, W, 3) uint8 BGR; (N, 4, 4) float64, by which their projections are to be multiplied; and the
    (h, w) that each fills. Raises DataError as ``read_images`` does.
    """
    # The rest has the mean colour, so that next to nothing is left of it where the mean is subtracted. Pillars that
    # project there count as visible, as they do in the rows that the published models pad images with.
    width, height = canvas_size(sizes)
    out = room((len(paths), height, width, 3))
    out[:] = torch.tensor(np.rint(MEAN_BGR).astype(np.uint8))
    to_canvas, inner = np.tile(np.eye(4), (len(paths), 1, 1)), []
    for i, (path, size) in enumerate(zip(paths, sizes)):
        image = read_image(path, token, size)
        w, h = fitted(size, (width, height))
        if (w, h) != size:
            image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if w < size[0] else cv2.INTER_LINEAR)
        out[i, :h, :w] = torch.from_numpy(image)
        to_canvas[i, 0, 0], to_canvas[i, 1, 1] = w / size[0], h / size[1]
        inner.append((h, w))
    return out, to_canvas, inner
