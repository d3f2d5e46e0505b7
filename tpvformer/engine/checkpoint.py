"""Checkpoints of a run: tensors and plain values only, so that reading one can never execute anything.

``epoch_<n>.pth`` after every epoch, ``latest.pth`` pointing at the newest, ``best.pth`` a copy of the one with the
highest leading metric: point mIoU, or that of dense labels where they are configured. Every file appears whole or not
at all.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tpvformer.compat.checkpoints import FORMAT
from tpvformer.compat.errors import CheckpointError
from tpvformer.compat.tensors import read_archive
from tpvformer.config import Config, ConfigError, from_dict

from .optim import Stepper, load_portable_state, portable_state

LATEST = "latest.pth"
BEST = "best.pth"


@dataclass
class Progress:
    """How far a run has come. ``epoch`` is the next one to train, ``evaluated`` whether the last one was scored."""

    epoch: int = 0
    global_iter: int = 0
    evaluated: bool = False
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


def save(work_dir: Path, model: nn.Module, stepper: Stepper, config: Config, progress: Progress) -> Path:
    """Write ``epoch_<n>.pth`` and point ``latest.pth`` at it (relative, so that the folder can be moved)."""
    path = work_dir / f"epoch_{progress.epoch}.pth"
    content = {
        "format": FORMAT,
        "state_dict": model.state_dict(),
        "optimizer": portable_state(stepper.optimizer),
        "scaler": None if stepper.scaler is None else stepper.scaler.state_dict(),
        "config": _plain(dataclasses.asdict(config)),
        **dataclasses.asdict(progress),
    }
    content = tree_map_only(Tensor, Tensor.cpu, content)  # to be read where there is no such device
    _replace(path, lambda temporary: torch.save(content, temporary))
    _point(work_dir / LATEST, path)
    return path


def keep_best(path: Path) -> None:
    """Copy the checkpoint at ``path`` to ``best.pth`` beside it."""
    _replace(path.with_name(BEST), lambda temporary: shutil.copyfile(path, temporary))


def read(path: Path) -> Dict[str, Any]:
    """The content of a checkpoint written by ``save``, on the CPU. Raises CheckpointError."""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"checkpoint {path} points at {os.readlink(path)}, which is gone; name another file")
    content = read_archive(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} was not written by this trainer, so it has no run to resume; "
            "to start from its weights set train.load_from"
        )
    return content


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
    to another model or optimiser; nothing is dropped or guessed.
    """
    try:
        stored = from_dict(content["config"])
    except ConfigError as err:
        raise CheckpointError(f"checkpoint {source}: {err}") from err
    if stored.model != config.model:
        raise CheckpointError(
            f"checkpoint {source} holds another model ({difference(stored.model, config.model)}); "
            "resume with the configuration it was trained with, or choose a fresh --work-dir"
        )
    try:
        model.load_state_dict(content["state_dict"], strict=True)
        settings = [{k: v for k, v in g.items() if k != "params"} for g in stepper.optimizer.param_groups]
        load_portable_state(stepper.optimizer, content["optimizer"])
        if stepper.scaler is not None and content.get("scaler"):
            stepper.scaler.load_state_dict(content["scaler"])
    except (RuntimeError, ValueError) as err:
        raise CheckpointError(f"checkpoint {source} does not fit: {' '.join(str(err).split())}") from err
    for group, own in zip(stepper.optimizer.param_groups, settings):
        group.update(own)  # moments come from the file, settings from the configuration
    progress = Progress(**{f.name: content.get(f.name, f.default) for f in dataclasses.fields(Progress)})
    if "best_val_leading" not in content:  # written before dense labels, when points led everywhere
        progress.best_val_leading = progress.best_val_miou_pts
    return progress, difference(stored, config)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Fill a temporary file, force it to the disk, and only then let it take the place of ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _point(link: Path, target: Path) -> None:
    """Make ``link`` a relative symbolic link to its neighbour ``target``; a copy where the file system has no links."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except OSError:
        _replace(link, lambda copy: shutil.copyfile(target, copy))
        return
    os.replace(temporary, link)
