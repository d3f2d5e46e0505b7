"""Score baselines to compare a model with: exchanged cameras, the best constant class, and colour without a network.

A model that uses its images loses most of its score when its cameras are exchanged, and scores far above the colour
baseline.
"""

from __future__ import annotations

from typing import Dict, Iterable, Optional, Tuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.types import Frame
from tpvformer.engine.distributed.collectives import World, all_reduce_sum
from tpvformer.engine.evaluation.evaluate import Evaluation, evaluate, miou, permute_cameras
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.metrics import Scores, percent, scores
from tpvformer.geometry import inside, project
from tpvformer.labels import EVALUATED, class_names

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
    """Log and return point mIoU (percent): the model, the model with exchanged cameras, and the two baselines."""
    names = class_names(config.data.label_map)
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
    return outcome


def baselines(
    train_set: FrameDataset, val_set: FrameDataset, config: Config, world: World, device: torch.device
) -> Tuple[int, Scores, Scores]:
    """Return the best constant class, its scores, and the scores of colour alone, over all processes."""
    classes = len(class_names(config.data.label_map))
    ignore = config.data.ignore_label
    chosen = np.unique(np.linspace(0, len(train_set) - 1, FIT_FRAMES).astype(int))
    fitted = histogram((train_set.load_frame(int(i)) for i in chosen), classes, ignore)
    mine = range(world.rank, len(val_set), world.size)
    here = torch.from_numpy(histogram((val_set.load_frame(i) for i in mine), classes, ignore)).to(device)
    seen = all_reduce_sum(here).cpu().numpy()
    constants = {c: score_table(seen, np.full(BINS, c)) for c in EVALUATED}
    best = max(EVALUATED, key=lambda c: constants[c].miou or 0.0)
    return best, constants[best], score_table(seen, fit_colour_table(fitted))


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


def fit_colour_table(counts: np.ndarray) -> np.ndarray:
    """Return the predicted class (BINS,) of each colour, from a histogram of training points.

    Colours without points use the counts of similar colours. Rare classes are weighted by the entry of ``BALANCE`` with
    the highest mIoU.
    """
    smooth = counts + 1e-3 * _blurred(counts) + 1e-6 * counts.sum(0)
    total = np.maximum(counts.sum(0), 1)
    tables = [(smooth / total**balance).argmax(1) for balance in BALANCE]
    return max(tables, key=lambda table: score_table(counts, table).miou or 0.0)


def score_table(seen: np.ndarray, table: np.ndarray) -> Scores:
    """Score the prediction ``table[bin]`` for the points counted in ``seen`` (BINS, classes)."""
    classes = seen.shape[1]
    matrix = np.zeros((classes, classes), np.int64)
    for answer in np.unique(table):
        matrix[:, answer] = seen[table == answer].sum(0)
    return scores(torch.from_numpy(matrix))


def _blurred(counts: np.ndarray) -> np.ndarray:
    """Return for each colour the counts of its block of 4x4x4 colours."""
    classes, block = counts.shape[1], SHADES // 4
    cube = counts[:-1].reshape(4, block, 4, block, 4, block, classes)
    coarse = np.broadcast_to(cube.sum((1, 3, 5), keepdims=True), cube.shape).reshape(-1, classes)
    return np.concatenate([coarse, counts[-1:]])
