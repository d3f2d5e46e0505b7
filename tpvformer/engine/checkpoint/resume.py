"""Store the state in the middle of an epoch, and resume from it on any number of processes."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import torch

from tpvformer.compat import CheckpointError
from tpvformer.compat.checkpoints import OWN
from tpvformer.compat.own_model import FLAG, OwnSource
from tpvformer.config import Config
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.checkpoint.rng import random_state, restore_random_state, seed_all
from tpvformer.engine.distributed import collectives as distributed
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.logging.meters import LossMeter
from tpvformer.engine.optim.average import WeightAverage
from tpvformer.errors import ConfigError
from tpvformer.untrusted.names import short


class ResumePoint(NamedTuple):
    """Hold the checkpoint to resume from."""

    path: Path
    content: Dict[str, Any]


def find_origin(work_dir: Path, resume_from: Optional[Path], world: World, log: RunLog) -> Optional[ResumePoint]:
    """Return the named checkpoint, else the newest intact one of the work dir, else None.

    Process 0 chooses for all. Raises CheckpointError; for a damaged file it names the newest intact one in the same
    folder.
    """
    if resume_from is not None:
        try:
            return ResumePoint(resume_from, store.read(resume_from))
        except CheckpointError as err:
            raise CheckpointError(f"{err}{_alternative(resume_from)}") from err
    chosen, error, content = "", "", None
    if world.is_main:
        try:
            found = store.read_newest(work_dir, log.warn)
            chosen, content = ("", None) if found is None else (str(found[0]), found[1])
        except CheckpointError as err:
            error = str(err)
    chosen, error = distributed.broadcast_string(chosen), distributed.broadcast_string(error)
    if error:
        raise CheckpointError(error)
    if not chosen:
        return None
    return ResumePoint(Path(chosen), store.read(Path(chosen)) if content is None else content)


def _alternative(path: Path) -> str:
    """Return the end of an error message: the newest checkpoint of the same folder that can be read."""
    for other in store.newest_first(path.parent):
        if other.name == path.name:
            continue
        try:
            store.read(other)
        except CheckpointError:
            continue
        return f"; the newest whole checkpoint there is {other}"
    return ""


def refuse_mixed(origin: ResumePoint, own: Optional[OwnSource]) -> None:
    """Raise CheckpointError where a checkpoint is of this package's model and the run of a checkout's, or vice versa.

    So it is where the checkout's model was built from another ``model`` section.
    """
    stored = origin.content.get(OWN)
    if (stored is None) != (own is None):
        theirs, ours = "a checkout's own model", "this package's model"
        held, runs = (ours, theirs) if stored is None else (theirs, ours)
        flag = "say --no-own-model" if stored is None else f"add {FLAG}"
        raise CheckpointError(
            f"checkpoint {origin.path} holds weights of {held}, and this run trains {runs}; {flag}, or choose a fresh "
            "--work-dir"
        )
    if own is not None and stored is not None and json.loads(stored) != json.loads(own.text()):
        raise CheckpointError(
            f"checkpoint {origin.path} is of another model section than that of {own.file}: "
            f"{_first_difference(json.loads(stored), json.loads(own.text()))}; resume with the configuration it was "
            "trained with, or choose a fresh --work-dir"
        )


def _first_difference(stored: Any, wanted: Any, where: str = "model") -> str:
    """Return the first place in which two sections of plain values differ, as text."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        same = {key for key in stored if key in wanted and stored[key] == wanted[key]}
        key = min({*stored, *wanted} - same)
        if key not in stored or key not in wanted:
            there, here = ("absent" if key not in side else short(side[key]) for side in (stored, wanted))
            return f"{where}.{key} is {there} there and {here} here"
        return _first_difference(stored[key], wanted[key], f"{where}.{key}")
    if isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        place = next(k for k, pair in enumerate(zip(stored, wanted)) if pair[0] != pair[1])
        return _first_difference(stored[place], wanted[place], f"{where}[{place}]")
    return f"{where} is {short(stored)} there and {short(wanted)} here"


def keep_global_batch(origin: ResumePoint, config: Config, world: World, log: RunLog) -> Config:
    """Return the configuration with ``train.accumulate`` set so that the checkpoint's global batch is kept.

    Sample order, schedule and steps of an epoch then stay the same on this number of processes. Raises ConfigError if
    no integer gives that global batch.
    """
    wanted = origin.content.get("global_batch")  # missing in files of older versions
    batch, accumulate = config.data.batch_size, config.train.accumulate
    if wanted is None or wanted == world.size * batch * accumulate:
        return config
    if wanted % (world.size * batch):
        counts = [str(n) for n in range(1, wanted // batch + 1) if wanted % (n * batch) == 0]
        works = f"{', '.join(counts)} processes can" if counts else f"set data.batch_size to a divisor of {wanted}"
        raise ConfigError(
            f"checkpoint {origin.path} was trained with {wanted} samples a step, which {world.size} processes with "
            f"data.batch_size={batch} cannot make; {works}, or start afresh from its weights with train.load_from"
        )
    changed = wanted // (world.size * batch)
    log.warn(
        f"train.accumulate is {changed} instead of {accumulate}, so that {world.size} processes keep the checkpoint's "
        f"{wanted} samples a step"
    )
    return dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=changed))


def begin_average(average: Optional[WeightAverage], origin: Optional[ResumePoint], log: RunLog) -> None:
    """Restore the average of the weights from a checkpoint, or begin it at the present weights; log its size.

    Raises CheckpointError for an average of other weights.
    """
    if average is None:
        return
    log.line(f"the average of the weights (train.ema) takes {average.nbytes / 2**20:.1f} MiB of the device's memory")
    stored = None if origin is None else origin.content.get("ema")
    if origin is None or stored is None:
        average.begin()
        if origin is not None:
            log.warn(f"checkpoint {origin.path} has no average of the weights; it begins at the weights there")
        return
    try:
        average.restore(stored)
    except ValueError as err:
        raise CheckpointError(f"checkpoint {origin.path} does not fit: {err}; name another one") from err


def capture_mid_epoch_state(global_batch: int, losses: LossMeter, world: World, device: torch.device) -> Dict[str, Any]:
    """Return what a checkpoint holds besides weights, optimiser and counters. All processes must call it."""
    losses.read()
    return {
        "world_size": world.size,
        "global_batch": global_batch,
        "losses": losses.state(),
        "rng": {name: distributed.gather(state) for name, state in random_state(device).items()},
    }


def restore_mid_epoch_state(
    content: Dict[str, Any], losses: LossMeter, world: World, device: torch.device, seeds: List[int]
) -> None:
    """Restore a state of ``capture_mid_epoch_state``.

    On another number of processes than at that time, the random numbers start again from ``seeds``.
    """
    losses.restore(content["losses"])
    if content["world_size"] == world.size:
        # cloned, because torch.set_rng_state crashes on a view that begins inside its storage
        own = {name: states[world.rank].clone() for name, states in content["rng"].items()}
        try:
            restore_random_state(own, device)
        except (ValueError, TypeError, RuntimeError, KeyError, IndexError, OverflowError) as err:
            reason = " ".join(str(err).split())[:200]
            raise CheckpointError(
                f"the checkpoint's random states cannot be restored ({reason}); it is damaged, name another one"
            ) from err
    else:
        seed_all(mixed([*seeds, world.rank]))


def mixed(numbers: List[int]) -> int:
    """Hash several numbers to one seed, the same on every machine."""
    text = " ".join(str(number) for number in numbers).encode()
    return zlib.crc32(text) << 32 | zlib.crc32(text[::-1])
