"""Score baselines to compare a model with: exchanged cameras, the best constant class, colour without a network, and
boxes at the mean place of their class.

A model that uses its images loses most of its score when its cameras are exchanged, and scores far above the colour
baseline.
"""

from __future__ import annotations

from typing import Dict, Iterable, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import DETECTION_CLASSES, Boxes
from tpvformer.data.types import Frame
from tpvformer.engine.distributed.collectives import World, all_reduce_sum
from tpvformer.engine.evaluation.boxes import BoxTally, with_attributes
from tpvformer.engine.evaluation.evaluate import Evaluation, evaluate, miou, permute_cameras
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.metrics import Scores, percent, scores
from tpvformer.engine.metrics.named import Metric
from tpvformer.geometry import inside, project
from tpvformer.labels import EVALUATED

BOX_METRICS = ("nds", "map")
FIT_FRAMES = 200  # training frames that the colour table is made from, spread over the whole set
SHADES = 16  # steps of each colour channel
BINS = SHADES**3 + 1  # the last is for points that no camera sees
BALANCE = (0.0, 0.5, 1.0)  # weights of rare classes to try; the best one on the training frames is used


def run_controls(
    model: nn.Module,
    loader: DataLoader,
    train_set: FrameDataset,
    val_set: FrameDataset,
    config: Config,
    world: World,
    device: torch.device,
    log: RunLog,
    real: Evaluation,
) -> Dict[str, Optional[float]]:
    """Log and return point mIoU (percent): the model, the model with exchanged cameras, and the two baselines.

    For a model that detects boxes also NDS and mAP (percent): the model, with exchanged cameras, and a box of each
    class at its mean place.
    """
    names = config.data.label_classes.names
    blind = evaluate(model, loader, config, world, device, log, change=permute_cameras)
    constant, constant_scores, colour_scores = baselines(train_set, val_set, config, world, device)
    outcome = {
        "model": miou(real.pts),
        "cameras_exchanged": miou(blind.pts),
        "constant": constant_scores.miou,
        "colour_only": colour_scores.miou,
    }
    for title, key in (
        ("this model", "model"),
        ("this model, every camera with its neighbour's calibration", "cameras_exchanged"),
        (f"always {names[constant]}, the best constant", "constant"),
        ("the colour of the point alone, no network", "colour_only"),
    ):
        log.line(f"miou pts of {title:<58} : {percent(outcome[key]):>8}")
    if BOX_METRICS[0] not in real.metrics:
        return outcome
    for title, key, metrics in (
        ("this model", "model", real.metrics),
        ("this model, every camera with its neighbour's calibration", "cameras_exchanged", blind.metrics),
        (
            "a box of each class at its mean place",
            "mean_places",
            _mean_places_scores(train_set, val_set, config, world),
        ),
    ):
        for name in BOX_METRICS:
            outcome[f"{key}_{name}"] = value = metrics[name].value
            log.line(f"{name:<8} of {title:<58} : {percent(value):>8}")
    return outcome


def _mean_places_scores(
    train_set: FrameDataset, val_set: FrameDataset, config: Config, world: World
) -> Mapping[str, Metric]:
    """Return the metrics of ``mean_places`` of the training set, over all processes."""
    constant = with_attributes(mean_places(train_set))
    tally = BoxTally(config, val_set)
    for i in range(world.rank, len(val_set), world.size):
        tally.match(i, val_set.boxes(i), constant)
    return tally.metrics()


def mean_places(data: FrameDataset) -> Boxes:
    """Return one box of each class with the mean place, size and velocity of its boxes, in the grid's frame."""
    known = [boxes for boxes in map(data.boxes, range(len(data))) if boxes is not None]
    labels = np.concatenate([boxes.labels for boxes in known])
    columns = [np.concatenate([getattr(b, name) for b in known]) for name in ("centres", "sizes", "velocities")]
    present = [label for label in range(len(DETECTION_CLASSES)) if (labels == label).any()]
    centres, sizes, velocities = (
        np.array([_mean_of_known(column[labels == label]) for label in present]) for column in columns
    )
    count = len(present)
    zeros, ones = np.zeros(count, np.float32), np.ones(count, np.float32)
    return Boxes(centres, sizes, zeros, velocities, np.array(present), scores=ones)


