"""Write, read and prune the checkpoint files of a work dir.

``epoch_<n>.pth`` is written after every epoch, ``step_<n>.pth`` in between. ``latest.pth`` links to the newest of both.
``best.pth`` is a copy of the one with the highest primary metric: point mIoU, or that of dense labels if they are
configured. The content is packed (compat/container.py). Every file is written completely or not at all, has a checksum
(compat/checksum.py), and survives a power failure once ``write`` has returned.
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
    """Return the name of the file after ``epoch`` epochs."""
    return f"epoch_{epoch}.pth"


def step_name(step: int) -> str:
    """Return the name of the file after ``step`` optimiser steps, in the middle of an epoch."""
    return f"step_{step}.pth"


def write(work_dir: Path, name: str, content: Dict[str, Any], best: bool = False) -> Path:
    """Write a checkpoint, link ``latest.pth`` to it, and copy it to ``best.pth`` if ``best``; return its path.

    The link is relative, so that the folder can be moved. Raises OSError; the earlier files are then unchanged.
    """
    path = work_dir / name
    _replace(path, lambda temporary: write_sealed(packed(content), temporary, content["global_iter"]))
    _point(work_dir / LATEST, path)
    if best:
        _replace(path.with_name(BEST), lambda temporary: _copy(path, temporary))
    return path


def read(path: Path) -> Dict[str, Any]:
    """Read a checkpoint that ``write`` wrote, to the CPU. Raises CheckpointError."""
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
    """Read ``latest.pth``; if it is damaged or missing, warn and read the newest other checkpoint that is intact.

    Returns None if there is no checkpoint. Raises CheckpointError if none can be read, or if ``latest.pth`` was written
    by another program.
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
    """List the checkpoints of epochs and steps, most steps first; files without a checksum count as oldest."""
    found = [(path, _NAME.fullmatch(path.name)) for path in work_dir.glob("*_*.pth")]
    keys = {}
    for path, name in found:
        if name is not None:
            step = sealed_step(path)
            keys[path] = (-1 if step is None else step, name[1] == "epoch", int(name[2]))
    return sorted(keys, key=lambda path: keys[path], reverse=True)


def prune(work_dir: Path, keep: int, step: Optional[int] = None) -> None:
    """Remove checkpoints of steps, except the newest ``keep`` files up to ``step``; checkpoints of epochs stay.

    Files of later steps belong to a run that was resumed from an earlier step. They do not count: the run writes them
    again, or a later call removes them.
    """
    reached = [p for p in newest_first(work_dir) if step is None or (sealed_step(p) or 0) <= step]
    for path in reached[keep:]:
        if path.name.startswith("step_"):
            path.unlink(missing_ok=True)


def remove_partial(work_dir: Path) -> None:
    """Remove the partial files of killed processes."""
    for path in work_dir.glob(".*.pth.tmp"):
        path.unlink(missing_ok=True)


def _replace(path: Path, fill: Callable[[Path], Any]) -> None:
    """Fill a temporary file, sync it to the disk, and rename it to ``path``."""
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
    """Sync the entries of a folder to the disk, if the system supports it; Windows cannot open folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _point(link: Path, target: Path) -> None:
    """Make ``link`` a relative symbolic link to ``target`` in its folder, or a copy on file systems without links."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except OSError:
        _replace(link, lambda copy: _copy(target, copy))
        return
    os.replace(temporary, link)
    _sync_folder(link.parent)
