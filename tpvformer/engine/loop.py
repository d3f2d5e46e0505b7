"""Run the training loop: steps, epochs, evaluation, checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ContextManager, Dict, Iterator, List, Optional, Tuple, Union, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader

from tpvformer.compat.checkpoints import OWN
from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.samplers import TrainSampler
from tpvformer.data.types import Batch
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.checkpoint import state as checkpoint
from tpvformer.engine.checkpoint.resume import capture_mid_epoch_state, restore_mid_epoch_state
from tpvformer.engine.checkpoint.rng import seed_all
from tpvformer.engine.checkpoint.saver import Saver
from tpvformer.engine.checkpoint.state import Progress
from tpvformer.engine.device.accelerator import synchronize
from tpvformer.engine.device.memory import keep_freed_memory
from tpvformer.engine.device.precision import Precision
from tpvformer.engine.distributed import collectives as distributed
from tpvformer.engine.distributed.agreement import Agreement
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.distributed.signals import Stopped, StopSignals
from tpvformer.engine.evaluation.evaluate import Evaluation, evaluate, miou, report
from tpvformer.engine.faults.bad_samples import BadSamples
from tpvformer.engine.faults.nonfinite import NonFiniteGuard
from tpvformer.engine.faults.watchdog import Watchdog
from tpvformer.engine.foreign.own_model import OwnModel
from tpvformer.engine.forward import predict
from tpvformer.engine.loading import Loading
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.logging.meters import Lap, LossMeter, StepClock
from tpvformer.engine.losses import total_loss
from tpvformer.engine.optim import Stepper
from tpvformer.engine.optim.average import WeightAverage
from tpvformer.engine.optim.schedule import rate_at, set_learning_rates
from tpvformer.engine.prefetch import on_device
from tpvformer.errors import SaveError
from tpvformer.model import TPVFormer


@dataclass
class TrainState:
    """Hold the objects of a training run. ``model`` is the bare module, ``parallel`` its DDP wrapper."""

    config: Config
    work_dir: Path
    world: World
    device: torch.device
    log: RunLog
    model: Union[TPVFormer, OwnModel]
    parallel: nn.Module
    precision: Precision  # in use; config.train.precision is the setting, which may be "auto"
    stepper: Stepper
    average: Optional[WeightAverage]  # of the weights over the steps; None without train.ema
    loading: Loading
    train_loader: DataLoader
    val_loader: Optional[DataLoader]  # None: a run of bounded length, which evaluates and saves nothing
    max_steps: Optional[int]
    progress: Progress
    clock: StepClock
    losses: LossMeter
    guard: NonFiniteGuard
    bad_samples: BadSamples
    watchdog: Watchdog
    saver: Saver
    signals: StopSignals
    agreement: Agreement
    sets: Dict[str, str]  # identity of each data set, for checkpoints; see distributed/consistency.py
    mid_epoch_state: Optional[Dict[str, Any]] = None  # of the resumed checkpoint, until it is restored

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimiser steps of an epoch; samples that do not fill a last global batch are dropped."""
        return len(cast(FrameDataset, self.train_loader.dataset)) // self.global_batch

    @property
    def global_batch(self) -> int:
        """Return the samples of one optimiser step, over all processes."""
        return self.world.size * self.config.data.batch_size * self.config.train.accumulate

    @property
    def schedule_steps(self) -> int:
        """Return the length of the learning rate schedule in steps: the whole training, whatever ``max_steps`` is."""
        return self.steps_per_epoch * self.config.train.epochs