def _mean_of_known(rows: np.ndarray) -> np.ndarray:
    """Return the mean of rows (N, D) without NaN, which stands for an unknown velocity; 0 where all are unknown."""
    known = ~np.isnan(rows)
    return np.where(known, rows, 0).sum(0) / np.maximum(known.sum(0), 1)


def baselines(
    train_set: FrameDataset, val_set: FrameDataset, config: Config, world: World, device: torch.device
) -> Tuple[int, Scores, Scores]:
    """Return the best constant class, its scores, and the scores of colour alone, over all processes."""
    known = config.data.label_classes
    classes, evaluated = len(known.names), known.evaluated
    ignore = config.data.ignore_label
    chosen = np.unique(np.linspace(0, len(train_set) - 1, FIT_FRAMES).astype(int))
    fitted = histogram((train_set.load_frame(int(i)) for i in chosen), classes, ignore)
    mine = range(world.rank, len(val_set), world.size)
    here = torch.from_numpy(histogram((val_set.load_frame(i) for i in mine), classes, ignore)).to(device)
    seen = all_reduce_sum(here).cpu().numpy()
    constants = {c: score_table(seen, np.full(BINS, c), evaluated) for c in evaluated}
    best = max(evaluated, key=lambda c: constants[c].miou or 0.0)
    return best, constants[best], score_table(seen, fit_colour_table(fitted, evaluated), evaluated)


def histogram(frames: Iterable[Frame], classes: int, ignore: int) -> np.ndarray:
    """Count labelled points by colour and class, (BINS, classes) int64."""
    counts = np.zeros((BINS, classes), np.int64)
    for frame in frames:
        bins, labels = colour_bins(frame), frame.labels.astype(np.int64)
        valid = labels != ignore
        counts += np.bincount(bins[valid] * classes + labels[valid], minlength=counts.size).reshape(counts.shape)
    return counts


def colour_bins(frame: Frame) -> np.ndarray:
    """Return the colour bin (P,) of each point: that of its pixel in the first camera that sees it."""
    bins = np.full(len(frame.points), BINS - 1)
    for image, matrix in zip(frame.images.numpy(), frame.lidar2img):
        pixels, depth = project(frame.points, matrix)
        seen = inside(pixels, depth, image.shape[0], image.shape[1], nearest=0.5) & (bins == BINS - 1)
        u, v = pixels[seen].astype(int).T
        shade = image[v, u].astype(np.int64) * SHADES // 256
        bins[seen] = (shade[:, 0] * SHADES + shade[:, 1]) * SHADES + shade[:, 2]
    return bins


def fit_colour_table(counts: np.ndarray, evaluated: Sequence[int] = EVALUATED) -> np.ndarray:
    """Return the predicted class (BINS,) of each colour, from a histogram of training points.

    Colours without points use the counts of similar colours. Rare classes are weighted by the entry of ``BALANCE`` with
    the highest mIoU.
    """
    smooth = counts + 1e-3 * _blurred(counts) + 1e-6 * counts.sum(0)
    total = np.maximum(counts.sum(0), 1)
    tables = [(smooth / total**balance).argmax(1) for balance in BALANCE]
    return max(tables, key=lambda table: score_table(counts, table, evaluated).miou or 0.0)


def score_table(seen: np.ndarray, table: np.ndarray, evaluated: Sequence[int] = EVALUATED) -> Scores:
    """Score the prediction ``table[bin]`` for the points counted in ``seen`` (BINS, classes)."""
    classes = seen.shape[1]
    matrix = np.zeros((classes, classes), np.int64)
    for answer in np.unique(table):
        matrix[:, answer] = seen[table == answer].sum(0)
    return scores(torch.from_numpy(matrix), evaluated)


def _blurred(counts: np.ndarray) -> np.ndarray:
    """Return for each colour the counts of its block of 4x4x4 colours."""
    classes, block = counts.shape[1], SHADES // 4
    cube = counts[:-1].reshape(4, block, 4, block, 4, block, classes)
    coarse = np.broadcast_to(cube.sum((1, 3, 5), keepdims=True), cube.shape).reshape(-1, classes)
    return np.concatenate([coarse, counts[-1:]])
