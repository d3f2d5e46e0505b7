"""Check that settings and data are equal in all processes, and that a resumed run has the data of its checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Dict

import torch
import torch.distributed as dist

from tpvformer import __version__
from tpvformer.compat import CheckpointError
from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.engine.distributed import collectives as distributed
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import ConfigError

# settings that may differ between machines: paths, and settings that do not change results
_FREE = ("root", "train_infos", "val_infos", "test_infos", "occupancy_root", "image_cache", "workers")
TRAIN, VAL = "train_data", "val_data"  # keys of a checkpoint: identity of the training and of the validation set


def identity(data: FrameDataset) -> str:
    """Return the number of samples of a data set, and a digest of their tokens in order."""
    digest = hashlib.sha256("\n".join(data.tokens).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{len(data)} samples {digest[:16]}"


def check_settings(config: Config, **typed: Any) -> None:
    """Raise ConfigError in all processes if one has other settings than process 0; ``typed`` are its options."""
    tree = dataclasses.asdict(config)
    tree["data"] = {name: value for name, value in tree["data"].items() if name not in _FREE}
    options = {f"option {name}": str(value) for name, value in typed.items()}
    _check({**_flat(tree), **options, "torch": torch.__version__, "tpvformer": __version__})


def check_data(**sets: str) -> None:
    """Raise ConfigError in all processes if one has other data sets than process 0."""
    _check({name.replace("_", " "): value for name, value in sets.items()})


def _check(values: Dict[str, Any]) -> None:
    if not dist.is_initialized():
        return
    mine, rank = json.loads(json.dumps(values)), dist.get_rank()
    first = json.loads(distributed.broadcast_string(json.dumps(values)))
    different = [
        f"{name} is {first.get(name)} in process 0 and {mine.get(name)} in process {rank}"
        for name in sorted({*first, *mine})
        if first.get(name) != mine.get(name)
    ]
    found = [text for text in distributed.all_gather_strings("; ".join(different[:5])) if text]
    if found:
        more = f" (and {len(found) - 1} more processes differ)" if len(found) > 1 else ""
        raise ConfigError(
            f"the processes of this run differ: {found[0]}{more}; start all with the same command, configuration, data "
            "and packages"
        )


def _flat(tree: Dict[str, Any], start: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{start}{name}.") if isinstance(value, dict) else {f"{start}{name}": value})
    return flat


def check_resumed(content: Dict[str, Any], source: Path, now: Dict[str, str], log: RunLog) -> None:
    """Compare the data sets of a checkpoint with those of the run, ``now``; files of older versions store none.

    In the middle of an epoch another training set raises CheckpointError, because the sample order would not match.
    Between epochs, and for another validation set, a warning is logged.
    """
    stored = {name: content[name] for name in (TRAIN, VAL) if content.get(name)}
    if stored.get(TRAIN, now[TRAIN]) != now[TRAIN]:
        told = f"{_told(stored[TRAIN], now[TRAIN])} the training set"
        if content.get("samples"):
            raise CheckpointError(
                f"checkpoint {source} lies in the middle of an epoch, and the data has changed since: {told}; bring "
                "the info file back, or go on from a checkpoint of an epoch (--resume-from .../epoch_<n>.pth), or "
                "start afresh from its weights with train.load_from"
            )
        log.warn(f"the data has changed since checkpoint {source}: {told}; training goes on with what is there now")
    if VAL in now and stored.get(VAL, now[VAL]) != now[VAL]:
        told = f"{_told(stored[VAL], now[VAL])} the validation set"
        log.warn(
            f"the data has changed since checkpoint {source}: {told}; scores before and after "
            "are not of the same samples, and neither is the choice of best.pth"
        )


def _told(before: str, now: str) -> str:
    old, new = (text.partition(" ")[0] for text in (before, now))
    return f"{old} samples were in, {new} are now in" if old != new else f"{new} other samples are in"