def train_epoch(run: TrainState, epoch: int) -> None:
    """Train from ``run.progress`` to the end of ``epoch``, or until ``max_steps``.

    Raises Stopped after a signal to stop.
    """
    config, stepper, n = run.config, run.stepper, run.steps_per_epoch
    first, batches = begin_epoch(run, epoch)
    here, later = steps_left(run, epoch, first)
    with run.log.progress(f"epoch {epoch}", here, later) as bar:
        for i in range(first, n):
            # learning rate of this step
            set_learning_rates(stepper.optimizer, run.progress.global_iter, run.schedule_steps, config.optim)
            stepper.zero_grad()
            step_loss = torch.zeros((), device=run.device)
            step_parts: Dict[str, Tensor] = {}
            tokens: List[str] = []
            where = f"epoch {epoch} iteration {i}"
            run.watchdog.beat(where)
            for part in range(config.train.accumulate):
                batch = next(batches)
                last_part = part == config.train.accumulate - 1
                with maybe_no_sync(run.parallel, last_part):
                    # forward
                    prediction = predict(run.parallel, batch, config)
                    # loss
                    parts: Dict[str, Tensor] = {}
                    loss = total_loss(prediction, batch, config.loss, config.data, config.model.grid, parts)
                    loss = loss / config.train.accumulate
                    # backward
                    stepper.backward(loss)
                step_loss += loss.detach()
                for name, share in parts.items():
                    step_parts[name] = step_parts.get(name, 0) + share / config.train.accumulate
                tokens += batch.tokens
                run.bad_samples.note(batch.replaced)
            # clip, check, step
            grad_norm = stepper.clip()
            if run.guard.accepts(where, tokens, step_loss, grad_norm, run.progress.skipped_steps):
                run.losses.add(where, tokens, step_loss, step_parts)
                if run.average is None:
                    stepper.step()
                elif stepper.step_changed():
                    run.average.update()
            else:
                stepper.skip()
                run.progress.skipped_steps += 1
            keep_freed_memory(run.device.type)
            run.progress.global_iter += 1
            run.progress.samples += run.global_batch
            # report
            done = i == n - 1 or run.progress.global_iter == run.max_steps
            printing = i % config.train.print_every == 0
            if printing or done:
                run.losses.read()
                run.progress.bad_samples = run.bad_samples.settle(run.progress.bad_samples, run.log)
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
            # save and stop
            save_if_due(run)


def steps_left(run: TrainState, epoch: int, first: int) -> Tuple[int, int]:
    """Return the steps left in this epoch from ``first`` on, and those of later epochs; ``max_steps`` limits both."""
    here, later = run.steps_per_epoch - first, (run.config.train.epochs - epoch - 1) * run.steps_per_epoch
    if run.max_steps is not None:
        left = run.max_steps - run.progress.global_iter
        here, later = min(here, left), min(later, max(0, left - here))
    return here, later


def begin_epoch(run: TrainState, epoch: int) -> Tuple[int, Iterator[Batch]]:
    """Return the first step to train in ``epoch`` and the batches from there; set seeds, sample order and meters."""
    start, seed = run.progress.samples, run.config.train.seed
    run.train_loader = run.loading.renewed(run.train_loader, run.clock)
    seed_epoch(seed, epoch, run.world.rank)
    cast(TrainSampler, run.train_loader.sampler).set_epoch(epoch, start)
    run.model.train()
    run.losses.start_epoch()
    run.clock.start_epoch()
    batches = on_device(timed(iter(run.train_loader), run.clock), run.device)
    if start and run.mid_epoch_state is not None:
        restore_mid_epoch_state(run.mid_epoch_state, run.losses, run.world, run.device, [seed, epoch, start])
    run.mid_epoch_state = None
    return start // run.global_batch, batches


def log_step(run: TrainState, epoch: int, i: int, grad_norm: float, laps: List[Lap]) -> None:
    """Log a printed iteration as a line and as a record; times are means since the last printed iteration."""
    values: Dict[str, Any] = {
        "step": run.progress.global_iter,
        "loss": math.nan if run.losses.last is None else run.losses.last,  # all steps so far were skipped
        "mean_loss": run.losses.mean,
        "grad_norm": grad_norm,
        "lr": rate_at(run.progress.global_iter - 1, run.config.optim.lr, run.schedule_steps, run.config.optim),
        "time": sum(lap.spent for lap in laps) / len(laps),
        "data_time": sum(lap.waited for lap in laps) / len(laps),
        "parts": run.losses.last_parts,
        "mean_parts": run.losses.mean_parts,
    }
    run.log.train_step(epoch, i, run.steps_per_epoch, values)


