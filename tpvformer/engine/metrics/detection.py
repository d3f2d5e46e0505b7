"""Compute nuScenes' detection scores (NDS, mAP, the errors of true positives) from matched boxes.

Rules and constants are those of detection_cvpr_2019: precision at 101 recalls; AP is the mean of what exceeds 0.1 from
recall 0.11 on, over 0.9; errors are running means over falling confidence, averaged from recall 0.11 to the largest
reached, 1 where that is below. A class without truth has AP 0 and errors 1. Unlike nuscenes-devkit, no boxes at all
give these values too, instead of an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from tpvformer.data.detection.boxes import DETECTION_CLASSES, Boxes
from tpvformer.engine.distributed.collectives import gather
from tpvformer.engine.metrics.bootstrap import LEVEL, SEED
from tpvformer.engine.metrics.detection_matching import DISTANCES, ERROR_ROW, ERRORS_AT, ROW, Matched, match_sample
from tpvformer.engine.metrics.named import RING_NAMES, RINGS

ERROR_NAMES = ("ate", "ase", "aoe", "ave", "aae")
DRAWS = 200  # of the bootstrap over scenes
MOST_ROWS = 1_000_000  # predictions; a larger set gets no interval, which would take minutes
_RECALLS = np.linspace(0, 1, 101)
_FIRST = 11  # index of the first recall that counts
_MIN_PRECISION = 0.1
_AP_SHARE = 5.0  # weight of mAP in NDS against one error
# classes that an error is not defined for
_WITHOUT = {
    "traffic_cone": ("aoe", "ave", "aae"),
    "barrier": ("ave", "aae"),
}
_SUMS = np.dtype([("sample", "<i8"), ("truths", "<i4", (len(DETECTION_CLASSES), len(RINGS) + 1))])


@dataclass(frozen=True)
class DetectionScores:
    """Hold the detection scores of a set; all fractions, not percent.

    ``ap`` (10, 4) is by class and distance of a match (0.5, 1, 2, 4 m); ``errors`` (10, 5) by class in the order of
    ERROR_NAMES, NaN where the class has no such error: metres, 1 - IoU, radians, m/s, 1 - accuracy. ``ring_map`` is the
    mAP over the classes with truth in a distance ring, with truth and predictions of that ring alone; None without
    truth. ``intervals`` holds 95 % bounds (bootstrap over scenes) of "nds", "map" and the means of ERROR_NAMES by their
    names with an m before; it is empty for fewer than two scenes and for very large sets.
    """

    nds: float
    mean_ap: float
    mate: float
    mase: float
    maoe: float
    mave: float
    maae: float
    ap: np.ndarray
    errors: np.ndarray
    truths: Tuple[int, ...]  # true boxes of each class that count
    ring_map: Mapping[str, Optional[float]]
    intervals: Mapping[str, Tuple[float, float]]
    samples: int

    @property
    def class_ap(self) -> Dict[str, float]:
        """Return the AP of each class, the mean over the four distances."""
        return dict(zip(DETECTION_CLASSES, self.ap.mean(1).tolist()))

    @property
    def mean_errors(self) -> Dict[str, float]:
        """Return the mean errors by name: mate, mase, maoe, mave, maae."""
        return {f"m{name}": getattr(self, f"m{name}") for name in ERROR_NAMES}


class DetectionCounts:
    """Collect matched boxes during an evaluation; ``scene_of`` gives the scene number of each sample of the set."""

    def __init__(self, scene_of: Sequence[int]) -> None:
        self._scene_of = np.asarray(scene_of, np.int64)
        self._rows: List[np.ndarray] = [np.zeros(0, ROW)]
        self._errors: List[np.ndarray] = [np.zeros(0, ERROR_ROW)]
        self._truths: List[np.ndarray] = [np.zeros(0, _SUMS)]

    def add(
        self,
        sample: int,
        truth: Boxes,
        predicted: Boxes,
        to_common: Optional[np.ndarray] = None,
        ego: Union[np.ndarray, Sequence[float]] = (0.0, 0.0),
    ) -> None:
        """Add the sample of that number; both kinds of boxes in one frame, the predicted ones with scores.

        ``to_common`` (4, 4) takes them to a frame whose z points up, where ``ego`` (x, y) is; None: they are there.
        """
        matrix = np.eye(4) if to_common is None else to_common
        found = match_sample(sample, truth, predicted, matrix, np.asarray(ego, np.float64), RINGS)
        self.add_matched(sample, found)

    def add_matched(self, sample: int, found: Matched) -> None:
        """Add what ``match_sample`` returned."""
        self._rows.append(found.rows)
        self._errors.append(found.errors)
        self._truths.append(np.array([(sample, found.truths)], _SUMS))

    def sum_over_processes(self) -> None:
        """Bring the rows of all processes together, in the order of the samples. Call it once, in every process."""
        self._rows, self._errors, self._truths = (
            [_gathered(np.concatenate(parts))] for parts in (self._rows, self._errors, self._truths)
        )

    @property
    def samples(self) -> int:
        """Return the number of samples added; after ``sum_over_processes``, those of all processes."""
        return sum(len(part) for part in self._truths)

    def result(self) -> DetectionScores:
        """Return the scores of all samples added."""
        rows, errors, truths = _ordered(self._rows), _ordered(self._errors), np.concatenate(self._truths)
        values = np.full((len(rows), 5), np.nan)
        values[(rows["hits"] >> ERRORS_AT & 1).astype(bool)] = errors["errors"]  # both are in the order of the samples
        order = np.lexsort((np.arange(len(rows)), rows["score"]))[::-1]
        return _score(rows[order], values[order], truths, self._scene_of)


def _ordered(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rows of all parts by sample, then by their index in it."""
    whole: np.ndarray = np.concatenate(parts)
    return whole[np.lexsort((whole["index"], whole["sample"]))]


