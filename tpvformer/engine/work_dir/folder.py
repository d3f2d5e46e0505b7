"""Check the work dir before training, lock it for one run, and report its loss."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Generator

from tpvformer.engine.distributed import collectives as distributed
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.work_dir.lock import WorkDirLock
from tpvformer.errors import ConfigError, RunEnded

_LONGEST = 64  # characters of the longest file name that a run writes


@contextlib.contextmanager
def entered(work_dir: Path, world: World) -> Generator[None, None, None]:
    """Create the folder and hold its lock inside the context; all processes call it, process 0 does the work.

    Raises ConfigError in all of them if the folder cannot be used or another training uses it, and RunEnded if it is
    lost during the run.
    """
    lock, problem = WorkDirLock(work_dir), ""
    if world.is_main:
        try:
            make(work_dir)
            lock.acquire()
        except ConfigError as err:
            problem = str(err)
        except OSError as err:
            problem = f"work dir {work_dir} cannot be locked ({err.strerror or err}); choose another --work-dir"
    try:
        problem = distributed.broadcast_string(problem)
        if problem:
            raise ConfigError(problem)
        yield
    except OSError as err:
        if not _within(err, work_dir):
            raise
        raise RunEnded(
            f"work dir {work_dir} cannot be used any more: {err.filename}: {err.strerror}; it was moved, removed or "
            "write-protected while the run went on, or its disk is gone; bring it back and give the same command again"
        ) from err
    finally:
        lock.release()


def make(work_dir: Path) -> None:
    """Create the folder and check that a run can write to it. Raises ConfigError with the reason."""
    check_name(work_dir)
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        probe = work_dir / f".writable_{os.getpid()}".ljust(_LONGEST, "_")
        with probe.open("wb"):
            pass
        probe.unlink()
    except (FileExistsError, NotADirectoryError) as err:
        raise ConfigError(
            f"work dir {work_dir}: {err.filename} is no folder; choose another --work-dir, or remove that file"
        ) from err
    except OSError as err:
        raise ConfigError(
            f"work dir {work_dir} cannot be written ({err.strerror or err}); choose a --work-dir that can"
        ) from err


def check_name(work_dir: Path) -> None:
    """Raise ConfigError for a name that is not UTF-8: libraries that write pictures crash with such names."""
    try:
        whole = os.path.abspath(work_dir)
    except FileNotFoundError as err:
        raise ConfigError(f"work dir {work_dir}: the current folder is gone; cd to one that is there") from err
    try:
        whole.encode("utf-8")
    except UnicodeEncodeError as err:
        raise ConfigError(f"work dir {ascii(whole)} is not UTF-8; choose a --work-dir that is") from err


def _within(err: OSError, work_dir: Path) -> bool:
    """Return whether an error concerns a file of the folder."""
    names = [os.fspath(name) for name in (err.filename, err.filename2) if isinstance(name, (str, os.PathLike))]
    return any(os.path.abspath(name).startswith(os.path.abspath(work_dir)) for name in names)
