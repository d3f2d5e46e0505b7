"""What a checkpoint of a run holds: tensors and plain values only, so that reading one can never execute anything."""

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
    """How far a run has come. ``epoch`` is the one to train now, ``evaluated`` whether the one before was scored.

    ``samples`` are those of ``epoch``'s order that are done, over all processes.
    """

    epoch: int = 0
    samples: int = 0
    global_iter: int = 0
    evaluated: bool = False
    skipped_steps: int = 0  # left out, because their loss or gradient was not finite
    bad_samples: int = 0  # stood in for, because they could not be read
    best_val_miou_pts: Optional[float] = None
    best_val_miou_vox: Optional[float] = None
    best_val_leading: Optional[float] = None  # of the metric that chooses best.pth; see Evaluation.leading

    def improve(self, pts: Optional[float], vox: Optional[float], leading: Optional[float]) -> bool:
        """Take in the scores of an evaluation; True if the leading metric has never been better."""
        better = _exceeds(leading, self.best_val_leading)
        self.best_val_leading = leading if better else self.best_val_leading
        if _exceeds(pts, self.best_val_miou_pts):
            self.best_val_miou_pts = pts
        if _exceeds(vox, self.best_val_miou_vox):
            self.best_val_miou_vox = vox
        self.evaluated = True
        return better


def _exceeds(value: Optional[float], best: Optional[float]) -> bool:
    return value is not None and (best is None or value > best)


def capture(
    model: nn.Module, stepper: Stepper, config: Config, progress: Progress, moment: Optional[Dict[str, Any]] = None
) -> Dict[str, Any]:
    """Everything a checkpoint holds, copied to the CPU, so that training may go on while it is written.

    Takes as much memory as weights and optimiser state. ``moment`` is what the middle of an epoch needs besides.
    """
    content = {
        "format": FORMAT,
        "state_dict": model.state_dict(),
        "optimizer": portable_state(stepper.optimizer),
        "scaler": None if stepper.scaler is None else stepper.scaler.state_dict(),
        "config": _plain(dataclasses.asdict(config)),
        **dataclasses.asdict(progress),
        **(moment or {}),
    }
    copied: Dict[str, Any] = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), content)
    return copied


def difference(stored: Any, wanted: Any) -> str:
    """The fields in which two configurations of one kind differ, as text; empty where they agree."""
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
    """Put a checkpoint's weights, optimiser state and counters in place.

    Also says in which settings this run differs from the one that wrote it. Raises CheckpointError if the file belongs
    to another model or optimiser, or holds what is not finite; nothing is dropped or guessed.
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
        group.update(own)  # moments come from the file, settings from the configuration
    progress = Progress(**{f.name: content.get(f.name, f.default) for f in dataclasses.fields(Progress)})
    if "best_val_leading" not in content:  # written before dense labels, when points led everywhere
        progress.best_val_leading = progress.best_val_miou_pts
    return progress, difference(stored, config)


def _check_finite(content: Dict[str, Any], source: Path) -> None:
    """Raises CheckpointError that names the weights and moments of the optimiser that are not finite."""
    tensors = dict(content["state_dict"])
    for place, state in content["optimizer"]["state"].items():
        tensors.update({f"{name} of parameter {place}": v for name, v in state.items() if isinstance(v, Tensor)})
    strange = nonfinite(tensors)
    if strange:
        raise CheckpointError(
            f"checkpoint {source}: {len(strange)} tensors hold NaN or infinite numbers: {some(strange)}; name one from "
            "before the training diverged with --resume-from, or choose a fresh --work-dir"
        )


def _check_moments(optimizer: torch.optim.Optimizer, content: Dict[str, Any]) -> None:
    """Raises ValueError for moments of another shape than their parameters: PyTorch would take them and fail later."""
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
