"""The boxes of a model with a detection head; None of a model without one."""

from __future__ import annotations

from typing import Any, List, Optional

from torch import Tensor, nn

from tpvformer.config import Config
from tpvformer.data.detection.boxes import Boxes


def detection_maps(model: nn.Module, features: Tensor) -> Optional[Any]:
    """Return the head's maps (heatmaps, values) from plane features (B,Q,C); None of a model without a head."""
    boxes = getattr(model, "boxes", None)
    return None if boxes is None else boxes(features)


def decoded(maps: Optional[Any], config: Config) -> List[Optional[Boxes]]:
    """Return the boxes of each sample with scores, in the grid's frame; [None] without maps."""
    if maps is None:
        return [None]
    from tpvformer.data.detection.decode import decode_batch  # ty: ignore[import-not-found]

    return list(decode_batch(maps, config.model))