def _gathered(mine: np.ndarray) -> np.ndarray:
    """Return the rows (n,) of a structured type of all processes, sorted by sample; 8 bytes travel as an int64."""
    width = mine.dtype.itemsize // 8
    assert width * 8 == mine.dtype.itemsize
    words = torch.from_numpy(np.ascontiguousarray(mine).view(np.int64).reshape(-1).copy())
    lengths = gather(torch.tensor([len(mine)])).flatten().tolist()
    padded = torch.nn.functional.pad(words, (0, max(lengths) * width - len(words)))
    parts = [row[: n * width].numpy().view(mine.dtype) for row, n in zip(gather(padded), lengths)]
    whole = np.concatenate(parts)
    return whole[np.argsort(whole["sample"], kind="stable")]


class _Ordered:
    """The rows of one class by falling score, with their weights."""

    def __init__(self, score: np.ndarray, hits: np.ndarray, weights: np.ndarray, positives: float) -> None:
        self.score, self.positives, self.weights = score.astype(np.float64), positives, weights
        self.seen = np.cumsum(weights)
        self.hits = [(hits >> k & 1).astype(bool) for k in range(len(DISTANCES))]

    def ap(self, k: int) -> float:
        """Return the AP of matches within DISTANCES[k]."""
        found = np.cumsum(self.weights * self.hits[k])
        if not self.positives or not len(found) or not found[-1]:
            return 0.0
        precision = np.interp(_RECALLS, found / self.positives, found / self.seen, right=0)[_FIRST:]
        return float(np.maximum(precision - _MIN_PRECISION, 0).mean() / (1 - _MIN_PRECISION))

    def errors(self, values: np.ndarray) -> List[float]:
        """Return the five errors; values (n, 5) of the rows, read where they match within 2 m."""
        hit = self.hits[ERRORS_AT]
        if not self.positives or not hit.any():
            return [1.0] * values.shape[1]
        recall = np.cumsum(self.weights * hit) / self.positives
        confidence = np.interp(_RECALLS, recall, self.score, right=0)
        reached = np.flatnonzero(confidence)
        last = reached[-1] if len(reached) else 0
        if last < _FIRST:
            return [1.0] * values.shape[1]
        scores, weights, found = self.score[hit], self.weights[hit], []
        for column in values[hit].T:
            mean = _running_mean(column, weights)
            at = np.interp(confidence[::-1], scores[::-1], mean[::-1])[::-1]
            found.append(float(at[_FIRST : last + 1].mean()))
        return found


