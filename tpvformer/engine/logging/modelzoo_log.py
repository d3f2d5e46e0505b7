"""Write the result of a finished run in the format of Ascend's ModelZoo."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Dict, List, Optional

from tpvformer.errors import ConfigError
from tpvformer.untrusted.run_files import check_record, check_summary
from tpvformer.untrusted.text import parse_json

NETWORK = "TPVFormer"


def publish(work_dir: Path, duration: Optional[float] = None) -> List[str]:
    """Write ``<CaseName>.log`` and ``train_<CaseName>_loss.txt`` from ``summary.json``; return the lines to print.

    ``duration`` is the time in seconds from starting to ending all processes, if the caller has measured it. Raises
    ConfigError if the folder holds no finished run.
    """
    source = work_dir / "summary.json"
    if not source.is_file():
        raise ConfigError(f"{source} does not exist: no run has finished in {work_dir}")
    try:
        summary: Dict[str, Any] = parse_json(source.read_bytes())
        check_summary(summary)
    except ValueError as err:  # TextError, SchemaError
        raise ConfigError(
            f"{source} is not the outcome of a run ({err}); run it again, or name another folder"
        ) from err
    seconds = summary["duration_s"] if duration is None else duration
    accuracy = summary["best_val_miou_pts" if _has_points(summary) else "best_val_leading"]
    kind = "perf" if summary["evaluation"] is None else "miou"
    case = f"{summary['config']}_bs{summary['batch_size']}_{summary['world_size']}p_{kind}"
    fps, step = _number(summary["samples_per_s"], 3), _number(summary["step_time_ms"], 3)
    keys = {
        "Network": NETWORK,
        "RankSize": summary["world_size"],
        "BatchSize": summary["batch_size"],
        "DeviceType": platform.machine(),
        "CaseName": case,
        "ActualFPS": fps,
        "TrainingTime": step,
        "ActualLoss": _number(summary["final_loss"], 4),
        "E2ETrainingTime": _number(seconds, 1),
        "miou": _number(accuracy, 3),
    }
    (work_dir / f"{case}.log").write_text(
        "".join(f"{name} = {value}\n" for name, value in keys.items()), encoding="utf-8"
    )
    losses = "".join(f"{value}\n" for value in _losses(work_dir, summary["run"]))
    (work_dir / f"train_{case}_loss.txt").write_text(losses)
    return [
        "------------------ Final result ------------------",
        f"Final Performance images/sec : {fps}",
        f"E2E Training Duration sec : {_number(seconds, 1)}",
        f"TrainingTime for step(ms) : {step}",
        f"Final Train Accuracy : {_number(accuracy, 3)}",
        *_accuracy(summary),
        _speed(summary),
        f"written to {work_dir / case}.log",
    ]


def _accuracy(summary: Dict[str, Any]) -> List[str]:
    """Return a line that explains "Final Train Accuracy"; none if nothing was evaluated."""
    if summary["evaluation"] is None:
        return []
    what = "point mIoU" if _has_points(summary) else summary["leading_metric"]
    return [
        f"(of the validation set; Ascend's scripts look for that name. accuracy: best {what} in percent, classes "
        "without ground truth left out)"
    ]


def _speed(summary: Dict[str, Any]) -> str:
    """Return a line that explains how the speed was measured."""
    cards = f"{summary['world_size']} x {summary['device_name']}"
    if not summary["measured_steps"]:
        speed = "no step was trained (the run was finished before), so there is no speed"
    else:
        batch, measured, steps = summary["global_batch"], summary["measured_steps"], summary["steps"]
        speed = f"speed: {batch} samples a step over the mean of {measured} of {steps} steps, on {cards}"
    if summary["evaluation"] is None:
        return f"({speed}; nothing was evaluated)"
    return f"({speed})"


def _has_points(summary: Dict[str, Any]) -> bool:
    """Return whether the accuracy is point mIoU; without points it is the primary metric."""
    return summary["evaluation"] is None or summary["evaluation"].get("pts", {}) is not None


def _losses(work_dir: Path, run: Optional[str]) -> List[Optional[float]]:
    """Return the printed losses of this run."""
    source, losses = work_dir / "metrics.jsonl", []
    if not source.is_file():
        raise ConfigError(f"{source} does not exist: no run has written to {work_dir}")
    for number, line in enumerate(source.read_bytes().splitlines(), start=1):
        try:
            record = parse_json(line)
            check_record(record)
        except ValueError as err:  # TextError, SchemaError
            raise ConfigError(f"{source}, line {number}: {err}; take the line out") from err
        if record["kind"] == "train" and record.get("run") == run:
            losses.append(record.get("loss"))
    return losses


def _number(value: Optional[float], digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
