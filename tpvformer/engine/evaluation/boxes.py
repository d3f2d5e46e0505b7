"""Score the 3-D boxes of a model during an evaluation, where the model has that head and the set has boxes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Dict, List, Optional

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.attributes import attributes_of
from tpvformer.data.detection.boxes import Boxes
from tpvformer.data.detection.decode import decode_batch
from tpvformer.data.types import Batch
from tpvformer.engine.distributed.collectives import agree
from tpvformer.engine.metrics.collect import rows_by_scene
from tpvformer.engine.metrics.detection import DetectionCounts
from tpvformer.engine.metrics.detection_named import detection_metrics
from tpvformer.engine.metrics.named import Metric
from tpvformer.errors import DataError

if TYPE_CHECKING:
    from tpvformer.model import Prediction


def decoded(prediction: Prediction, config: Config) -> Optional[List[Boxes]]:
    """Return the predicted boxes of each sample, with attributes, in the grid's frame; None without such a head."""
    maps = getattr(prediction, "detection", None)
    if maps is None:
        return None
    return [with_attributes(boxes) for boxes in decode_batch(maps, config.model)]


def with_attributes(boxes: Boxes) -> Boxes:
    """Return the boxes with the attributes that their classes and speeds suggest."""
    return dataclasses.replace(boxes, attributes=attributes_of(boxes))


class BoxTally:
    """Accumulate the matched boxes of an evaluation; distances are measured in the global frame where it is known."""

    def __init__(self, config: Config, data: FrameDataset) -> None:
        rows = rows_by_scene(data.scenes, data.tokens)
        self._config, self._data = config, data
        self._index = {token: i for i, token in enumerate(data.tokens)}
        self._counts = DetectionCounts([rows[token] for token in data.tokens])
        self._unknown = 0  # samples without annotated boxes

    @classmethod
    def of(cls, config: Config, data: FrameDataset) -> Optional[BoxTally]:
        """Return a new tally; None for a model without the head of boxes."""
        return None if config.model.detection is None else cls(config, data)

    def add(self, prediction: Prediction, batch: Batch) -> None:
        """Match one batch. It waits for the device, as boxes are decoded on the CPU."""
        truths = batch.boxes or [None] * len(batch.tokens)
        found = None if all(truth is None for truth in truths) else decoded(prediction, self._config)
        for i, token in enumerate(batch.tokens):
            self.match(self._index[token], truths[i], Boxes.none() if found is None else found[i])

    def match(self, index: int, truth: Optional[Boxes], found: Boxes) -> None:
        """Match the boxes found in one sample with its true ones; both are in the grid's frame."""
        if truth is None:
            self._unknown += 1
        else:
            self._counts.add(index, truth, found, self._data.grid2global(index), self._data.ego_place(index))

    def metrics(self) -> Dict[str, Metric]:
        """Return the metrics over all processes, each of which must call it; none for a set without boxes.

        Raises DataError, in all processes, where only some of the samples have annotated boxes.
        """
        self._counts.sum_over_processes()
        (unknown,) = agree([self._unknown])
        if not self._counts.samples:
            return {}
        if unknown:
            raise DataError(
                f"{self._data.infos}: {unknown} of {len(self._data)} samples have no annotated boxes, so detection "
                "cannot be scored; make the infos again from tables with sample_annotation.json"
            )
        return detection_metrics(self._counts.result())
