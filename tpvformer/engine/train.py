"""Build a training run from a configuration and run it; set up processes, device and model for training and scoring."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, cast

import torch
from torch.utils.data import DataLoader

from tpvformer import __version__
from tpvformer.compat import checkout
from tpvformer.compat.own_model import OwnSource
from tpvformer.config import Config, TrainConfig
from tpvformer.data.dataset import FrameDataset, open_frames
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.checkpoint.resume import ResumePoint, find_origin, keep_global_batch, refuse_mixed
from tpvformer.engine.checkpoint.saver import Saver
from tpvformer.engine.checkpoint.state import Progress
from tpvformer.engine.device import precision
from tpvformer.engine.device.accelerator import (
    device_name,
    enable_determinism,
    image_dtype,
    image_layout,
    pick_device,
)
from tpvformer.engine.device.compile import compile_network, wanted
from tpvformer.engine.device.memory import card_memory
from tpvformer.engine.device.precision import Precision
from tpvformer.engine.device.precompile import agree_on_threads, warm_up
from tpvformer.engine.device.preflight import check_cameras, check_kernels, check_order, check_same_cameras
from tpvformer.engine.distributed import collectives as distributed
from tpvformer.engine.distributed import consistency as same
from tpvformer.engine.distributed.agreement import Agreement
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.distributed.parent import end_with_parent
from tpvformer.engine.distributed.signals import Stopped, StopSignals
from tpvformer.engine.evaluation.evaluate import Evaluation
from tpvformer.engine.faults.bad_samples import BadSamples
from tpvformer.engine.faults.explain_crash import explain_crash
from tpvformer.engine.faults.nonfinite import NonFiniteGuard
from tpvformer.engine.faults.watchdog import Watchdog
from tpvformer.engine.foreign.own_model import OwnModel
from tpvformer.engine.loading import Loading
from tpvformer.engine.logging import summary, writers
from tpvformer.engine.logging.environment import environment_info
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.logging.meters import LossMeter, StepClock
from tpvformer.engine.loop import TrainState, run_epochs
from tpvformer.engine.optim import Stepper
from tpvformer.engine.optim.average import WeightAverage
from tpvformer.engine.start import check_start, start_from
from tpvformer.engine.work_dir.folder import check_name, entered
from tpvformer.errors import ConfigError
from tpvformer.model import TPVFormer
from tpvformer.runtime.cores import load_of_others

_STARTING = 1800.0  # seconds to read the infos and compile kernels; a longer start counts as a hang


def train(
    config: Config,
    work_dir: Path,
    device: str = "auto",
    resume_from: Optional[Path] = None,
    max_steps: Optional[int] = None,
    deterministic: bool = False,
    command: str = "",
    own: Optional[OwnSource] = None,
    said: bool = False,
) -> Dict[str, Any]:
    """Train to the end of ``config.train.epochs``; return the summary and write it to the work dir.

    Without ``resume_from`` the run continues from the newest checkpoint in ``work_dir``. ``max_steps`` measures speed:
    the run starts afresh, stops after that many optimiser steps, and neither evaluates nor saves. After SIGTERM,
    SIGUSR1 or SIGHUP the run saves and stops: the summary is then empty and not written. ``command`` is the typed
    command line, for starts.jsonl. ``own``: a checkout's own model is trained in place of this package's. ``said``: the
    user has said which of the two is meant, so the log has no remark on changed model code. Raises ConfigError,
    DataError, CheckpointError, NonFiniteLoss, SaveError.
    """
    began = time.perf_counter()
    writers.check(config.train.writers)
    check_name(work_dir)
    world, torch_device, remarks = enter(device, config.train.hang_minutes > 0, said)
    if deterministic:
        remarks = remarks + enable_determinism(torch_device)
    with entered(work_dir, world):
        model = "" if own is None else own.text()
        settings = {"resume_from": resume_from, "max_steps": max_steps, "deterministic": deterministic}
        same.check_settings(config, **settings, own_model=model)
        _remove_leftovers(work_dir, world)
        with contextlib.closing(RunLog(work_dir, world.is_main)) as log:
            _log_start(log, remarks, config, deterministic)
            try:
                config, origin = prepare(config, work_dir, world, log, resume_from, max_steps, own)
                with Watchdog(60 * config.train.hang_minutes and _STARTING, work_dir, world.rank):
                    run = build(config, work_dir, world, torch_device, log, max_steps, own)
                start_from(run, origin)
                del origin  # its tensors are as large as model and optimiser state
                _record_start(run, command, began)
                evaluation = fit(run)
                outcome = finish(run, evaluation, began)
            except Stopped as stopped:
                log.line(str(stopped))
                outcome = {}
        distributed.stop()
        return outcome


def enter(device: str, watched: bool = False, said: bool = False) -> Tuple[World, torch.device, List[str]]:
    """Join the process group and choose the device; return both, with remarks on the choice.

    ``watched``: see ``distributed.start``. ``said``: see ``train``.
    """
    end_with_parent()
    world = distributed.read_world()
    chosen, remarks = pick_device(device, world.local_rank, world.local_size)
    if chosen.type == "cpu":
        agree_on_threads()
    distributed.start(world, chosen, watched)
    if world.is_main and not said:
        remarks = remarks + checkout.remarks(Path.cwd())
    return world, chosen, remarks


def _remove_leftovers(work_dir: Path, world: World) -> None:
    """Remove the summary and the incomplete checkpoints of an earlier run."""
    if world.is_main:
        summary.remove_stale(work_dir)
        store.remove_partial(work_dir)


def _log_start(log: RunLog, remarks: List[str], config: Config, deterministic: bool) -> None:
    for remark in remarks:
        log.warn(remark)
    if deterministic:
        log.line(f"deterministic algorithms; all random numbers follow from train.seed, {config.train.seed}")


def prepare(
    config: Config,
    work_dir: Path,
    world: World,
    log: RunLog,
    resume_from: Optional[Path],
    max_steps: Optional[int],
    own: Optional[OwnSource] = None,
) -> Tuple[Config, Optional[ResumePoint]]:
    """Return the configuration to train and the checkpoint to resume from, None for a run that starts afresh.

    A resumed run keeps the checkpoint's global batch. Raises ConfigError and CheckpointError.
    """
    origin = find_origin(work_dir, resume_from, world, log) if resume_from or max_steps is None else None
    if origin is not None:
        refuse_mixed(origin, own)
        return keep_global_batch(origin, config, world, log), origin
    check_start(config, max_steps)
    return config, None


def build(
    config: Config,
    work_dir: Path,
    world: World,
    device: torch.device,
    log: RunLog,
    max_steps: Optional[int],
    own: Optional[OwnSource] = None,
) -> TrainState:
    """Build data sets, loaders, model, optimiser and meters for the start of a run."""
    chosen = precision.choose_together(config.train.precision, device, world)
    here = chosen.applied(config)  # the precision in use; config.yaml and checkpoints keep the setting
    _log_setup(config, world, device, chosen, log)
    if world.is_main:
        (work_dir / "config.yaml").write_text(config.dump(), encoding="utf-8")
    loading, train_loader, val_loader, sets = build_loaders(config, world, device, log, evaluates=max_steps is None)
    train_set = cast(FrameDataset, train_loader.dataset)
    if own is None:
        model = _build_compiled(here, train_set, world, device, log)
    else:
        from tpvformer.engine.foreign.checkout_model import build_own

        for loader in filter(None, (train_loader, val_loader)):
            check_order(cast(FrameDataset, loader.dataset))
        model = build_own(own, here, world, device, log)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.line(f"Number of params: {trainable}; {len(train_set)} training samples")
    steps = len(train_loader) // config.train.accumulate * config.train.epochs
    steps = steps if max_steps is None else min(steps, max_steps)
    return TrainState(
        config=config,
        work_dir=work_dir,
        world=world,
        device=device,
        log=log,
        model=model,
        sets=sets,
        parallel=distributed.wrap_ddp(model, world, device, own is not None and own.unused),
        precision=chosen,
        stepper=Stepper(model, config.optim, device, chosen.name),
        average=WeightAverage(model, config.train.ema) if config.train.ema else None,
        loading=loading,
        train_loader=train_loader,
        val_loader=val_loader,
        max_steps=max_steps,
        progress=Progress(),
        clock=StepClock(min(20, steps // 5)),
        losses=LossMeter(world),
        guard=NonFiniteGuard(config, model, train_set, world, device, log),
        bad_samples=BadSamples(config.train.max_skipped),
        watchdog=Watchdog(60 * config.train.hang_minutes, work_dir, world.rank),
        saver=Saver(work_dir, config.train, log),
        signals=StopSignals(),
        agreement=Agreement(world),
    )


def _log_setup(config: Config, world: World, device: torch.device, chosen: Precision, log: RunLog) -> None:
    """Log what runs where, in which precision, and whether other programs use the cores; set up the precision."""
    threads = f" ({torch.get_num_threads()} threads each)" if device.type == "cpu" else ""
    log.line(
        f"{config.name} on {world.size} x {device_name(device)}{threads}, torch {torch.__version__}, seed "
        f"{config.train.seed}, {chosen.name}, batch {config.data.batch_size} x {config.train.accumulate} a process"
    )
    precision.begin(chosen, config, device, log)
    load = load_of_others() if world.is_main and device.type == "cpu" else None
    if load is not None:
        log.warn(load)


def build_loaders(
    config: Config, world: World, device: torch.device, log: RunLog, evaluates: bool
) -> Tuple[Loading, DataLoader, Optional[DataLoader], Dict[str, str]]:
    """Return the maker of loaders, the training loader, the validation loader (None unless ``evaluates``), the data
    sets' identities.

    Raises ConfigError and DataError, in all processes if their data differ.
    """
    train_set = open_frames(config, "train")
    check_cameras(train_set, config)
    if train_set.camera_note:
        log.line(train_set.camera_note)
    sets = {same.TRAIN: same.identity(train_set)}
    loading = Loading(train_set, config, world, device, log.line, log.warn)
    train_loader = loading.loader(train_set, train=True)
    val_loader = None
    if evaluates:
        val_set = open_frames(config, "val")
        check_cameras(val_set, config)
        check_same_cameras(train_set, val_set)
        if val_set.camera_note and val_set.infos != train_set.infos:
            log.line(val_set.camera_note)
        val_loader = loading.loader(val_set, train=False)
        sets[same.VAL] = same.identity(val_set)
    same.check_data(**sets)
    if len(train_loader) < config.train.accumulate:
        raise ConfigError(
            f"train.accumulate is {config.train.accumulate}, but an epoch has {len(train_loader)} batches a process"
        )
    return loading, train_loader, val_loader, sets


def _build_compiled(
    config: Config, train_set: FrameDataset, world: World, device: torch.device, log: RunLog
) -> TPVFormer:
    """Return the model with its kernels checked and compiled, and its network compiled if the configuration asks."""
    model = build_model(config, device)
    for remark in check_kernels(model, device):
        log.warn(remark)
    warm_up(config, train_set, world, device)
    if wanted(config.train.compile, device):
        compile_network(model, device, config.train.accumulate, log.warn)
    return model


def build_model(config: Config, device: torch.device) -> TPVFormer:
    """Return the model on the device, with fresh weights from the configured seed."""
    torch.manual_seed(config.train.seed)
    model = TPVFormer(config.model)
    model.freeze(config.train.freeze)
    return settle(model, config, device)


def settle(model: TPVFormer, config: Config, device: torch.device) -> TPVFormer:
    """Move a model to a device, in the memory layout and precision for that device; return the model."""
    model = model.to(device)
    model.image_layout = image_layout(device)
    # weights of convolutions have the images' memory format, and DDP exchanges gradients in the weights' format
    model = model.to(memory_format=model.image_layout)  # ty: ignore[no-matching-overload]  # unknown to torch's stubs
    set_precision(model, config.train, device)
    return model


def set_precision(model: TPVFormer, train: TrainConfig, device: torch.device) -> None:
    """Set the number format of the image network, and the activation checkpointing.

    Without a setting, nothing is recomputed on accelerators, where the extra work of the host costs more time than the
    memory is worth. Nothing is recomputed in bf16 either, because activations are already half as large.
    """
    name = precision.choose(train.precision, device).name
    model.image_autocast = image_dtype(device, name)
    model.recompute(train.recompute or ("cheap" if device.type == "cpu" and name == "fp32" else "none"))
    # of deformable convolutions: all are kept if "none" is asked for, by default those that a tenth of the card holds
    shares = {None: card_memory(device) // 10, "none": sys.maxsize}
    model.backbone.column_budget = shares.get(train.recompute, 0)


def _record_start(run: TrainState, command: str, began: float) -> None:
    """Append this start to starts.jsonl: what the process runs, where, since when and from which step.

    ``began`` is the value of ``time.perf_counter`` at the start. Unless ``max_steps`` is set, remove the records that
    the run repeats, and attach the metric writers.
    """
    log, step = run.log, run.progress.global_iter
    if log.path is None:
        return
    if run.max_steps is None:
        log.cut(step, run.progress.evaluated)
        log.attach(writers.Writers(run.config, run.work_dir, step, log.warn))
    start = {"run": log.path.stem, "step": step, "max_steps": run.max_steps, "world_size": run.world.size}
    start.update(run.precision.facts())
    past = time.perf_counter() - began
    around = {**environment_info(run.device, "tpvformer", past), "command": command, "tpvformer": __version__}
    with (run.work_dir / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**start, **around}) + "\n")


def fit(run: TrainState) -> Optional[Evaluation]:
    """Train and evaluate under the watchdog and the signal handlers; return the last evaluation.

    Raises Stopped after a signal to stop, and RunEnded for crashes with outside causes.
    """
    signals = run.signals if run.max_steps is None else contextlib.nullcontext()
    own = isinstance(run.model, OwnModel)
    explained = explain_crash(run.config, run.precision.name, run.device, lambda: run.watchdog.doing, own)
    with contextlib.closing(run.saver), signals, run.watchdog, explained:
        evaluation = run_epochs(run)
    if run.clock.waiting_share is not None:
        share = 100 * run.clock.waiting_share
        run.log.line(f"{100 - share:.1f} % of the steps' time went by computing, {share:.1f} % waiting for data")
    return evaluation


def finish(run: TrainState, evaluation: Optional[Evaluation], began: float) -> Dict[str, Any]:
    """Return the summary of the run and write it to the work dir. ``began``: see ``_record_start``."""
    duration = time.perf_counter() - began
    outcome = summary.summarise(
        run.config, run.world, run.device, run.progress, run.clock, run.losses.last, evaluation, run.log, duration
    )
    outcome.update(run.precision.facts())
    if run.world.is_main:
        summary.write(run.work_dir, outcome)
    return outcome
