"""Scores of a model that misplaces the labels."""

from __future__ import annotations

from typing import Dict, cast

import torch
from engine_tools import CPU, val_loader

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.types import Batch
from tpvformer.engine import losses
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.metrics.collect import MetricCounts, rows_by_scene
from tpvformer.model import Prediction


def counted(config: Config, world: World) -> Dict[str, object]:
    """All metrics of a model that misplaces the labels, by a voxel that depends on the sample."""
    loader = val_loader(config, world.rank, world.size)
    data = cast(FrameDataset, loader.dataset)
    tally = MetricCounts(config, rows_by_scene(data.scenes, data.tokens), data.has_masks, CPU)
    for batch in loader:
        shift = 1 + data.tokens.index(batch.tokens[0])
        tally.add(answers(batch, batch.voxel_labels.roll(shift, dims=shift % 2 + 1)), batch)
    tally.sum_over_processes()
    return {name: metric.as_dict() for name, metric in tally.metrics().items()}


def answers(batch: Batch, dense: torch.Tensor) -> Prediction:
    """Logits that say ``dense`` (B,X,Y,Z) in every voxel, and the same at the points."""
    voxel = torch.nn.functional.one_hot(dense.long(), 18).permute(0, 4, 1, 2, 3).float()
    at_points = dense.flatten(1).gather(1, losses.flat_index(batch.voxel_coords, dense.shape[1:]))
    return Prediction(voxel, torch.nn.functional.one_hot(at_points.long(), 18).transpose(1, 2).float())
