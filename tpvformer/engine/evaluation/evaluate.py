"""Evaluate a model on a validation set: every sample is counted exactly once, on any number of processes."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.types import Batch, PastBatch
from tpvformer.engine.distributed.collectives import World, all_gather_strings, all_reduce_sum, share_buffers
from tpvformer.engine.evaluation.boxes import BoxTally
from tpvformer.engine.forward import predict
from tpvformer.engine.logging.log import RunLog, finite
from tpvformer.engine.losses import sample_losses
from tpvformer.engine.metrics import Scores, scores, table
from tpvformer.engine.metrics.collect import MetricCounts, rows_by_scene
from tpvformer.engine.metrics.detection_named import detection_table
from tpvformer.engine.metrics.named import Metric, named_table
from tpvformer.engine.prefetch import on_device
from tpvformer.errors import ConfigError

if TYPE_CHECKING:
    from tpvformer.model import Prediction

_Held = TypeVar("_Held", Batch, PastBatch)
WORST = 6  # samples of the highest loss that an evaluation lists
# metrics that choose the best checkpoint, with their counts; the first available one is used
_PRIMARY = {"occ3d_miou": "camera", "ssc_miou": "grid", "miou_points": "points"}
_UNIT = 2.0**32  # losses are summed as integers in units of 1 / _UNIT: exact in any order


@dataclass(frozen=True)
class Evaluation:
    """Hold the scores of points (``pts``) and of the voxels they lie in (``vox``), and the mean loss over samples.

    ``pts`` and ``vox`` are None if the data set has no points. ``metrics`` holds all metrics under their full names
    (metrics/named.py and detection_named.py define them). ``confusion`` holds the counts of the primary metric of
    segmentation, [truth][predicted]; ``worst`` the samples of the highest loss. ``boxes_lead``: a model that learns
    boxes alone is chosen by them.
    """

    pts: Optional[Scores]
    vox: Optional[Scores]
    loss: float
    samples: int
    scenes: int = 0
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    confusion: Sequence[Sequence[int]] = ()
    worst: Sequence[Tuple[str, float]] = ()
    boxes_lead: bool = False

    def __repr__(self) -> str:
        named = [f"{name} {m.text}" for name, m in self.metrics.items() if m.value is not None]
        return f"Evaluation({', '.join(named)}; loss {self.loss:.3f} over {self.samples} samples)"

    @property
    def primary_metric(self) -> Tuple[str, Optional[float]]:
        """Return name and value of the metric that chooses the best checkpoint; those of dense labels come first.

        It is ``nds`` where segmentation is not trained and the set has boxes.
        """
        name = "nds" if self.boxes_lead and "nds" in self.metrics else primary_metric_name(self.metrics)
        return name, self.metrics[name].value if name in self.metrics else miou(self.pts)

    def as_dict(self, names: Sequence[str]) -> Dict[str, object]:
        """Return plain values for JSON."""
        return {
            "loss": self.loss,
            "samples": self.samples,
            "pts": None if self.pts is None else self.pts.as_dict(names),
            "vox": None if self.vox is None else self.vox.as_dict(names),
            "scenes": self.scenes,
            "metrics": {name: metric.as_dict() for name, metric in self.metrics.items()},
            "leading": self.primary_metric[0],
            "confusion": {"classes": list(names), "counts": [list(row) for row in self.confusion]},
            "worst": [{"token": token, "loss": loss} for token, loss in self.worst],
        }


def primary_metric_name(metrics: Mapping[str, Metric]) -> str:
    """Return the name of the primary metric of segmentation; those of dense labels come first."""
    return next((name for name in _PRIMARY if name in metrics), "miou_points")


def miou(scores: Optional[Scores]) -> Optional[float]:
    """Return the mean over the classes present; None without scores."""
    return None if scores is None else scores.miou


def evaluate(
    model: nn.Module,
    loader: DataLoader,
    config: Config,
    world: World,
    device: torch.device,
    log: RunLog,
    epoch: Optional[int] = None,
    between: Callable[[], None] = lambda: None,
    change: Optional[Callable[[Batch], Batch]] = None,
    keep: Optional[Callable[[Batch, Prediction], None]] = None,
) -> Evaluation:
    """Evaluate the bare model over this rank's loader; return the same result in all processes.

    The model must not be wrapped in DDP, because processes may have unequal numbers of samples. ``change`` alters each
    batch first (for baselines). ``keep`` receives each batch with its prediction. ``epoch`` only appears in the log.
    ``between`` is called in all processes between batches, and may raise to end the evaluation.
    """
    data = cast(FrameDataset, loader.dataset)
    tally = MetricCounts(config, rows_by_scene(data.scenes, data.tokens), data.has_masks, device, data.has_points)
    box_tally = BoxTally.of(config, data)
    sums = torch.zeros(3, dtype=torch.int64, device=device)  # loss in units, samples, samples without a finite loss
    share_buffers(model)
    tokens: List[str] = []
    each: List[torch.Tensor] = []  # losses of the samples; read at the end, to avoid synchronising with the device
    training, least = model.training, getattr(loader.sampler, "least", len(data) // world.size)
    model.eval()
    with torch.no_grad(), log.progress("evaluate", len(loader)) as bar:
        for i, batch in enumerate(on_device(loader, device)):
            if (i + 1) * config.data.batch_size <= least:  # every process has such a batch
                between()
            if change is not None:
                batch = change(batch)
            prediction = predict(model, batch, config)
            losses = sample_losses(prediction, batch, config.loss, config.data)
            known = losses.isfinite()
            units = (torch.where(known, losses, 0) * _UNIT).long()
            sums += torch.stack((units.sum(), known.new_ones(len(losses)).sum(), (~known).sum()))
            tokens += batch.tokens
            each.append(losses)
            tally.add(prediction, batch)
            if box_tally is not None:
                box_tally.add(prediction, batch)
            if keep is not None:
                keep(batch, prediction)
            if i % config.train.print_every == 0:
                where = "" if epoch is None else f"Epoch {epoch} "
                mean = float(sums[0]) / _UNIT / int(sums[1])
                log.line(f"[EVAL] {where}Iter {i}: Loss: {losses.mean().item():.3f} ({mean:.3f})")
            bar.advance()
    model.train(training)
    tally.sum_over_processes()
    total, samples, unknown = all_reduce_sum(sums).tolist()
    if samples != len(data):
        raise RuntimeError(f"{samples} samples were evaluated, the data set has {len(data)}")
    loss = float("nan") if unknown else total / _UNIT / samples
    pts = vox = None
    if data.has_points:
        evaluated = config.data.label_classes.evaluated
        pts, vox = (scores(tally.confusion(source), evaluated) for source in ("points", "voxels"))
    metrics = tally.metrics()
    if box_tally is not None:
        metrics.update(box_tally.metrics())
    confusion = tally.confusion(_PRIMARY[primary_metric_name(metrics)]).tolist()
    worst = worst_of(tokens, torch.cat(each).tolist() if each else [])
    boxes_alone = config.loss.segmentation == 0
    return Evaluation(pts, vox, loss, samples, tally.scenes, metrics, confusion, worst, boxes_alone)


def worst_of(tokens: Sequence[str], losses: Sequence[float]) -> List[Tuple[str, float]]:
    """Return the samples of the highest loss over all processes, highest first; non-finite losses come first."""

    def badness(sample: Sequence) -> Tuple[float, str]:
        return -sample[1] if math.isfinite(sample[1]) else -math.inf, sample[0]

    mine = sorted(zip(tokens, losses), key=badness)[:WORST]
    everyone = [(token, loss) for text in all_gather_strings(json.dumps(mine)) for token, loss in json.loads(text)]
    return sorted(everyone, key=badness)[:WORST]


def permute_cameras(batch: Batch) -> Batch:
    """Give every image the calibration of the previous camera, in the past frames too."""

    def permuted(held: _Held) -> _Held:
        rows = None if held.query_rows is None else held.query_rows.roll(1, dims=1)
        return dataclasses.replace(held, grid2img=held.grid2img.roll(1, dims=1), query_rows=rows)

    return dataclasses.replace(permuted(batch), past=[permuted(frame) for frame in batch.past])


def report(result: Evaluation, config: Config, log: RunLog) -> None:
    """Log the tables of all metrics, line by line; those of segmentation are left out where it is not trained."""
    if result.boxes_lead and "nds" in result.metrics:
        for line in detection_table(result.metrics, result.scenes):
            log.line(line)
        return
    if result.pts is not None and result.vox is not None:
        for line in table({"pts": result.pts, "vox": result.vox}, config.data.label_classes.names):
            log.line(line)
    segmentation = {n: metric for n, metric in result.metrics.items() if metric.of_class in ("iou", "flicker")}
    for line in named_table(segmentation, result.scenes) + detection_table(result.metrics, result.scenes):
        log.line(line)


def write_scores(path: Path, result: Evaluation, config: Config, **conditions: Any) -> None:
    """Write all results as JSON, after the ``conditions`` of a score that is not the ordinary one.

    Raises ConfigError if the file cannot be written.
    """
    values = {"config": config.name, **conditions, **result.as_dict(config.data.label_classes.names)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(finite(values), indent=1, allow_nan=False) + "\n")
    except OSError as err:
        raise ConfigError(f"json is {path}, which cannot be written ({err.strerror}); name another file") from err
