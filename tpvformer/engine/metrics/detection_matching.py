"""Match the predicted boxes of one sample with its truth, as nuScenes' detection task does (detection_cvpr_2019).

Objects beyond the range of their class, truth without a lidar or radar point, and cycles in a bicycle rack are left
out. Then predictions take, by falling score (equal scores: the later one first), the nearest free truth of their class
within 0.5, 1, 2 or 4 m, measured between the centres from above. Samples do not depend on each other, so each process
matches its own, and only the rows returned here are exchanged.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple

import numpy as np

from tpvformer.data.detection.boxes import BICYCLE_RACK, DETECTION_CLASSES, NO_ATTRIBUTE, Boxes

# metres from the ego, by class
RANGES: Tuple[float, ...] = (50.0, 50.0, 50.0, 50.0, 50.0, 30.0, 40.0, 40.0, 40.0, 30.0)
DISTANCES = (0.5, 1.0, 2.0, 4.0)  # metres between the centres of a match
ERRORS_AT = 2  # index of the distance whose matches give the errors
BARRIER = DETECTION_CLASSES.index("barrier")
CYCLES = (DETECTION_CLASSES.index("motorcycle"), DETECTION_CLASSES.index("bicycle"))

# one predicted box; bit k of ``hits`` is set if it matches at DISTANCES[k], of ``ring_hits`` if it does so where only
# the objects of its distance ring are compared
ROW = np.dtype(
    [
        ("score", "<f4"),
        ("sample", "<i4"),
        ("index", "<u4"),
        ("label", "u1"),
        ("ring", "u1"),
        ("hits", "u1"),
        ("ring_hits", "u1"),
    ]
)
# errors of a box that matches within 2 m: metres, 1 - IoU, radians, m/s, 1 - accuracy; NaN where the truth is unknown;
# the speed of the true box, m/s
ERROR_ROW = np.dtype([("sample", "<i4"), ("index", "<u4"), ("errors", "<f8", (5,)), ("speed", "<f8")])


class Matched(NamedTuple):
    """Hold what the scores need of one sample."""

    rows: np.ndarray  # (P,) ROW, in the order of the predictions
    errors: np.ndarray  # (H,) ERROR_ROW: one for each row that matches within 2 m, in the same order
    truths: np.ndarray  # (classes, rings) int32: number of true boxes


class _Placed(NamedTuple):
    """Boxes in the common frame, in float64, with what of them was kept."""

    centres: np.ndarray  # (N, 3)
    yaws: np.ndarray  # (N,)
    velocities: np.ndarray  # (N, 2)
    distances: np.ndarray  # (N,) from the ego, seen from above
    boxes: Boxes

    def take(self, index: np.ndarray) -> _Placed:
        """Return the boxes at ``index``: integers or a mask."""
        numbers = self.centres[index], self.yaws[index], self.velocities[index], self.distances[index]
        return _Placed(*numbers, self.boxes.take(index))


def match_sample(
    sample: int, truth: Boxes, predicted: Boxes, to_common: np.ndarray, ego: np.ndarray, rings: Sequence[float]
) -> Matched:
    """Match the boxes of sample number ``sample``; ``predicted`` needs scores.

    ``to_common`` (4, 4) float64 takes both into the frame in which distances are measured, ``ego`` (2,) is the
    vehicle's place there. ``rings`` are the borders of the distance rings.
    """
    assert predicted.scores is not None
    racks = _place(truth.take(truth.labels == BICYCLE_RACK), to_common, ego)
    true, guess = (_place(boxes, to_common, ego) for boxes in (truth, predicted))
    keep = _in_range(true) & ~_in_rack(true, racks)
    if truth.points is not None:
        keep &= truth.points > 0
    true, chosen = true.take(keep), np.flatnonzero(_in_range(guess) & ~_in_rack(guess, racks))
    guess = guess.take(chosen)
    true_rings, guess_rings = (np.searchsorted(rings, each.distances, side="right") for each in (true, guess))
    truths = np.zeros((len(DETECTION_CLASSES), len(rings) + 1), np.int32)
    np.add.at(truths, (true.boxes.labels, true_rings), 1)

    rows: np.ndarray = np.zeros(len(chosen), ROW)
    partner = np.full(len(chosen), -1)
    rows["sample"], rows["index"], rows["label"], rows["ring"] = sample, chosen, guess.boxes.labels, guess_rings
    rows["score"] = guess.boxes.scores
    for label in np.unique(guess.boxes.labels):
        of_class = np.flatnonzero(guess.boxes.labels == label)
        ours = of_class[np.lexsort((of_class, rows["score"][of_class]))[::-1]]
        theirs = np.flatnonzero(true.boxes.labels == label)
        apart = guess.centres[ours, None, :2] - true.centres[None, theirs, :2]
        distance = np.sqrt((apart**2).sum(2))
        shared = guess_rings[ours, None] == true_rings[None, theirs]
        for k, limit in enumerate(DISTANCES):
            found = _greedy(distance, limit)
            rows["hits"][ours] |= ((found >= 0) << k).astype(np.uint8)
            if k == ERRORS_AT:
                partner[ours[found >= 0]] = theirs[found[found >= 0]]
            if not shared[distance < limit].all():
                found = _greedy(np.where(shared, distance, np.inf), limit)
            rows["ring_hits"][ours] |= ((found >= 0) << k).astype(np.uint8)
    matched = np.flatnonzero(partner >= 0)
    errors: np.ndarray = np.zeros(len(matched), ERROR_ROW)
    errors["sample"], errors["index"] = sample, chosen[matched]
    errors["errors"] = _errors(true.take(partner[matched]), guess.take(matched))
    errors["speed"] = np.sqrt((true.velocities[partner[matched]] ** 2).sum(1))
    return Matched(rows, errors, truths)


def placed(boxes: Boxes, matrix: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centres (N, 3), yaws (N,) and velocities (N, 2) in the frame that ``matrix`` (4, 4) leads to, in float64.

    Headings and velocities are taken to be level there, as nuScenes' are in the global frame: this undoes, up to
    rounding, what Boxes.transformed leaves of them in a tilted lidar's frame. Float32 is too coarse for kilometres.
    """
    rotation = matrix[:3, :3]
    centres = boxes.centres.astype(np.float64) @ rotation.T + matrix[:3, 3]
    level = rotation[:2, :2] - np.outer(rotation[:2, 2], rotation[2, :2]) / rotation[2, 2]  # z such that none is left
    yaws = boxes.yaws.astype(np.float64)
    heading = np.stack([np.cos(yaws), np.sin(yaws)], 1) @ level.T
    velocities = boxes.velocities.astype(np.float64) @ level.T
    return centres, np.arctan2(heading[:, 1], heading[:, 0]), velocities


