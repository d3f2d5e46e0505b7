"""Compute intersection over union from an integer confusion matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from tpvformer.engine.metrics.occupancy import class_iou
from tpvformer.labels import EVALUATED


@dataclass(frozen=True)
class Scores:
    """Hold the IoU of the evaluated classes, in percent.

    ``iou`` is None for a class without ground truth. ``miou`` leaves such classes out (None if all are absent);
    ``miou_reference`` counts them as 100 %, the rule of the published figures.
    """

    classes: Tuple[int, ...]
    iou: Tuple[Optional[float], ...]
    seen: Tuple[int, ...]  # points of each class in the ground truth
    miou: Optional[float]
    miou_reference: float

    def as_dict(self, names: Sequence[str]) -> Dict[str, object]:
        """Return the scores as plain values for JSON."""
        iou = {names[c]: v for c, v in zip(self.classes, self.iou)}
        return {"miou": self.miou, "miou_reference": self.miou_reference, "iou": iou}


def confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int, ignore: int) -> Tensor:
    """Count pairs of (target row, predicted column); entries whose target is ``ignore`` are left out.

    Both tensors int64 of the same shape, values 0..num_classes-1; returns (K,K) int64 on their device, without waiting
    for it.
    """
    return grouped_confusion(predicted, target, torch.zeros_like(target), 1, num_classes, target != ignore)[0]


def grouped_confusion(
    predicted: Tensor, target: Tensor, group: Tensor, groups: int, num_classes: int, valid: Tensor
) -> Tensor:
    """Return a confusion matrix for each group, (groups,K,K) int64 [group, target, predicted], of ``valid`` entries.

    All int64 of one shape (``valid`` bool). Where ``valid`` is False the other values are not read.
    """
    size = groups * num_classes**2
    pairs = torch.where(valid, (group * num_classes + target) * num_classes + predicted, size).flatten()
    counts = torch.zeros(size + 1, dtype=torch.int64, device=target.device)  # the last collects invalid entries
    return counts.scatter_add_(0, pairs, torch.ones_like(pairs))[:size].view(groups, num_classes, num_classes)


def scores(confusion: Tensor, classes: Sequence[int] = EVALUATED) -> Scores:
    """Return the IoU of each class, correct / (ground truth + predicted - correct), from a (K,K) int64 matrix."""
    matrix = confusion.cpu()
    seen = matrix.sum(1)[list(classes)].tolist()
    iou = [None if math.isnan(value) else value for value in class_iou(matrix, classes).tolist()]
    present = [v for v in iou if v is not None]
    miou = math.fsum(present) / len(present) if present else None
    reference = math.fsum(100.0 if v is None else v for v in iou) / len(iou)
    return Scores(tuple(classes), tuple(iou), tuple(seen), miou, reference)


def table(metrics: Dict[str, Scores], names: Sequence[str]) -> List[str]:
    """Return a text table: the IoU of each class under each metric, then the means. ``names`` is indexed by class.

    All metrics must have been counted at the same points.
    """
    first = next(iter(metrics.values()))
    present = sum(v is not None for v in first.iou)
    rows = [(names[c], [m.iou[k] for m in metrics.values()]) for k, c in enumerate(first.classes)]
    notes = [f"({seen} points)" for seen in first.seen]
    rows.append((f"miou over the {present} classes present", [m.miou for m in metrics.values()]))
    rows.append(("miou_reference (absent classes count 100 %)", [m.miou_reference for m in metrics.values()]))
    lines = [("Validation per class IoU", "".join(f"{title:>9}" for title in metrics))]
    for (name, values), note in zip(rows, notes + ["", ""]):
        lines.append((name, "".join(f"{percent(v):>9}" for v in values) + f"   {note}"))
    return labelled(lines)


def labelled(rows: Sequence[Tuple[str, str]]) -> List[str]:
    """Return a line for each (label, text), "label : text", with the labels padded to the longest."""
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}} : {text}".rstrip() for label, text in rows]


def percent(value: Optional[float]) -> str:
    """Format a percentage with two decimals, or "n/a" for None."""
    return "n/a" if value is None else f"{value:.2f}%"
