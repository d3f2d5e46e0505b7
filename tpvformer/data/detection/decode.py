"""Decode the output of the detection head to boxes, in NumPy: what onnxruntime returns is decoded by the same code.

A cell is a candidate of a class if its score is high enough and none of its eight neighbours has a higher one
(CenterNet, arXiv:1904.07850). Candidates of one group of classes suppress each other where their centres are close
(circle NMS, CenterPoint, arXiv:2006.11275). Circles alone are smaller than a cell for some classes: with cells of half
a metre, mAP on the synthetic street was 22.6 % by circles and 29.3 % with both (docs/detection.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Sequence

import numpy as np

from tpvformer.config import ModelConfig
from tpvformer.config.detection import BOX_VALUES
from tpvformer.data.detection.boxes import GROUPS, Boxes
from tpvformer.data.detection.targets import BoxMap

if TYPE_CHECKING:
    from torch import Tensor

CANDIDATES = 500  # of a group
GROUP_BOXES, SAMPLE_BOXES = 83, 500  # at most, after suppression
REACH = 61.2  # metres; boxes whose centre is further along x or y are left out
# square metres between centres within which the lower score goes, a group; published as radii, compared with squares
CIRCLES = (4.0, 12.0, 10.0, 1.0, 0.85, 0.175)
_LARGEST = 10.0  # bound of log sizes, so that untrained weights give finite boxes


def decode(heatmaps: np.ndarray, values: np.ndarray, pc_range: Sequence[float], min_score: float = 0.1) -> Boxes:
    """Return the boxes of one sample with their scores, highest first, at most 500.

    heatmaps (10, Y, X) are logits of DETECTION_CLASSES; values (6, 10, Y, X) are each group's values of a box at each
    cell (``targets.draw_targets`` names them). ``pc_range``: x0, y0, z0, x1, y1, z1 of the grid in metres, whose frame
    the boxes are in. Boxes with a score below ``min_score`` are left out. Raises ValueError for other shapes.
    """
    classes, expected = sum(map(len, GROUPS)), (len(GROUPS), BOX_VALUES, *heatmaps.shape[1:])
    if heatmaps.ndim != 3 or heatmaps.shape[0] != classes:
        raise ValueError(f"heatmaps have shape {heatmaps.shape}; expected ({classes}, rows, columns)")
    if values.shape != expected:
        raise ValueError(f"values have shape {values.shape}; expected {expected}")
    area = BoxMap.over(pc_range, (heatmaps.shape[1], heatmaps.shape[2]))
    found = [
        _decode_group(heatmaps[list(group)], values[g], group[0], CIRCLES[g], area, min_score)
        for g, group in enumerate(GROUPS)
    ]
    merged = Boxes(*(np.concatenate(column) for column in zip(*((*vars(b).values(),)[:6] for b in found))))
    assert merged.scores is not None
    return merged.take(np.argsort(-merged.scores, kind="stable")[:SAMPLE_BOXES])


def decode_batch(maps: Sequence[Tensor], model: ModelConfig) -> List[Boxes]:
    """Return ``decode`` of each sample of the model's output, a DetectionMaps, in the grid's frame."""
    assert model.detection is not None
    heatmaps, values = (tensor.detach().float().cpu().numpy() for tensor in maps)
    chosen = model.grid.pc_range, model.detection.min_score
    return [decode(heat, value, *chosen) for heat, value in zip(heatmaps, values)]


def _decode_group(
    heatmaps: np.ndarray, values: np.ndarray, first: int, circle: float, area: BoxMap, min_score: float
) -> Boxes:
    """Return the boxes of one group; its classes are numbered from ``first``."""
    scores = 1 / (1 + np.exp(-heatmaps.astype(np.float32).clip(-80, 80)))
    flat = np.flatnonzero((scores > min_score) & peaks(scores))
    order = np.argsort(-scores.flat[flat], kind="stable")[:CANDIDATES]
    labels, rows, columns = np.unravel_index(flat[order], scores.shape)
    at = values[:, rows, columns].T.astype(np.float64)
    x = area.low[0] + area.cell[0] * (columns + at[:, 0])
    y = area.low[1] + area.cell[1] * (rows + at[:, 1])
    boxes = Boxes(
        centres=np.stack([x, y, at[:, 2]], 1).astype(np.float32),
        sizes=np.exp(at[:, 3:6].clip(-_LARGEST, _LARGEST)).astype(np.float32),
        yaws=np.arctan2(at[:, 6], at[:, 7]).astype(np.float32),
        velocities=at[:, 8:10].astype(np.float32),
        labels=labels + first,
        scores=scores[labels, rows, columns],
    )
    near = np.flatnonzero((np.abs(boxes.centres[:, :2]) <= REACH).all(1))  # False for NaN
    kept = near[circle_nms(boxes.centres[near, :2], circle)]
    return boxes.take(kept[:GROUP_BOXES])


def peaks(scores: np.ndarray) -> np.ndarray:
    """Return which cells (C, Y, X) have no higher neighbour in their class."""
    padded = np.pad(scores, ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    rows = np.maximum(np.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    return scores >= np.maximum(np.maximum(rows[:, :, :-2], rows[:, :, 1:-1]), rows[:, :, 2:])


def circle_nms(centres: np.ndarray, circle: float) -> np.ndarray:
    """Return the indices of the centres (N, 2) kept, given in order of falling score.

    A centre is dropped if one kept before it lies within ``circle`` square metres.
    """
    kept: List[int] = []
    free = np.ones(len(centres), bool)
    for i in range(len(centres)):
        if free[i]:
            kept.append(i)
            free &= ((centres - centres[i]) ** 2).sum(1) > circle
    return np.array(kept, np.int64)
