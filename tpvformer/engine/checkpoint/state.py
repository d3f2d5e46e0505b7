"""Capture and restore the content of a checkpoint: only tensors and plain values, so that reading executes no code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tpvformer.compat.checkpoints import FORMAT, nonfinite
from tpvformer.compat.wrappers import some
from tpvformer.config import Config, from_dict
from tpvformer.engine.checkpoint.schema import TO_RESUME
from tpvformer.engine.optim import Stepper, load_portable_state, portable_state
from tpvformer.errors import CheckpointError, ConfigError


@dataclass
class Progress:
    """Hold the progress of a run: ``epoch`` is the one to train now, ``evaluated`` whether the previous one was scored.

    ``samples`` counts the finished samples of ``epoch``, over all processes.
    """

    epoch: int = 0
    samples: int = 0
    global_iter: int = 0
    evaluated: bool = False
    skipped_steps: int = 0  # skipped, because their loss or gradient was not finite
    bad_samples: int = 0  # replaced by other samples, because they could not be read
    best_val_miou_pts: Optional[float] = None
    best_val_miou_vox: Optional[float] = None
    best_val_leading: Optional[float] = None  # of the metric that chooses best.pth; see Evaluation.primary_metric
    best_epoch: int = 0  # the epochs that were finished at that value; 0 before there is one

    def improve(self, pts: Optional[float], vox: Optional[float], primary: Optional[float]) -> bool:
        """Record the scores of an evaluation; return whether the primary metric is the best so far."""
        better = _exceeds(primary, self.best_val_leading)
        if better:
            self.best_val_leading, self.best_epoch = primary, self.epoch
        if _exceeds(pts, self.best_val_miou_pts):
            self.best_val_miou_pts = pts
        if _exceeds(vox, self.best_val_miou_vox):
            self.best_val_miou_vox = vox
        self.evaluated = True
        return better

    def out_of_patience(self, patience: int) -> bool:
        """Return whether ``patience`` epochs were scored since the best one; never with 0, nor within an epoch."""
        waited = self.epoch - self.best_epoch
        return 0 < patience <= waited and self.evaluated and not self.samples


def _exceeds(value: Optional[float], best: Optional[float]) -> bool:
    return value is not None and (best is None or value > best)


def capture(
    model: nn.Module,
    stepper: Stepper,
    config: Config,
    progress: Progress,
    mid_epoch_state: Optional[Dict[str, Any]] = None,
) -> Dict[str, Any]:
    """Copy the content of a checkpoint to the CPU, so that training can continue while it is written.

    The copy takes as much memory as weights and optimiser state. ``mid_epoch_state``: see ``capture_mid_epoch_state``,
    and what else belongs to the file, such as the average of the weights.
    """
    content = {
        "format": FORMAT,
        "state_dict": model.state_dict(),
        "optimizer": portable_state(stepper.optimizer),
        "scaler": None if stepper.scaler is None else stepper.scaler.state_dict(),
        "config": _plain(dataclasses.asdict(config)),
        **dataclasses.asdict(progress),
        **(mid_epoch_state or {}),
    }
    copied: Dict[str, Any] = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), content)
    return copied


def difference(stored: Any, wanted: Any) -> str:
    """Return the fields in which two configurations differ, as text; empty if they are equal."""
    parts = []
    for field in dataclasses.fields(stored):
        a, b = getattr(stored, field.name), getattr(wanted, field.name)
        if dataclasses.is_dataclass(a) and a != b:
            parts.append(f"{field.name}: {difference(a, b)}")
        elif a != b:
            parts.append(f"{field.name} is {a} there and {b} here")
    return ", ".join(parts)


def resume(
    content: Dict[str, Any], source: Path, model: nn.Module, stepper: Stepper, config: Config
) -> Tuple[Progress, str]:
    """Restore weights, optimiser state and counters; return the progress and the settings that differ, as text.

    Raises CheckpointError if the file belongs to another model or optimiser, or holds values that are not finite. Every
    value must fit; nothing is skipped.
    """
    absent = [name for name in TO_RESUME if name not in content]
    if absent:
        raise CheckpointError(f"checkpoint {source} has no {absent[0]!r}; it is damaged, name another one")
    try:
        stored = from_dict(content["config"])
    except ConfigError as err:
        raise CheckpointError(f"checkpoint {source}: {err}") from err
    if stored.model != config.model:
        raise CheckpointError(
            f"checkpoint {source} holds another model ({difference(stored.model, config.model)}); "
            "resume with the configuration it was trained with, or choose a fresh --work-dir"
        )
    _check_finite(content, source)
    try:
        model.load_state_dict(content["state_dict"], strict=True)
        settings = [{k: v for k, v in g.items() if k != "params"} for g in stepper.optimizer.param_groups]
        _check_moments(stepper.optimizer, content["optimizer"])
        load_portable_state(stepper.optimizer, content["optimizer"])
        if stepper.scaler is not None and content.get("scaler"):
            stepper.scaler.load_state_dict(content["scaler"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as err:
        raise CheckpointError(f"checkpoint {source} does not fit: {' '.join(str(err).split())}") from err
    for group, own in zip(stepper.optimizer.param_groups, settings):
        group.update(own)  # the file gives the moments, the configuration the settings
    progress = Progress(**{f.name: content.get(f.name, f.default) for f in dataclasses.fields(Progress)})
    if "best_val_leading" not in content:  # files of older versions, whose primary metric is point mIoU
        progress.best_val_leading = progress.best_val_miou_pts
    if "best_epoch" not in content:  # nor did they count: train.patience begins here
        progress.best_epoch = progress.epoch
    return progress, difference(stored, config)


def _check_finite(content: Dict[str, Any], source: Path) -> None:
    """Raise CheckpointError that names the weights and optimiser moments that are not finite."""
    tensors = dict(content["state_dict"])
    tensors.update({f"{name} of the average": v for name, v in content.get("ema", {}).get("state_dict", {}).items()})
    for place, state in content["optimizer"]["state"].items():
        tensors.update({f"{name} of parameter {place}": v for name, v in state.items() if isinstance(v, Tensor)})
    strange = nonfinite(tensors)
    if strange:
        raise CheckpointError(
            f"checkpoint {source}: {len(strange)} tensors hold NaN or infinite numbers: {some(strange)}; name one from "
            "before the training diverged with --resume-from, or choose a fresh --work-dir"
        )


def _check_moments(optimizer: torch.optim.Optimizer, content: Dict[str, Any]) -> None:
    """Raise ValueError for moments of another shape than their parameters: PyTorch would load them and fail later."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = [place for group in content["param_groups"] for place in group["params"]]
    if len(places) != len(parameters) or len(set(places)) != len(places):
        raise ValueError(f"its optimiser has {len(places)} parameters, this one {len(parameters)}")
    shapes = dict(zip(places, (parameter.shape for parameter in parameters)))
    for place, state in content["state"].items():
        for name, value in state.items():
            if place not in shapes or (isinstance(value, Tensor) and value.ndim and value.shape != shapes[place]):
                raise ValueError(f"its optimiser's {name[:40]} of parameter {place} has another shape than that")
            if value is None or (name != "step" and not isinstance(value, Tensor)):
                raise ValueError(f"its optimiser's {name[:40]} of parameter {place} is no tensor")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