def run_epochs(run: TrainState) -> Optional[Evaluation]:
    """Train from ``run.progress`` to the last epoch; save and evaluate after each; return the last evaluation.

    The last epoch is that of ``train.epochs``, or the one at which ``train.patience`` ends.
    """
    config, progress, result = run.config, run.progress, None
    patience = config.train.patience
    finished = progress.epoch >= config.train.epochs or progress.out_of_patience(patience)
    if run.val_loader is not None and progress.epoch and (finished or not progress.evaluated):
        # the rates of the last step, so that the checkpoint written again equals that of an uninterrupted run
        set_learning_rates(run.stepper.optimizer, progress.global_iter - 1, run.schedule_steps, config.optim)
        result = evaluate_epoch(run)  # the training is complete, or was interrupted before this evaluation
    for epoch in range(progress.epoch, config.train.epochs):
        if progress.out_of_patience(patience):
            run.log.line(
                f"the training ends after {epoch} of {config.train.epochs} epochs: {patience} without a better score "
                f"than that of epoch {progress.best_epoch} (train.patience)"
            )
            break
        train_epoch(run, epoch)
        progress.samples = 0
        if run.val_loader is None:
            if run.progress.global_iter == run.max_steps:
                break
            continue
        progress.epoch, progress.evaluated = epoch + 1, False
        save(run)
        result = evaluate_epoch(run)
    if run.val_loader is not None and run.world.is_main:
        store.prune(run.work_dir, keep=0)  # a finished run keeps the checkpoints of epochs only
    return result


def evaluate_epoch(run: TrainState) -> Evaluation:
    """Evaluate the current model, log the scores, and write the checkpoint again with the scores in it.

    With ``train.ema`` the scores that count are those of the averaged weights; those of the last step's are logged too.
    """
    progress = run.progress
    stop_if_asked(run)
    if run.average is None:
        result = scored(run)
    else:
        log_raw(run, scored(run))
        with run.average.applied():
            result = scored(run)
    report(result, run.config, run.log)
    name, value = result.primary_metric
    pts, vox = miou(result.pts), miou(result.vox)
    better = progress.improve(pts, vox, value)
    shown = []
    if result.pts is not None:
        shown = [("miou pts", pts, progress.best_val_miou_pts), ("miou vox", vox, progress.best_val_miou_vox)]
    if name != "miou_points":
        shown.append((name, value, progress.best_val_leading))
    for title, score, best in shown:
        now, record = ("n/a" if number is None else f"{number:.3f}" for number in (score, best))
        run.log.line(f"Current val {title} is {now} while the best val {title} is {record}")
    run.log.line(f"Current val loss is {result.loss:.3f}")
    values = result.as_dict(run.config.data.label_classes.names)
    run.log.record("eval", epoch=progress.epoch, step=progress.global_iter, **values)
    missing = not (run.work_dir / store.BEST).exists() and value == progress.best_val_leading
    save(run, best=better or missing)
    return result


def scored(run: TrainState) -> Evaluation:
    """Evaluate the weights that the model has now."""
    assert run.val_loader is not None
    epoch, between = run.progress.epoch, partial(between_batches, run)
    return evaluate(run.model, run.val_loader, run.config, run.world, run.device, run.log, epoch, between)


def log_raw(run: TrainState, result: Evaluation) -> None:
    """Log the scores of the last step's weights, beside which the average is evaluated, as a line and as a record."""
    name, value = result.primary_metric
    shown = "n/a" if value is None else f"{value:.3f}"
    run.log.line(f"Without averaging {name} is {shown} and the val loss {result.loss:.3f}; the average (EMA) follows")
    values = result.as_dict(run.config.data.label_classes.names)
    run.log.record("eval_raw", epoch=run.progress.epoch, step=run.progress.global_iter, **values)


