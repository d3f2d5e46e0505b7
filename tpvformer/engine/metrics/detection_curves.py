"""Compute AP and the errors of true positives from matched boxes in order of falling score, by class.

Precision is taken at 101 recalls; AP is the mean of what exceeds 0.1 from recall 0.11 on, over 0.9. Errors are running
means over falling score, averaged from recall 0.11 to the largest reached, 1 where that is below. A class without truth
has AP 0 and errors 1.
"""

from __future__ import annotations

from typing import List, Sequence, Tuple

import numpy as np

from tpvformer.data.detection.boxes import DETECTION_CLASSES
from tpvformer.engine.metrics.detection_matching import DISTANCES, ERRORS_AT

ERROR_NAMES = ("ate", "ase", "aoe", "ave", "aae")
_RECALLS = np.linspace(0, 1, 101)
_FIRST = 11  # index of the first recall that counts
_MIN_PRECISION = 0.1
_AP_SHARE = 5.0  # weight of mAP in NDS against one error
# classes that an error is not defined for
_WITHOUT = {
    "traffic_cone": ("aoe", "ave", "aae"),
    "barrier": ("ave", "aae"),
}
DEFINED = np.array([[error not in _WITHOUT.get(name, ()) for error in ERROR_NAMES] for name in DETECTION_CLASSES])


class _Class:
    """The rows of one class by falling score; what depends on weights is computed from few of them.

    Recall rises at hits alone, so the curves over recall are fixed by the hits, the rows before them and the last row.
    """

    def __init__(self, score: np.ndarray, hits: np.ndarray, values: np.ndarray) -> None:
        self._score, self._found, self._points = score.astype(np.float64), [], []
        for k in range(len(DISTANCES)):
            found = np.flatnonzero(hits >> k & 1)
            self._found.append(found)
            self._points.append(np.append(np.stack([found - 1, found], 1).ravel(), len(hits) - 1))
        self._values = values[self._found[ERRORS_AT]]

    def ap(self, seen: np.ndarray, weights: np.ndarray, positives: float) -> List[float]:
        """Return the AP at each of DISTANCES; weights (n,) of the rows, seen (n,) their running sum."""
        curves = [self._curve(k, seen, weights) for k in range(len(DISTANCES))]
        return [
            _average_precision(found / positives, found / seen[rows]) if len(rows) else 0.0 for rows, found in curves
        ]

    def errors(self, seen: np.ndarray, weights: np.ndarray, positives: float) -> List[float]:
        """Return the five errors."""
        rows, found = self._curve(ERRORS_AT, seen, weights)
        if not len(rows):
            return [1.0] * len(ERROR_NAMES)
        confidence = np.interp(_RECALLS, found / positives, self._score[rows], right=0)
        reached = np.flatnonzero(confidence)
        last = reached[-1] if len(reached) else 0
        if last < _FIRST:
            return [1.0] * len(ERROR_NAMES)
        hits = self._found[ERRORS_AT]
        drawn = weights[hits] > 0
        scores, means = self._score[hits][drawn][::-1], []
        for column in self._values[drawn].T:
            mean = _running_mean(column, weights[hits][drawn])
            at = np.interp(confidence[::-1], scores, mean[::-1])[::-1]
            means.append(float(at[_FIRST : last + 1].mean()))
        return means

    def _curve(self, k: int, seen: np.ndarray, weights: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Return the rows that fix the curves, and the weight of the hits up to each; none without a hit."""
        of_hits = weights[self._found[k]]
        total = np.cumsum(of_hits)
        if not len(total) or not total[-1]:
            return np.zeros(0, np.int64), total[:0]
        rows, found = self._points[k], np.append(np.stack([total - of_hits, total], 1).ravel(), total[-1])
        known = (rows >= 0) & (seen[rows] > 0)
        return rows[known], found[known]


def _average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    at = np.interp(_RECALLS, recall, precision, right=0)[_FIRST:]
    return float(np.maximum(at - _MIN_PRECISION, 0).mean() / (1 - _MIN_PRECISION))


def _running_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean (n,) of the values so far without the NaN; 0 before the first, 1 if all are NaN."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    count = np.cumsum(weights * known)
    total = np.cumsum(np.where(known, values, 0) * weights)
    return np.divide(total, count, out=np.zeros(len(values)), where=count != 0)


class RowsByClass:
    """All rows by falling score, divided by class."""

    def __init__(self, rows: np.ndarray, values: np.ndarray, hits: str = "hits") -> None:
        self.of_class = [np.flatnonzero(rows["label"] == label) for label in range(len(DETECTION_CLASSES))]
        self._classes = [_Class(rows["score"][own], rows[hits][own], values[own]) for own in self.of_class]

    def tables(self, weights: Sequence[np.ndarray], truths: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Return AP (10, 4) and errors (10, 5); weights (n,) of each class's rows, truths (10,)."""
        ap = np.zeros((len(DETECTION_CLASSES), len(DISTANCES)))
        errors = np.ones((len(DETECTION_CLASSES), len(ERROR_NAMES)))
        for label, (own, weight) in enumerate(zip(self._classes, weights)):
            if truths[label]:
                seen = np.cumsum(weight)
                ap[label] = own.ap(seen, weight, float(truths[label]))
                errors[label] = own.errors(seen, weight, float(truths[label]))
        errors[~DEFINED] = np.nan
        return ap, errors

    def unweighted(self, truths: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Return the same where every row counts once."""
        return self.tables([np.ones(len(own)) for own in self.of_class], truths)


def means(ap: np.ndarray, errors: np.ndarray) -> Tuple[float, ...]:
    """Return nds, map and the five mean errors."""
    mean_ap, means = float(ap.mean()), np.nanmean(errors, 0)
    nds = (_AP_SHARE * mean_ap + np.maximum(0, 1 - means).sum()) / (_AP_SHARE + len(means))
    return (float(nds), mean_ap, *means.tolist())
