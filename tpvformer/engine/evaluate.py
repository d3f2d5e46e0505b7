"""Scores of a model on a validation set: every sample counted exactly once, on any number of processes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Dict, Iterator, Optional, Sequence, Sized, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tpvformer.config import Config
from tpvformer.data.types import Batch
from tpvformer.labels import class_names

from .distributed import World, all_sum, share_buffers
from .forward import predict
from .log import RunLog
from .losses import flat_index, sample_losses
from .metrics import Scores, confusion_matrix, scores, table
from .prefetch import on_device

if TYPE_CHECKING:
    from tpvformer.model import Prediction

_UNIT = 2.0**32  # losses are summed as integers of this fraction, exactly and in any order


@dataclass(frozen=True)
class Evaluation:
    """Classes of points (``pts``), classes of the voxels that points lie in (``vox``), mean loss over samples."""

    pts: Scores
    vox: Scores
    loss: float
    samples: int

    def as_dict(self, names: Sequence[str]) -> Dict[str, object]:
        """Plain values, ready for JSON."""
        return {
            "loss": self.loss,
            "samples": self.samples,
            "pts": self.pts.as_dict(names),
            "vox": self.vox.as_dict(names),
        }


def evaluate(
    model: nn.Module,
    loader: DataLoader,
    config: Config,
    world: World,
    device: torch.device,
    log: RunLog,
    epoch: Optional[int] = None,
    change: Optional[Callable[[Batch], Batch]] = None,
) -> Evaluation:
    """Run the bare model (not its DDP wrapper: processes may hold unequal numbers of samples) over this rank's loader.

    ``change`` alters each batch first (controls). ``epoch`` is only named in the log. All processes return the same.
    """
    names = class_names(config.data.label_map)
    size, ignore = len(names), config.data.ignore_label
    matrices = torch.zeros(2, size, size, dtype=torch.int64, device=device)
    sums = torch.zeros(3, dtype=torch.int64, device=device)  # loss in units, samples, samples without a finite loss
    share_buffers(model)
    training = model.training
    model.eval()
    with torch.no_grad(), log.progress("evaluate", len(loader)) as bar:
        for i, batch in enumerate(on_device(loader, device)):
            if change is not None:
                batch = change(batch)
            prediction = predict(model, batch, config)
            losses = sample_losses(prediction, batch, config.loss, config.data)
            known = losses.isfinite()
            units = (torch.where(known, losses, 0) * _UNIT).long()
            sums += torch.stack((units.sum(), known.new_ones(len(losses)).sum(), (~known).sum()))
            for matrix, voxel_class in zip(matrices, _classes_at_voxels(prediction, batch)):
                predicted = voxel_class.gather(1, batch.point_voxel)
                matrix += confusion_matrix(predicted, batch.point_labels, size, ignore)
            if i % config.train.print_every == 0:
                where = "" if epoch is None else f"Epoch {epoch} "
                mean = float(sums[0]) / _UNIT / int(sums[1])
                log.line(f"[EVAL] {where}Iter {i}: Loss: {losses.mean().item():.3f} ({mean:.3f})")
            bar.advance()
    model.train(training)
    all_sum(matrices)
    total, samples, unknown = all_sum(sums).tolist()
    expected = len(cast(Sized, loader.dataset))
    if samples != expected:
        raise RuntimeError(f"{samples} samples were evaluated, the data set has {expected}")
    loss = float("nan") if unknown else total / _UNIT / samples
    return Evaluation(scores(matrices[0]), scores(matrices[1]), loss, samples)


def _classes_at_voxels(prediction: Prediction, batch: Batch) -> Iterator[Tensor]:
    """Predicted classes (B,M) at ``batch.voxels``, as points and as voxels."""
    assert prediction.point_logits is not None
    yield prediction.point_logits.argmax(1)
    if prediction.voxel_logits.dim() == 3:
        yield prediction.voxel_logits.argmax(1)
    else:
        dense = prediction.voxel_logits.argmax(1).flatten(1)
        yield dense.gather(1, flat_index(batch.voxels, prediction.voxel_logits.shape[2:]))


def permute_cameras(batch: Batch) -> Batch:
    """Every image gets the calibration of the camera before it: a model that sees must lose its way."""
    return dataclasses.replace(batch, lidar2img=batch.lidar2img.roll(1, dims=1))


def report(result: Evaluation, config: Config, log: RunLog) -> None:
    """The table of both metrics, line by line, into the log."""
    for line in table({"pts": result.pts, "vox": result.vox}, class_names(config.data.label_map)):
        log.line(line)
