"""What evaluation counts and what the counts mean. Each metric has one name and one definition; see ``named``."""

from tpvformer.engine.metrics.iou import Scores, confusion_matrix, percent, scores, table

__all__ = ["Scores", "confusion_matrix", "percent", "scores", "table"]
