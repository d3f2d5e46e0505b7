"""Define every metric by name: the counts, the classes in its mean, and the rule for absent classes.

| name | counted | classes | absent classes |
| --- | --- | --- | --- |
| miou_points | labelled lidar points; the class predicted at the point | 1..16 | left out |
| miou_small | the same points | bicycle, pedestrian, traffic cone | left out |
| miou_voxels | the same points; the class of the voxel that holds them | 1..16 | left out |
| miou_points_reference, miou_voxels_reference | as above | 1..16 | 100 %, the published code's rule |
| sc_iou | all voxels of the dense grid: occupied against empty | - | - |
| ssc_miou | all voxels of the dense grid | 1..16 | left out |
| occ3d_miou | voxels that a camera observes (mask_camera) | 0..16, "others" included | left out |
| occ3d_miou_no_other | voxels that a camera observes | 1..16 | left out |
| ray_iou@1, @2, @4 | lidar-like rays, correct within 1, 2, 4 m | those of the labels | left out |
| ray_iou | mean of the three | those of the labels | left out |

The metrics of 3-D boxes (nds, map, ...) are in detection_named.py, that of label flicker (flicker) in flicker.py.

SemanticKITTI has sc_iou, ssc_miou over its classes 1..19, and sc_precision and sc_recall of "occupied".

A label map of one's own has the same metrics over its evaluated classes; miou_small over those of the three names.

Voxels labelled ``data.ignore_label`` are not counted. The classes of RayIoU are 0..16 for Occ3D labels, and 1..16 for
labels whose ignore label is 0 (SurroundOcc). Sources: SurroundOcc (arXiv:2303.09551) for sc_iou and ssc_miou, Occ3D
(arXiv:2304.14365), SparseOcc (arXiv:2312.17118) for RayIoU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor

from tpvformer.engine.metrics.bootstrap import interval
from tpvformer.engine.metrics.iou import labelled, percent
from tpvformer.engine.metrics.occupancy import (
    class_iou,
    mean_of_present,
    mean_reference,
    ratio,
    sc_iou,
    sc_precision,
    sc_recall,
)
from tpvformer.engine.metrics.rays import THRESHOLDS
from tpvformer.labels import CLASS_NAMES, SMALL, Classes

RINGS = (10.0, 20.0, 30.0, 40.0)  # metres; borders of the distance rings
RING_NAMES = tuple(f"{a:g}-{b:g} m" for a, b in zip((0.0, *RINGS[:-1]), RINGS)) + (f"from {RINGS[-1]:g} m",)


@dataclass(frozen=True)
class Metric:
    """Hold one metric in ``unit`` with its interval, classes and rings; None where nothing can be scored."""

    value: Optional[float]
    interval: Optional[Tuple[float, float]]  # 95 %, bootstrap over scenes; None for fewer than two
    classes: Mapping[str, Optional[float]]  # IoU by name, or what ``of_class`` says
    rings: Mapping[str, Optional[float]]  # the same metric by distance ring
    unit: str = "%"
    of_class: str = "iou"  # what ``classes`` holds

    @property
    def text(self) -> str:
        """Return the value with its unit."""
        return with_unit(self.value, self.unit)

    def as_dict(self) -> Dict[str, object]:
        """Return plain values for JSON; the unit is given unless it is percent."""
        bounds = None if self.interval is None else list(self.interval)
        unit = {} if self.unit == "%" else {"unit": self.unit}
        classes = {self.of_class: dict(self.classes)}
        return {"value": self.value, "interval": bounds, **classes, "rings": dict(self.rings), **unit}


@dataclass(frozen=True)
class MetricSpec:
    """Define a metric: ``iou`` maps counts (..., *) to (..., C) for the C ``classes``, ``mean`` maps those to (...)."""

    source: str  # points, voxels, grid, camera or rays: see collect.MetricCounts
    iou: Callable[[Tensor], Tensor]
    classes: Tuple[str, ...]
    mean: Callable[[Tensor], Tensor] = mean_of_present


def definitions(classes: Classes, sources: Sequence[str], ignore: int) -> Dict[str, MetricSpec]:
    """Return the metrics that can be computed from the counts ``sources``."""
    names, evaluated = classes.names, classes.evaluated
    every = (*classes.ignored, *evaluated)
    small = tuple(names.index(CLASS_NAMES[c]) for c in SMALL if CLASS_NAMES[c] in names)
    taught = tuple(c for c in every if c != ignore)

    def of(source: str, classes: Sequence[int], mean: Callable[[Tensor], Tensor] = mean_of_present) -> MetricSpec:
        return MetricSpec(source, partial(class_iou, classes=classes), tuple(names[c] for c in classes), mean)

    found = {
        "miou_points": of("points", evaluated),
        "miou_small": of("points", small),
        "miou_points_reference": of("points", evaluated, mean_reference),
        "miou_voxels": of("voxels", evaluated),
        "miou_voxels_reference": of("voxels", evaluated, mean_reference),
        "sc_iou": MetricSpec("grid", lambda counts: sc_iou(counts, classes.empty)[..., None], ("occupied",)),
        "ssc_miou": of("grid", evaluated),
        "occ3d_miou": of("camera", every),
        "occ3d_miou_no_other": of("camera", evaluated),
    }
    labels = tuple(names[c] for c in taught)
    for k, limit in enumerate(THRESHOLDS):
        found[f"ray_iou@{limit:g}"] = MetricSpec("rays", partial(_ray_iou, classes=taught, thresholds=(k,)), labels)
    everywhere = tuple(range(len(THRESHOLDS)))
    found["ray_iou"] = MetricSpec("rays", partial(_ray_iou, classes=taught, thresholds=everywhere), labels)
    return {
        name: definition for name, definition in found.items() if definition.source in sources and definition.classes
    }


def kitti_definitions(classes: Classes) -> Dict[str, MetricSpec]:
    """Return the metrics of SemanticKITTI's scene completion, all over the dense grid."""

    def completion(score: Callable[[Tensor, int], Tensor]) -> MetricSpec:
        return MetricSpec("grid", lambda counts: score(counts, classes.empty)[..., None], ("occupied",))

    names = tuple(classes.names[c] for c in classes.evaluated)
    return {
        "sc_iou": completion(sc_iou),
        "sc_precision": completion(sc_precision),
        "sc_recall": completion(sc_recall),
        "ssc_miou": MetricSpec("grid", partial(class_iou, classes=classes.evaluated), names),
    }


