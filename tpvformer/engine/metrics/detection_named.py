"""Give the detection scores their names among the metrics, and print them.

| name | what | unit | classes |
| --- | --- | --- | --- |
| nds | nuScenes detection score: (5 mAP + sum of max(0, 1 - error) over the five errors) / 10 | % | - |
| map | mean average precision over the ten classes and the four distances of a match | % | AP |
| map@0.5, @1, @2, @4 | the same at one distance, in metres | % | AP |
| mate, mase, maoe, mave, maae | mean errors of translation, scale, orientation, velocity, attribute | UNITS | error |
| moving_velocity_error | mean velocity error of matches within 2 m whose truth is faster than 0.2 m/s | m/s | error |

Only map is given by distance ring; detection.DetectionScores says how.
"""

from __future__ import annotations

import math
from typing import Dict, List, Mapping, Optional, Tuple

from tpvformer.data.detection.boxes import DETECTION_CLASSES
from tpvformer.engine.metrics.detection import DetectionScores
from tpvformer.engine.metrics.detection_curves import ERROR_NAMES
from tpvformer.engine.metrics.detection_matching import DISTANCES
from tpvformer.engine.metrics.iou import labelled, percent
from tpvformer.engine.metrics.named import RING_NAMES, Metric, with_unit

UNITS = dict(zip(ERROR_NAMES, ("m", "1 - IoU", "rad", "m/s", "1 - accuracy")))


def detection_metrics(scores: DetectionScores) -> Dict[str, Metric]:
    """Return the named metrics of detection; their values are None if the truth has no box that counts."""
    some = sum(scores.truths) > 0

    def bounds(name: str, factor: float = 1.0) -> Optional[Tuple[float, float]]:
        found = scores.intervals.get(name) if some else None
        return None if found is None else (factor * found[0], factor * found[1])

    def of_classes(values: List[float], factor: float = 1.0) -> Dict[str, Optional[float]]:
        pairs = zip(DETECTION_CLASSES, values, scores.truths)
        return {name: factor * value if count and not math.isnan(value) else None for name, value, count in pairs}

    def share(value: float) -> Optional[float]:
        return 100 * value if some else None

    rings = {name: None if value is None else 100 * value for name, value in scores.ring_map.items()}
    found = {
        "nds": Metric(share(scores.nds), bounds("nds", 100), {}, {}, of_class="ap"),
        "map": Metric(
            share(scores.mean_ap), bounds("map", 100), of_classes(scores.ap.mean(1).tolist(), 100), rings, of_class="ap"
        ),
    }
    for k, distance in enumerate(DISTANCES):
        column = scores.ap[:, k]
        found[f"map@{distance:g}"] = Metric(
            share(float(column.mean())), None, of_classes(column.tolist(), 100), {}, of_class="ap"
        )
    for k, error in enumerate(ERROR_NAMES):
        name = f"m{error}"
        value = scores.mean_errors[name] if some else None
        classes = of_classes(scores.errors[:, k].tolist())
        found[name] = Metric(value, bounds(name), classes, {}, unit=UNITS[error], of_class=error)
    moving = scores.moving
    velocities = dict(zip(DETECTION_CLASSES, moving.of_class))
    found["moving_velocity_error"] = Metric(
        moving.error, moving.interval, velocities, {}, unit=UNITS["ave"], of_class="ave"
    )
    return found


def detection_table(metrics: Mapping[str, Metric], scenes: int) -> List[str]:
    """Return a text table of the detection metrics among ``metrics``, then AP and errors of each class."""
    if "nds" not in metrics:
        return []
    own = {name: m for name, m in metrics.items() if m.of_class not in ("iou", "flicker")}
    head = f"{'value':>18}  {'95 % over ' + str(scenes) + ' scenes':>20}" + "".join(
        f"{ring:>10}" for ring in RING_NAMES
    )
    rows = [("boxes", head)]
    for name, metric in own.items():
        digits = 2 if metric.unit == "%" else 3
        low_high = "n/a"
        if metric.interval is not None:
            low_high = f"{metric.interval[0]:.{digits}f} to {metric.interval[1]:.{digits}f}"
        rings = "".join(f"{percent(metric.rings[ring]):>10}" for ring in RING_NAMES) if metric.rings else ""
        rows.append((name, f"{metric.text:>18}  {low_high:>20}{rings}"))
    lines = labelled(rows)
    rows = [("class", f"{'ap':>9}" + "".join(f"{error:>9}" for error in ERROR_NAMES))]
    for label in DETECTION_CLASSES:
        errors = [own[f"m{error}"].classes[label] for error in ERROR_NAMES]
        shown = "".join(f"{'n/a' if value is None else f'{value:.3f}':>9}" for value in errors)
        rows.append((label, f"{with_unit(own['map'].classes[label], '%'):>9}{shown}"))
    return lines + labelled(rows)