def _running_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean (n,) of the values so far without the NaN; 0 before the first, 1 if all are NaN."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    count = np.cumsum(weights * known)
    total = np.cumsum(np.where(known, values, 0) * weights)
    return np.divide(total, count, out=np.zeros(len(values)), where=count != 0)


def _defined() -> np.ndarray:
    """Return which errors (10, 5) classes have."""
    return np.array([[error not in _WITHOUT.get(name, ()) for error in ERROR_NAMES] for name in DETECTION_CLASSES])


def _tables(
    rows: np.ndarray, values: np.ndarray, weights: np.ndarray, truths: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Return AP (10, 4) and errors (10, 5) of rows by falling score with weights above 0; truths (10,)."""
    ap, errors = np.zeros((len(DETECTION_CLASSES), len(DISTANCES))), np.ones((len(DETECTION_CLASSES), 5))
    for label in range(len(DETECTION_CLASSES)):
        own = np.flatnonzero(rows["label"] == label)
        ordered = _Ordered(rows["score"][own], rows["hits"][own], weights[own], float(truths[label]))
        ap[label] = [ordered.ap(k) for k in range(len(DISTANCES))]
        errors[label] = ordered.errors(values[own])
    errors[~_defined()] = np.nan
    return ap, errors


def _means(ap: np.ndarray, errors: np.ndarray) -> Tuple[float, ...]:
    """Return nds, map and the five mean errors."""
    mean_ap, means = float(ap.mean()), np.nanmean(errors, 0)
    nds = (_AP_SHARE * mean_ap + np.maximum(0, 1 - means).sum()) / (_AP_SHARE + len(means))
    return (float(nds), mean_ap, *means.tolist())


def _score(rows: np.ndarray, values: np.ndarray, truths: np.ndarray, scene_of: np.ndarray) -> DetectionScores:
    """Return the scores of rows (n,) ROW by falling score, their errors (n, 5), truths (samples,) _SUMS."""
    by_ring = truths["truths"].sum(0, dtype=np.int64)
    ap, errors = _tables(rows, values, np.ones(len(rows)), by_ring.sum(1))
    rings: Dict[str, Optional[float]] = {}
    for ring, name in enumerate(RING_NAMES):
        inside = rows[rows["ring"] == ring]
        found = []
        for label in np.flatnonzero(by_ring[:, ring]):
            own = inside[inside["label"] == label]
            count = float(by_ring[label, ring])
            ordered = _Ordered(own["score"], own["ring_hits"], np.ones(len(own)), count)
            found.append(np.mean([ordered.ap(k) for k in range(len(DISTANCES))]))
        rings[name] = float(np.mean(found)) if found else None
    return DetectionScores(
        *_means(ap, errors),
        ap,
        errors,
        tuple(by_ring.sum(1).tolist()),
        rings,
        _intervals(rows, values, truths, scene_of),
        len(truths),
    )


def _intervals(
    rows: np.ndarray, values: np.ndarray, truths: np.ndarray, scene_of: np.ndarray
) -> Dict[str, Tuple[float, float]]:
    """Return the bounds by metric: scenes are drawn with replacement, and every row counts as often as its scene."""
    _, scenes = np.unique(scene_of[truths["sample"]], return_inverse=True)
    many = int(scenes.max()) + 1 if len(scenes) else 0
    if many < 2 or len(rows) > MOST_ROWS:
        return {}
    place = np.zeros(len(scene_of), np.int64)
    place[truths["sample"]] = scenes
    of_row, per_scene = place[rows["sample"]], np.zeros((many, len(DETECTION_CLASSES)), np.int64)
    np.add.at(per_scene, scenes, truths["truths"].sum(2))
    generator, found = np.random.RandomState(SEED), []
    for _ in range(DRAWS):
        times = np.bincount(generator.randint(0, many, many), minlength=many).astype(np.float64)
        weights = times[of_row]
        drawn = weights > 0
        found.append(_means(*_tables(rows[drawn], values[drawn], weights[drawn], times @ per_scene)))
    bounds = np.quantile(np.array(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    names = ("nds", "map", *(f"m{name}" for name in ERROR_NAMES))
    return {name: (float(low), float(high)) for name, low, high in zip(names, *bounds)}