def _ray_iou(counts: Tensor, classes: Sequence[int], thresholds: Sequence[int]) -> Tensor:
    """Return the mean IoU over the chosen thresholds: counts (..., thresholds + 2, K) to (..., C)."""
    right, seen, guessed = counts[..., list(thresholds), :], counts[..., -2, :], counts[..., -1, :]
    return ratio(right, seen[..., None, :], guessed[..., None, :]).mean(-2)[..., list(classes)]


def measure(definition: MetricSpec, counts: Tensor) -> Metric:
    """Compute one metric from its counts (scenes, rings, ...) int64 on the CPU."""
    total = counts.sum((0, 1))
    iou = definition.iou(total)

    def score(sums: Tensor) -> Tensor:
        return definition.mean(definition.iou(sums))

    def by_ring() -> List[Optional[float]]:
        scored = counts.sum(0).flatten(1).any(1)  # an empty ring has no score, whatever the rule for absent classes
        return [_plain(value) if some else None for value, some in zip(score(counts.sum(0)), scored)]

    some = bool(total.any())
    return Metric(
        value=_plain(score(total)) if some else None,
        interval=interval(counts.sum(1), score) if some else None,
        classes={name: _plain(value) for name, value in zip(definition.classes, iou)},
        rings=dict(zip(RING_NAMES, by_ring())),
    )


def with_unit(value: Optional[float], unit: str) -> str:
    """Format a value: percentages with two decimals, others with three and their unit; "n/a" for None."""
    return percent(value) if unit == "%" or value is None else f"{value:.3f} {unit}"


def _plain(value: Tensor) -> Optional[float]:
    return None if bool(torch.isnan(value)) else float(value)


def named_table(metrics: Mapping[str, Metric], scenes: int) -> List[str]:
    """Return a text table: every metric with its interval and rings, then the class IoU of the dense grid's metrics."""
    if not metrics:
        return []
    head = f"{'value':>8}  {'95 % over ' + str(scenes) + ' scenes':>20}" + "".join(f"{ring:>10}" for ring in RING_NAMES)
    rows = [("metric", head)]
    for name, metric in metrics.items():
        bounds = "n/a" if metric.interval is None else f"{metric.interval[0]:.2f} to {metric.interval[1]:.2f}"
        rings = "".join(f"{percent(value):>10}" for value in metric.rings.values())
        rows.append((name, f"{percent(metric.value):>8}  {bounds:>20}{rings}"))
    lines = labelled(rows)
    shown = {name: m for name, m in metrics.items() if name in ("ssc_miou", "occ3d_miou", "ray_iou")}
    if shown:
        classes = max((list(m.classes) for m in shown.values()), key=len)  # the others are a subset, in this order
        rows = [("IoU of a class", "".join(f"{name:>12}" for name in shown))]
        for label in classes:
            rows.append((label, "".join(f"{percent(m.classes.get(label)):>12}" for m in shown.values())))
        lines += labelled(rows)
    return lines
