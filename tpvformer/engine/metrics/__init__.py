"""Count predictions against labels and compute metrics. ``named`` defines each metric by name."""

from tpvformer.engine.metrics.iou import Scores, confusion_matrix, percent, scores, table

__all__ = ["Scores", "confusion_matrix", "percent", "scores", "table"]