def save(run: TrainState, best: bool = False) -> None:
    """Write the checkpoint of the finished epoch; every process waits for it. Raises SaveError in every process."""
    failure = write(run, store.epoch_name(run.progress.epoch), required=True, best=best)
    if failure:
        raise SaveError(failure)


def save_if_due(run: TrainState) -> None:
    """Start to write a checkpoint when it is due; after a signal to stop, wait for the file and raise Stopped.

    A signal and a save by minutes are noticed at the next step at which the processes agree (distributed/agreement.py).
    """
    if run.val_loader is None:
        return
    now = run.saver.due_by_steps(run.progress.global_iter)
    sums = run.agreement.ask(
        [run.signals.received is not None, run.world.is_main and run.saver.due_by_minutes()], at_once=now
    )
    if sums is None:
        return
    asked, due = sums[0], sums[1] or now
    if asked or due:
        failure = write(run, store.step_name(run.progress.global_iter), required=bool(asked))
        if failure:
            raise SaveError(failure)
    if asked:
        raise Stopped(stopped_at(run))


def write(run: TrainState, name: str, required: bool, best: bool = False) -> str:
    """Pass the state of the run to the writer thread; return the reason of a failure, or an empty string.

    With ``required``, wait until the file is written.
    """
    failure = ""
    run.watchdog.beat(f"saving {name}")
    # before the first step, the mid-epoch state is still that of the resumed checkpoint
    now = run.mid_epoch_state or capture_mid_epoch_state(run.global_batch, run.losses, run.world, run.device)
    now = {**now, "precision": run.precision.name}
    if isinstance(run.model, OwnModel):
        now[OWN] = run.model.source.text()
    if run.average is not None:
        now["ema"] = run.average.state()
    if run.world.is_main:
        content = checkpoint.capture(run.model, run.stepper, run.config, run.progress, {**now, **run.sets})
        try:
            run.saver.submit(name, content, required, best)
            if required:
                run.saver.wait()
        except SaveError as err:
            failure = str(err)
    return distributed.broadcast_string(failure) if required else failure


def stop_if_asked(run: TrainState, at_once: bool = True) -> None:
    """Raise Stopped in every process if any process received a signal. Call it only when nothing is unsaved.

    Without ``at_once`` a signal is noticed at the next call at which the processes agree.
    """
    if run.val_loader is None:
        return
    sums = run.agreement.ask([run.signals.received is not None], at_once)
    if sums is not None and sums[0]:
        raise Stopped(stopped_at(run))


def between_batches(run: TrainState) -> None:
    """Report progress to the watchdog and stop if a signal came, between the batches of an evaluation."""
    run.watchdog.beat(f"the evaluation after epoch {run.progress.epoch}")
    stop_if_asked(run, at_once=False)


def stopped_at(run: TrainState) -> str:
    progress = run.progress
    return (
        f"stopped by {run.signals.received or 'a signal to another process'} at epoch {progress.epoch}, iteration "
        f"{progress.global_iter}; {run.work_dir / store.LATEST} holds everything, and the same command resumes there"
    )


def timed(batches: Iterator[Batch], clock: StepClock) -> Iterator[Batch]:
    """Yield the same batches; record in ``clock`` how long each was waited for."""
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        clock.data_ready(asked)
        if batch is None:
            return
        yield batch


def maybe_no_sync(parallel: nn.Module, last_part: bool) -> ContextManager[None]:
    """Return a context without gradient synchronisation, except for the last batch of an accumulation."""
    return contextlib.nullcontext() if last_part or not isinstance(parallel, DDP) else parallel.no_sync()


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seed all random numbers from these three values, so that a resumed run repeats an uninterrupted one."""
    seed_all((seed * 100_003 + epoch) * 100_003 + rank)
