"""Score finished weights on the validation set, and write their predictions for the test set."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import ContextManager, Optional, Sequence, Union

import torch
from torch import nn

from tpvformer.compat import load_weights
from tpvformer.compat.own_model import OwnSource
from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset, open_frames
from tpvformer.data.types import Batch
from tpvformer.engine.device import precision
from tpvformer.engine.device.preflight import check_cameras, check_order
from tpvformer.engine.distributed import collectives as distributed
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation.baselines import run_controls
from tpvformer.engine.evaluation.box_submission import submission_to
from tpvformer.engine.evaluation.evaluate import Evaluation, evaluate, report, write_scores
from tpvformer.engine.evaluation.submission import predict_all
from tpvformer.engine.evaluation.submission_file import TEST_VERSION
from tpvformer.engine.faults.explain_crash import explain_crash
from tpvformer.engine.foreign.own_model import load_own_weights
from tpvformer.engine.loading import Loading
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.metrics.flicker import FlickerTally
from tpvformer.engine.train import build_model, enter, settle
from tpvformer.errors import ConfigError
from tpvformer.model import Prediction, TPVFormer


def evaluate_checkpoint(
    config: Config,
    weights: Union[Path, TPVFormer],
    device: str = "auto",
    controls: bool = False,
    out: Optional[Path] = None,
    submission: Optional[Path] = None,
    uses: Sequence[str] = (),
    past_seconds: Optional[float] = None,
    flicker: bool = False,
    shuffle_poses: bool = False,
    which: Optional[str] = None,
    own: Optional[OwnSource] = None,
    said: bool = False,
) -> Evaluation:
    """Score weights on the validation set; print the tables on stdout.

    ``weights`` is a checkpoint of this package or of the reference, or a model that is already on the device.
    ``controls`` adds the scores with exchanged cameras, of a constant class and of colour alone. ``out`` receives all
    scores as JSON, ``submission`` the predictions in the challenge's format: FILE.json takes boxes (box_submission.py),
    any other name the classes of points (submission.py); ``uses``: see submission_file.py. ``past_seconds`` limits the
    past that a model with ``model.history`` reads (``open_frames``). ``flicker`` reads the frames scene by scene and
    adds that metric (metrics/flicker.py). ``shuffle_poses`` scores a control: the past of every sample has the
    motion of another one (data/past.py). ``which``: see ``load_weights``. ``own``: the checkout's own model, whose
    weights these are. ``said``: see ``train``.
    """
    world, place, remarks = enter(device, said=said)
    log = RunLog(None, world.is_main)
    try:
        for remark in remarks:
            log.warn(remark)
        data = _opened(config, "val", past_seconds, log)
        if shuffle_poses:
            _shuffle(data, submission, log)
        check_cameras(data, config)
        if own is not None:
            check_order(data)
        if data.camera_note:
            log.line(data.camera_note)
        if controls and not data.has_points:
            raise ConfigError(
                "controls compare the classes of lidar points, and this data set has none; leave them out"
            )
        tally = FlickerTally(config, data, place) if flicker else None
        loader = Loading(data, config, world, place, log.line, log.warn).loader(data, train=False, by_scene=flicker)
        kept = contextlib.nullcontext()
        if submission is not None:
            kept = submission_to(submission, data, config, "val", uses, world)
        with kept as writer, _in_words(config, place, "the evaluation", own is not None):
            model = _loaded(config, weights, world, place, log, which, own)
            receivers = [each.add for each in (writer, tally) if each is not None]

            def keep(batch: Batch, prediction: Prediction) -> None:
                for receive in receivers:
                    receive(batch, prediction)

            result = evaluate(model, loader, config, world, place, log, keep=keep)
            if tally is not None:
                result = dataclasses.replace(result, metrics={**result.metrics, **tally.metrics()})
            report(result, config, log)
            for title, metric in (("pts", result.pts), ("vox", result.vox)):
                if metric is not None:
                    log.line(f"Current val miou {title} is {'n/a' if metric.miou is None else f'{metric.miou:.3f}'}")
            log.line(f"Current val loss is {result.loss:.3f} over {result.samples} samples")
            if writer is not None:
                writer.finish(log)
        if out is not None and world.is_main:
            given = {"which": which, "past_seconds": past_seconds, "shuffle_poses": shuffle_poses or None}
            write_scores(out, result, config, **{name: value for name, value in given.items() if value is not None})
        if controls:
            train_set = open_frames(config, "train")
            run_controls(model, loader, train_set, data, config, world, place, log, result)
    finally:
        log.close()
    distributed.stop()
    return result


def predict_test_set(
    config: Config,
    weights: Path,
    submission: Path,
    device: str = "auto",
    uses: Sequence[str] = (),
    past_seconds: Optional[float] = None,
    which: Optional[str] = None,
    own: Optional[OwnSource] = None,
    said: bool = False,
) -> None:
    """Write predictions for the test set, whose labels are not published; nothing is scored.

    The tables of v1.0-test are read below the configured root. Raises ConfigError, DataError and CheckpointError.
    """
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, version=TEST_VERSION))
    world, place, remarks = enter(device, said=said)
    log = RunLog(None, world.is_main)
    try:
        for remark in remarks:
            log.warn(remark)
        data = _opened(config, "test", past_seconds, log)
        check_cameras(data, config)
        if own is not None:
            check_order(data)
        if data.camera_note:
            log.line(data.camera_note)
        loader = Loading(data, config, world, place, log.line, log.warn).loader(data, train=False)
        told = _in_words(config, place, "the predictions", own is not None)
        with submission_to(submission, data, config, "test", uses, world) as writer, told:
            predict_all(_loaded(config, weights, world, place, log, which, own), loader, config, place, log, writer)
            writer.finish(log)
    finally:
        log.close()
    distributed.stop()


def _opened(config: Config, split: str, past_seconds: Optional[float], log: RunLog) -> FrameDataset:
    data = open_frames(config, split, past_seconds)
    if past_seconds is not None:
        read = sum(map(bool, data.windows))
        log.line(f"past frames of at most {past_seconds:g} s: {read} of {len(data)} samples have some")
    return data


def _shuffle(data: FrameDataset, submission: Optional[Path], log: RunLog) -> None:
    if submission is not None:
        raise ConfigError("shuffled poses are a control and no submission; leave one of the two out")
    count, metres = data.shuffle_poses()
    log.line(
        f"poses of the past are shuffled: {count} of {len(data)} samples have the motion of another sample, which puts "
        f"the frame before {metres:.2f} m away from its place on average"
    )


def _in_words(config: Config, place: torch.device, doing: str, own: bool) -> ContextManager[None]:
    return explain_crash(config, precision.choose(config.train.precision, place).name, place, lambda: doing, own)


def _loaded(
    config: Config,
    weights: Union[Path, TPVFormer],
    world: World,
    place: torch.device,
    log: RunLog,
    which: Optional[str] = None,
    own: Optional[OwnSource] = None,
) -> nn.Module:
    """Return the model with the given weights, in the common precision of all processes."""
    chosen = precision.choose_together(config.train.precision, place, world)
    precision.begin(chosen, config, place, log)
    if isinstance(weights, TPVFormer):
        return settle(weights, chosen.applied(config), place)
    if own is not None:
        from tpvformer.engine.foreign.checkout_model import build_own

        theirs = build_own(own, config, world, place, log)
        for line in load_own_weights(theirs, weights, whole=True, which=which):
            log.line(line)
        return theirs
    model = build_model(chosen.applied(config), place)
    for line in str(load_weights(model, weights, which=which)).splitlines():
        log.line(line)
    return model
