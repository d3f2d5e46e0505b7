"""The training loop, and what surrounds it from epoch to epoch."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ContextManager, Iterator, List, Optional, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader

from tpvformer.config import Config
from tpvformer.data.dataset import NuScenesDataset
from tpvformer.data.samplers import TrainSampler
from tpvformer.data.types import Batch
from tpvformer.labels import class_names
from tpvformer.model import TPVFormer

from . import checkpoint, distributed
from .checkpoint import Progress
from .device import synchronize
from .distributed import World
from .evaluate import Evaluation, evaluate, report
from .forward import predict
from .log import RunLog
from .losses import total_loss
from .memory import keep_freed_memory
from .meters import Lap, LossWatch, StepClock
from .optim import Stepper
from .prefetch import on_device
from .schedule import set_learning_rates


@dataclass
class Run:
    """All that a training run is made of. ``model`` is the bare module, ``parallel`` what averages its gradients."""

    config: Config
    work_dir: Path
    world: World
    device: torch.device
    log: RunLog
    model: TPVFormer
    parallel: nn.Module
    stepper: Stepper
    train_loader: DataLoader
    val_loader: Optional[DataLoader]  # None: a run of bounded length, which evaluates and saves nothing
    max_steps: Optional[int]
    progress: Progress
    clock: StepClock
    losses: LossWatch

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps; samples that do not fill a global batch at the end of an epoch are left out."""
        return len(cast(NuScenesDataset, self.train_loader.dataset)) // self.global_batch

    @property
    def global_batch(self) -> int:
        """Samples an optimiser step learns from, over all processes."""
        return self.world.size * self.config.data.batch_size * self.config.train.accumulate

    @property
    def schedule_steps(self) -> int:
        """Length of the learning rate's curve: that of the whole training, however short this run is."""
        return self.steps_per_epoch * self.config.train.epochs


def train_epoch(run: Run, epoch: int) -> None:
    """One pass over the training set, or less where ``max_steps`` ends it."""
    config, stepper, n = run.config, run.stepper, run.steps_per_epoch
    seed_epoch(config.train.seed, epoch, run.world.rank)
    cast(TrainSampler, run.train_loader.sampler).set_epoch(epoch)
    run.model.train()
    run.losses.start_epoch()
    run.clock.start_epoch()
    batches = on_device(timed(run.train_loader, run.clock), run.device)
    with run.log.progress(f"epoch {epoch}", n) as bar:
        for i in range(n):
            # learning rate of this step
            set_learning_rates(stepper.optimizer, run.progress.global_iter, run.schedule_steps, config.optim)
            stepper.clear()
            step_loss = torch.zeros((), device=run.device)
            tokens: List[str] = []
            for part in range(config.train.accumulate):
                batch = next(batches)
                last_part = part == config.train.accumulate - 1
                with exchange(run.parallel, last_part):
                    # forward
                    prediction = predict(run.parallel, batch, config)
                    # loss
                    loss = total_loss(prediction, batch, config.loss, config.data) / config.train.accumulate
                    # backward
                    stepper.backward(loss)
                step_loss += loss.detach()
                tokens += batch.tokens
            run.losses.add(f"epoch {epoch} iteration {i}", tokens, step_loss)
            # clip and step
            grad_norm = stepper.update()
            keep_freed_memory(run.device.type)
            run.progress.global_iter += 1
            # report
            done = i == n - 1 or run.progress.global_iter == run.max_steps
            printing = i % config.train.print_every == 0
            if printing or done:
                run.losses.read()
            if run.clock.measuring_starts:
                synchronize(run.device)
            run.clock.lap()
            bar.advance()
            if printing or done:
                laps = run.clock.recent()
                run.log.timeline(epoch, run.progress.global_iter, laps)
            if printing:
                log_step(run, epoch, i, float(grad_norm), laps)
            if done:
                return


def log_step(run: Run, epoch: int, i: int, grad_norm: float, laps: List[Lap]) -> None:
    """The line and the record of a printed iteration; times are means since the one before."""
    assert run.losses.last is not None
    values = {
        "step": run.progress.global_iter,
        "loss": run.losses.last,
        "mean_loss": run.losses.mean,
        "grad_norm": grad_norm,
        "lr": run.stepper.optimizer.param_groups[0]["lr"],
        "time": sum(lap.spent for lap in laps) / len(laps),
        "data_time": sum(lap.waited for lap in laps) / len(laps),
    }
    run.log.train_step(epoch, i, run.steps_per_epoch, values)


def fit(run: Run) -> Optional[Evaluation]:
    """Train from where ``run.progress`` stands; save and evaluate after every epoch. The last evaluation, if any."""
    config, progress, result = run.config, run.progress, None
    finished = progress.epoch >= config.train.epochs
    if run.val_loader is not None and progress.epoch and (finished or not progress.evaluated):
        result = evaluate_epoch(run)  # asked again for what is finished, or interrupted before its evaluation
    for epoch in range(progress.epoch, config.train.epochs):
        train_epoch(run, epoch)
        if run.val_loader is None:
            if run.progress.global_iter == run.max_steps:
                break
            continue
        progress.epoch, progress.evaluated = epoch + 1, False
        save(run)
        result = evaluate_epoch(run)
    return result


def evaluate_epoch(run: Run) -> Evaluation:
    """Score the model as it stands, say so, and write its checkpoint again with the scores in it."""
    progress = run.progress
    assert run.val_loader is not None
    result = evaluate(run.model, run.val_loader, run.config, run.world, run.device, run.log, progress.epoch)
    report(result, run.config, run.log)
    leader, leading = result.leading
    better = progress.improve(result.pts.miou, result.vox.miou, leading)
    shown = [
        ("miou pts", result.pts.miou, progress.best_val_miou_pts),
        ("miou vox", result.vox.miou, progress.best_val_miou_vox),
    ]
    if leader != "miou_points":
        shown.append((leader, leading, progress.best_val_leading))
    for title, score, best in shown:
        now, record = ("n/a" if value is None else f"{value:.3f}" for value in (score, best))
        run.log.line(f"Current val {title} is {now} while the best val {title} is {record}")
    run.log.line(f"Current val loss is {result.loss:.3f}")
    values = result.as_dict(class_names(run.config.data.label_map))
    run.log.record("eval", epoch=progress.epoch, step=progress.global_iter, **values)
    missing = not (run.work_dir / checkpoint.BEST).exists() and leading == progress.best_val_leading
    save(run, best=better or missing)
    return result


def save(run: Run, best: bool = False) -> None:
    """Write the checkpoint of the epoch that is done; the other processes wait."""
    if run.world.is_main:
        path = checkpoint.save(run.work_dir, run.model, run.stepper, run.config, run.progress)
        if best:
            checkpoint.keep_best(path)
    distributed.barrier()


def timed(loader: DataLoader, clock: StepClock) -> Iterator[Batch]:
    """The loader's batches; the clock learns how long each was waited for."""
    batches = iter(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        clock.data_ready(asked)
        if batch is None:
            return
        yield batch


def exchange(parallel: nn.Module, last_part: bool) -> ContextManager[None]:
    """Gradients of an accumulation travel between the processes once, with its last batch."""
    return contextlib.nullcontext() if last_part or not isinstance(parallel, DDP) else parallel.no_sync()


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Dropout of an epoch depends on these three alone, so a resumed run repeats an uninterrupted one."""
    torch.manual_seed((seed * 100_003 + epoch) * 100_003 + rank)
