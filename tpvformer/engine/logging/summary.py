"""Write ``summary.json``, the outcome of one run, for launchers and people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Optional

import torch

from tpvformer.config import Config
from tpvformer.engine.checkpoint.state import Progress
from tpvformer.engine.device.accelerator import device_name, peak_memory_mib
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation.evaluate import Evaluation
from tpvformer.engine.logging.log import RunLog, finite
from tpvformer.engine.logging.meters import StepClock
from tpvformer.files import replacing

SUMMARY = "summary.json"


def remove_stale(work_dir: Path) -> None:
    """Remove the summary of an earlier run, so that a failed run leaves none."""
    (work_dir / SUMMARY).unlink(missing_ok=True)


def summarise(
    config: Config,
    world: World,
    device: torch.device,
    progress: Progress,
    clock: StepClock,
    final_loss: Optional[float],
    evaluation: Optional[Evaluation],
    log: RunLog,
    duration: float,
) -> Dict[str, Any]:
    """Return the results of a run. Times and loss are None if it trained no step, scores if it evaluated nothing.

    ``samples_per_s`` is the global batch (batch size x accumulation x processes) over the mean measured step.
    """
    step, measured, steps = clock.result()
    batch = config.data.batch_size * config.train.accumulate * world.size
    return {
        "config": config.name,
        "run": None if log.path is None else log.path.stem,
        "device": device.type,
        "device_name": device_name(device),
        "torch": torch.__version__,
        "seed": config.train.seed,
        "world_size": world.size,
        "batch_size": config.data.batch_size,
        "accumulate": config.train.accumulate,
        "global_batch": batch,
        "epochs": progress.epoch,
        "global_iter": progress.global_iter,
        "steps": steps,
        "measured_steps": measured,
        "step_time_ms": None if step is None else step * 1e3,
        "waiting_share": clock.waiting_share,  # share of the steps' time spent waiting for data
        "samples_per_s": None if step is None else batch / step,
        "final_loss": final_loss,
        "skipped_steps": progress.skipped_steps,  # their loss or gradient was not finite
        "bad_samples": progress.bad_samples,  # unreadable samples, replaced by others
        "evaluation": None if evaluation is None else evaluation.as_dict(config.data.label_classes.names),
        "best_val_miou_pts": progress.best_val_miou_pts,
        "best_val_miou_vox": progress.best_val_miou_vox,
        "leading_metric": None if evaluation is None else evaluation.primary_metric[0],  # the one that chooses best.pth
        "best_val_leading": progress.best_val_leading,
        "best_epoch": progress.best_epoch,
        "stopped_early": progress.epoch < config.train.epochs and progress.out_of_patience(config.train.patience),
        "peak_memory_mib": peak_memory_mib(device),
        "duration_s": duration,
    }


def write(work_dir: Path, summary: Dict[str, Any]) -> None:
    """Write the summary, completely or not at all."""
    with replacing(work_dir / SUMMARY) as partial:
        partial.write_text(json.dumps(finite(summary), indent=1, allow_nan=False) + "\n")
