"""The names of the classes beside their colours, for pictures."""

from __future__ import annotations

from typing import Collection, Sequence, Tuple

import cv2
import numpy as np

from tpvformer.labels import Classes
from tpvformer.viz.paint import BACKGROUND, FONT, INK, palette_bgr

_ABSENT = 0.4  # brightness of the entry of a class that does not occur in the frame
_COLUMN, _ROW, _EDGE = 320, 46, 12  # pixels of the strip


def legend_panel(panel: np.ndarray, present: Collection[int], classes: Classes) -> None:
    """Draw the evaluated classes one below the other, in place, on a BGR picture; those not ``present`` are dimmed."""
    step = (panel.shape[0] - 90) // len(classes.evaluated)
    cv2.putText(panel, "classes", (28, 40), FONT, 0.75, INK, 1, cv2.LINE_AA)
    for row, number in enumerate(classes.evaluated):
        _entry(panel, (28, 66 + row * step), (34, step - 12), number, number in present, classes, 0.62)


def legend_strip(width: int, drawn: Sequence[int], present: Collection[int], classes: Classes) -> np.ndarray:
    """Return a legend (H, width, 3), uint8 BGR, of the classes ``drawn``, in rows; those not ``present`` are dimmed."""
    columns = max(1, width // _COLUMN)
    rows = -(-len(drawn) // columns)
    strip = np.empty((rows * _ROW + 2 * _EDGE, width, 3), np.uint8)
    strip[:] = BACKGROUND
    for place, number in enumerate(drawn):
        row, column = divmod(place, columns)
        corner = (_EDGE + column * (width - _EDGE) // columns, _EDGE + row * _ROW)
        _entry(strip, corner, (34, _ROW - 12), number, number in present, classes, 0.75)
    return strip


def _entry(
    picture: np.ndarray,
    corner: Tuple[int, int],
    size: Tuple[int, int],
    number: int,
    there: bool,
    classes: Classes,
    text_size: float,
) -> None:
    """Draw a swatch of ``size`` (width, height) at ``corner`` (x, y), in place, with the class's name to its right."""
    weight, (x, y), (width, height) = 1.0 if there else _ABSENT, corner, size
    swatch = tuple(int(v) for v in palette_bgr(classes)[number] * weight + np.array(BACKGROUND) * (1 - weight))
    ink = tuple(int(v * weight + b * (1 - weight)) for v, b in zip(INK, BACKGROUND))
    cv2.rectangle(picture, (x, y), (x + width, y + height), swatch, cv2.FILLED)
    text = classes.names[number].replace("_", " ")
    cv2.putText(picture, text, (x + width + 16, y + height // 2 + 7), FONT, text_size, ink, 1, cv2.LINE_AA)
