"""The checkpoints of a work dir, as files.

``epoch_<n>.pth`` after every epoch, ``step_<n>.pth`` in between, ``latest.pth`` pointing at the newest of both,
``best.pth`` a copy of the one with the highest leading metric: point mIoU, or that of dense labels where they are
configured. The content is packed (compat/container.py). Every file appears whole or not at all, carries a seal
(compat/checksum.py), and survives the loss of power once ``write`` has returned.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from tpvformer.compat.checkpoints import FORMAT
from tpvformer.compat.checksum import sealed_step, write_sealed
from tpvformer.compat.container import packed
from tpvformer.compat.tensors import read_archive
from tpvformer.engine.checkpoint.schema import check_content
from tpvformer.errors import CheckpointError
from tpvformer.untrusted.schema import SchemaError

LATEST = "latest.pth"
BEST = "best.pth"
_NAME = re.compile(r"(epoch|step)_(\d+)\.pth")


def epoch_name(epoch: int) -> str:
    """The file after ``epoch`` epochs."""
    return f"epoch_{epoch}.pth"


def step_name(step: int) -> str:
    """The file after ``step`` optimiser steps, in the middle of an epoch."""
    return f"step_{step}.pth"


def write(work_dir: Path, name: str, content: Dict[str, Any], best: bool = False) -> Path:
    """Write a checkpoint, point ``latest.pth`` at it (relative, so that the folder can be moved), copy the best.

    Raises OSError; what was there before is then there still.
    """
    path = work_dir / name
    _replace(path, lambda temporary: write_sealed(packed(content), temporary, content["global_iter"]))
    _point(work_dir / LATEST, path)
    if best:
        _replace(path.with_name(BEST), lambda temporary: _copy(path, temporary))
    return path


def read(path: Path) -> Dict[str, Any]:
    """The content of a checkpoint that ``write`` wrote, on the CPU. Raises CheckpointError."""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"checkpoint {path} points at {os.readlink(path)}, which is gone; name another file")
    content = read_archive(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} was not written by this trainer, so it has no run to resume; "
            "to start from its weights set train.load_from"
        )
    try:
        check_content(content)
    except SchemaError as err:
        raise CheckpointError(f"checkpoint {path}: {err}; it is damaged, name another one") from err
    return content


def read_newest(work_dir: Path, warn: Callable[[str], None]) -> Optional[Tuple[Path, Dict[str, Any]]]:
    """What ``latest.pth`` holds; where it is damaged or gone, the newest other checkpoint that is whole, and says so.

    None where there is no checkpoint. Raises CheckpointError where none can be read, and for files of other programs.
    """
    latest, others = work_dir / LATEST, newest_first(work_dir)
    if not others and not (latest.exists() or latest.is_symlink()):
        return None
    problem = f"{latest}: no such file"
    if latest.exists() or latest.is_symlink():
        try:
            return latest, read(latest)
        except CheckpointError as err:
            problem = str(err)
            if "was not written by this trainer" in problem:
                raise
    for path in others:
        with contextlib.suppress(CheckpointError):
            content = read(path)
            warn(f"{problem}; going on from {path.name} instead, the newest checkpoint that is whole")
            return path, content
    raise CheckpointError(
        f"{problem}; no other checkpoint in {work_dir} is whole; name one with --resume-from, or choose a fresh "
        "--work-dir"
    )


def newest_first(work_dir: Path) -> List[Path]:
    """The checkpoints of epochs and steps, by the steps trained. Files without a seal are older than those with one."""
    found = [(path, _NAME.fullmatch(path.name)) for path in work_dir.glob("*_*.pth")]
    keys = {}
    for path, name in found:
        if name is not None:
            step = sealed_step(path)
            keys[path] = (-1 if step is None else step, name[1] == "epoch", int(name[2]))
    return sorted(keys, key=lambda path: keys[path], reverse=True)


def prune(work_dir: Path, keep: int, step: Optional[int] = None) -> None:
    """Of the newest ``keep`` checkpoints up to ``step`` keep all, of the older ones those of epochs.

    Files of later steps, left by a run that was taken back, are counted out: they are written again or removed later.
    """
    reached = [p for p in newest_first(work_dir) if step is None or (sealed_step(p) or 0) <= step]
    for path in reached[keep:]:
        if path.name.startswith("step_"):
            path.unlink(missing_ok=True)


def remove_partial(work_dir: Path) -> None:
    """Take away what processes that were killed had half written."""
    for path in work_dir.glob(".*.pth.tmp"):
        path.unlink(missing_ok=True)


def _replace(path: Path, fill: Callable[[Path], Any]) -> None:
    """Fill a temporary file, which reaches the disk, and only then let it take the place of ``path``."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        fill(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as handle:
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    """Force the names of a folder to the disk, where the system has such a thing; Windows opens no folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _point(link: Path, target: Path) -> None:
    """Make ``link`` a relative symbolic link to its neighbour ``target``; a copy where the file system has no links."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except OSError:
        _replace(link, lambda copy: _copy(target, copy))
        return
    os.replace(temporary, link)
    _sync_folder(link.parent)
