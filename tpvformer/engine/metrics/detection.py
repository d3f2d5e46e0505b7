"""Compute nuScenes' detection scores (NDS, mAP, the errors of true positives) from matched boxes.

Rules and constants are those of detection_cvpr_2019; detection_matching.py and detection_curves.py have them. Unlike
nuscenes-devkit, no boxes at all give AP 0 and errors 1, as a class without truth does, instead of an exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from tpvformer.data.detection.boxes import DETECTION_CLASSES, Boxes
from tpvformer.engine.distributed.collectives import gather
from tpvformer.engine.metrics.bootstrap import LEVEL, SEED
from tpvformer.engine.metrics.detection_curves import ERROR_NAMES, RowsByClass, means
from tpvformer.engine.metrics.detection_matching import ERROR_ROW, ERRORS_AT, ROW, Matched, match_sample
from tpvformer.engine.metrics.detection_moving import MovingVelocity, moving_velocity
from tpvformer.engine.metrics.named import RING_NAMES, RINGS

DRAWS = 200  # of the bootstrap over scenes
MOST_ROWS = 5_000_000  # predictions; a larger set gets no interval, which would take minutes
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
    moving: MovingVelocity  # velocity error of the objects that move

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
        values, matched = np.full((len(rows), 5), np.nan), (rows["hits"] >> ERRORS_AT & 1).astype(bool)
        values[matched] = errors["errors"]  # both are in the order of the samples
        order = np.lexsort((np.arange(len(rows)), rows["score"]))[::-1]
        present = np.unique(self._scene_of[truths["sample"]])
        scenes = np.searchsorted(present, self._scene_of[errors["sample"]])
        moving = moving_velocity(rows["label"][matched], errors["errors"], errors["speed"], scenes, len(present))
        return _score(rows[order], values[order], truths, self._scene_of, moving)


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


def _score(
    rows: np.ndarray, values: np.ndarray, truths: np.ndarray, scene_of: np.ndarray, moving: MovingVelocity
) -> DetectionScores:
    """Return the scores of rows (n,) ROW by falling score, their errors (n, 5), truths (samples,) _SUMS."""
    by_ring = truths["truths"].sum(0, dtype=np.int64)
    whole = RowsByClass(rows, values)
    ap, errors = whole.unweighted(by_ring.sum(1))
    rings: Dict[str, Optional[float]] = {}
    for ring, name in enumerate(RING_NAMES):
        inside, counts = rows["ring"] == ring, by_ring[:, ring]
        of_ring, _ = RowsByClass(rows[inside], values[inside], "ring_hits").unweighted(counts)
        rings[name] = float(of_ring[counts > 0].mean()) if counts.any() else None
    return DetectionScores(
        *means(ap, errors),
        ap,
        errors,
        tuple(by_ring.sum(1).tolist()),
        rings,
        _intervals(rows, whole, truths, scene_of),
        len(truths),
        moving,
    )


def _intervals(
    rows: np.ndarray, divided: RowsByClass, truths: np.ndarray, scene_of: np.ndarray
) -> Dict[str, Tuple[float, float]]:
    """Return the bounds by metric: scenes are drawn with replacement, and every row counts as often as its scene."""
    _, scenes = np.unique(scene_of[truths["sample"]], return_inverse=True)
    many = int(scenes.max()) + 1 if len(scenes) else 0
    if many < 2 or len(rows) > MOST_ROWS:
        return {}
    place, per_scene = np.zeros(len(scene_of), np.int64), np.zeros((many, len(DETECTION_CLASSES)), np.int64)
    place[truths["sample"]] = scenes
    np.add.at(per_scene, scenes, truths["truths"].sum(2))
    of_rows = [place[rows["sample"][own]] for own in divided.of_class]
    generator, found = np.random.RandomState(SEED), []
    for _ in range(DRAWS):
        times = np.bincount(generator.randint(0, many, many), minlength=many).astype(np.float64)
        found.append(means(*divided.tables([times[scene] for scene in of_rows], times @ per_scene)))
    bounds = np.quantile(np.array(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    names = ("nds", "map", *(f"m{name}" for name in ERROR_NAMES))
    return {name: (float(low), float(high)) for name, low, high in zip(names, *bounds)}
