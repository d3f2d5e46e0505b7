"""Count predictions during an evaluation: int64 on the device, one slice a scene, summed over processes at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Mapping, Sequence

import torch
from torch import Tensor

from tpvformer.config import Config, GridConfig
from tpvformer.data.nuscenes.occupancy import HAS_RAYS
from tpvformer.data.types import CAMERA_BIT
from tpvformer.engine.distributed.collectives import all_reduce_sum
from tpvformer.engine.losses import flat_index
from tpvformer.engine.metrics.iou import grouped_confusion
from tpvformer.engine.metrics.named import RINGS, Metric, definitions, kitti_definitions, measure
from tpvformer.engine.metrics.rays import THRESHOLDS, Area, lidar_directions, ray_counts, ring_of

if TYPE_CHECKING:
    from tpvformer.data.types import Batch
    from tpvformer.model import Prediction


class MetricCounts:
    """Accumulate confusion matrices (scenes, rings, K, K) and ray counts.

    A data set with points has ``points`` and ``voxels``, both counted at labelled lidar points. Dense labels add
    ``grid`` (all voxels) and, if visibility masks are stored, ``camera``. Dense labels of nuScenes also add ``rays``
    (scenes, rings, thresholds + 2, K).

    ``scene_of`` gives the row of each sample token. The ring of a voxel is that of its centre's horizontal distance
    from the origin of the grid's frame. The ring of a ray is that of the true distance along it.
    """

    def __init__(
        self, config: Config, scene_of: Mapping[str, int], masks: bool, device: torch.device, points: bool = True
    ) -> None:
        self._config, self._scene_of = config, scene_of
        self._classes = config.data.label_classes
        self._names = self._classes.names
        self.scenes = len(set(scene_of.values()))
        size, rings = len(self._names), len(RINGS) + 1
        dense = bool(config.data.occupancy)
        self._points, self._rays = points, config.data.occupancy in HAS_RAYS
        shapes = {"points": (size, size), "voxels": (size, size)} if points else {}
        if dense:
            shapes["grid"] = (size, size)
        if self._rays:
            shapes["rays"] = (len(THRESHOLDS) + 2, size)
            grid = config.model.grid
            self._directions, self._area = lidar_directions().to(device), Area.of(grid.shape, grid.pc_range, device)
        if dense and masks:
            shapes["camera"] = (size, size)
        self._counts = {
            source: torch.zeros(self.scenes, rings, *shape, dtype=torch.int64, device=device)
            for source, shape in shapes.items()
        }
        self._rings = cell_rings(config.model.grid, device)

    def add(self, prediction: Prediction, batch: Batch) -> None:
        """Count one batch, without synchronising with the device."""
        ignore = self._config.data.ignore_label
        if self._points:
            self._add_points(prediction, batch)
        if not self._config.data.occupancy:
            return
        target, guess = batch.voxel_labels.long(), prediction.voxel_logits.argmax(1)
        ring = self._rings[None, :, :, None].expand_as(target)
        self._confuse("grid", batch, guess, target, ring, target != ignore)
        if batch.voxel_mask is not None:
            seen = (batch.voxel_mask & CAMERA_BIT) > 0
            self._confuse("camera", batch, guess, target, ring, seen & (target != ignore))
        if not self._rays:
            return
        assert batch.ray_origins is not None
        for i, token in enumerate(batch.tokens):
            origins = batch.ray_origins[i, : batch.ray_lengths[i]]
            empty, area, size = self._classes.empty, self._area, len(self._names)
            self._counts["rays"][self._scene_of[token]] += ray_counts(
                guess[i], target[i], empty, ignore, origins, self._directions, area, size, RINGS
            )

    def _add_points(self, prediction: Prediction, batch: Batch) -> None:
        """Count the predicted classes at labelled points."""
        valid = batch.point_labels != self._config.data.ignore_label
        for number in self._classes.ignored:
            valid = valid & (batch.point_labels != number)
        x, y, _ = batch.grid_index.unbind(-1)
        ring = self._rings[x, y]
        for source, at_voxels in classes_at_voxels(prediction, batch).items():
            self._confuse(source, batch, at_voxels.gather(1, batch.point2voxel), batch.point_labels, ring, valid)

    def _confuse(
        self, source: str, batch: Batch, predicted: Tensor, target: Tensor, ring: Tensor, valid: Tensor
    ) -> None:
        """Add (B, ...) pairs to the confusion matrices of the batch's scenes."""
        rings = len(RINGS) + 1
        first = torch.arange(len(batch.tokens), device=target.device) * rings
        group = ring + first.view(-1, *[1] * (target.dim() - 1))
        groups = len(batch.tokens) * rings
        found = grouped_confusion(predicted, target, group, groups, len(self._names), valid)
        for token, matrices in zip(batch.tokens, found.unflatten(0, (-1, rings))):
            self._counts[source][self._scene_of[token]] += matrices

    def sum_over_processes(self) -> None:
        """Sum the counts over all processes, exactly, as they are integers. Call it once, after the last batch."""
        self._counts = {source: all_reduce_sum(counts).cpu() for source, counts in self._counts.items()}

    def confusion(self, source: str) -> Tensor:
        """Return the (K,K) confusion matrix over all scenes and rings."""
        return self._counts[source].sum((0, 1))

    def metrics(self) -> Dict[str, Metric]:
        """Return every metric that can be computed from the counts, by name; call it after ``sum_over_processes``."""
        if self._config.data.format == "semantickitti":
            known = kitti_definitions(self._classes)
        else:
            known = definitions(self._classes, tuple(self._counts), self._config.data.ignore_label)
        return {name: measure(definition, self._counts[definition.source]) for name, definition in known.items()}


def classes_at_voxels(prediction: Prediction, batch: Batch) -> Dict[str, Tensor]:
    """Return the predicted classes (B,M) at ``batch.voxel_coords``, from the point head and from the voxel head."""
    assert prediction.point_logits is not None
    found = {"points": prediction.point_logits.argmax(1)}
    if prediction.voxel_logits.dim() == 3:
        found["voxels"] = prediction.voxel_logits.argmax(1)
    else:
        dense = prediction.voxel_logits.argmax(1).flatten(1)
        found["voxels"] = dense.gather(1, flat_index(batch.voxel_coords, prediction.voxel_logits.shape[2:]))
    return found


def cell_rings(grid: GridConfig, device: torch.device) -> Tensor:
    """Return the distance ring (X,Y) int64 of each pillar of voxels."""
    low, high, cells = grid.pc_range[:2], grid.pc_range[3:5], grid.shape[:2]
    x, y = (a + (torch.arange(n) + 0.5) * ((b - a) / n) for a, b, n in zip(low, high, cells))
    return ring_of((x[:, None] ** 2 + y[None] ** 2).sqrt(), RINGS).to(device)


def rows_by_scene(scenes: Sequence[str], tokens: Sequence[str]) -> Dict[str, int]:
    """Return the row of each sample token: scenes are numbered in the order of their first sample."""
    number = {scene: i for i, scene in enumerate(dict.fromkeys(scenes))}
    return {token: number[scene] for token, scene in zip(tokens, scenes)}