def _place(boxes: Boxes, matrix: np.ndarray, ego: np.ndarray) -> _Placed:
    centres, yaws, velocities = placed(boxes, matrix)
    return _Placed(centres, yaws, velocities, np.sqrt(((centres[:, :2] - ego) ** 2).sum(1)), boxes)


def _in_range(placed: _Placed) -> np.ndarray:
    """Return which boxes (N,) are of a detected class and within its range."""
    labels = placed.boxes.labels
    known = (labels >= 0) & (labels < len(RANGES))
    return known & (placed.distances < np.array(RANGES)[np.where(known, labels, 0)])


def _in_rack(placed: _Placed, racks: _Placed) -> np.ndarray:
    """Return which boxes (N,) are cycles whose centre is inside a bicycle rack, borders included."""
    apart = placed.centres[:, None] - racks.centres[None]
    cos, sin = np.cos(racks.yaws), np.sin(racks.yaws)
    along = apart[..., 0] * cos + apart[..., 1] * sin
    across = apart[..., 1] * cos - apart[..., 0] * sin
    inside = np.abs(np.stack([along, across, apart[..., 2]], -1)) <= racks.boxes.sizes.astype(np.float64) / 2
    return np.isin(placed.boxes.labels, CYCLES) & inside.all(-1).any(-1)


def _greedy(distance: np.ndarray, limit: float) -> np.ndarray:
    """Return the truth (P,) that each prediction takes, -1 for none; distance (P, T), the first row chooses first."""
    found = np.full(len(distance), -1)
    close = distance < limit
    free = np.ones(distance.shape[1], bool)
    for row in np.flatnonzero(close.any(1)):
        left = np.where(close[row] & free, distance[row], np.inf)
        nearest = left.argmin()
        if left[nearest] < limit:
            found[row], free[nearest] = nearest, False
    return found


def _errors(true: _Placed, guess: _Placed) -> np.ndarray:
    """Return the errors (H, 5) of H pairs in the order of ERROR_ROW."""
    flat = true.centres[:, :2] - guess.centres[:, :2]
    sizes, others = (each.boxes.sizes.astype(np.float64) for each in (true, guess))
    shared = np.minimum(sizes, others).prod(1)
    overlap = shared / (sizes.prod(1) + others.prod(1) - shared)
    period = np.where(true.boxes.labels == BARRIER, np.pi, 2 * np.pi)
    turn = np.abs((true.yaws - guess.yaws + period / 2) % period - period / 2)
    speed = np.sqrt(((true.velocities - guess.velocities) ** 2).sum(1))
    none = np.full(len(flat), NO_ATTRIBUTE)
    real = none if true.boxes.attributes is None else true.boxes.attributes
    said = none if guess.boxes.attributes is None else guess.boxes.attributes
    attribute = np.where(real == NO_ATTRIBUTE, np.nan, real != said)
    return np.stack([np.sqrt((flat**2).sum(1)), 1 - overlap, turn, speed, attribute], 1)
