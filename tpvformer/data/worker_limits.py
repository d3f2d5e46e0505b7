"""Check shared memory, open files and the temporary folder before loader workers start.

Workers send batches through files in /dev/shm, which has 64 MB in a container by default. If it is full, the kernel
kills the worker. If a file or a socket cannot be opened, the batch is lost without an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Callable, Optional, Sequence, Tuple

import torch

from tpvformer.config import DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.errors import DataError

SHARED = Path("/dev/shm")
_LARGE = 2**28  # bytes; no sample is larger
_FILES, _FILES_A_BATCH, _FILES_A_WORKER = 128, 32, 16  # open at once
_SOCKET_NAME = 108 - 34  # longest path of the temporary folder in bytes; a Unix socket's path has 108 at most


def fit_workers(data: FrameDataset, cfg: DataConfig, processes: int, warn: Callable[[str], None]) -> DataConfig:
    """Return ``cfg`` with the number of workers that the machine can serve, at most its own; log a reduction.

    Each of the ``processes`` on this machine starts that many; None in ``cfg`` counts as 1.
    """
    for look in (_folder, _files, _memory):
        asked = _asked(cfg)
        workers, reason = look(data, cfg, processes)
        if workers < asked:
            warn(f"data.workers is {workers} instead of {asked}: {reason}")
            cfg = dataclasses.replace(cfg, workers=workers)
    return cfg


def _asked(cfg: DataConfig) -> int:
    return 1 if cfg.workers is None else cfg.workers


def _folder(data: FrameDataset, cfg: DataConfig, processes: int) -> Tuple[int, str]:
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:
        return 0, "no temporary folder can be written, and workers need one; set TMPDIR to a folder that can"
    if len(os.fsencode(folder)) > _SOCKET_NAME:
        return 0, f"the temporary folder's name is longer than {_SOCKET_NAME} bytes; set TMPDIR to a shorter one"
    return _asked(cfg), ""


def _files(data: FrameDataset, cfg: DataConfig, processes: int) -> Tuple[int, str]:
    """Raise the limit of open files as far as allowed; return the workers that it permits, and the reason."""
    try:
        import resource
    except ImportError:
        return _asked(cfg), ""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = [_FILES + batches(w) * _FILES_A_BATCH + w * _FILES_A_WORKER for w in range(_asked(cfg) + 1)]
    if soft in (-1, resource.RLIM_INFINITY) or soft >= needed[-1]:
        return _asked(cfg), ""
    most = needed[-1] if hard in (-1, resource.RLIM_INFINITY) else min(hard, needed[-1])
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return _most(_asked(cfg), needed, soft), (
        f"this process may open {soft} files, and they need {needed[-1]}; raise the limit (ulimit -n {needed[-1]}, "
        f"docker run --ulimit nofile={needed[-1]})"
    )


def _memory(data: FrameDataset, cfg: DataConfig, processes: int) -> Tuple[int, str]:
    try:
        found = os.statvfs(SHARED)
    except OSError:  # not Linux: memory is shared in another way
        return _asked(cfg), ""
    free = found.f_bavail * found.f_frsize // max(1, processes)
    copies = 1 if cfg.batch_size == 1 else 2  # extra memory while a batch is collated
    if not _asked(cfg) or free >= batches(_asked(cfg)) * copies * cfg.batch_size * _LARGE:
        return _asked(cfg), ""
    size = _size(data)
    if size is None:
        return _asked(cfg), ""
    needed = [batches(w) * copies * cfg.batch_size * size if w else 0 for w in range(_asked(cfg) + 1)]
    more = processes * needed[-1] / 2**20
    return _most(_asked(cfg), needed, free), (
        f"{SHARED} has {free / 2**20:.0f} MiB free for each of {processes} processes, and {_asked(cfg)} workers need "
        f"{needed[-1] / 2**20:.0f}; give it {more:.0f} MiB or more (docker run --shm-size={more + 64:.0f}m, on "
        "Kubernetes an emptyDir with medium: Memory at /dev/shm)"
    )


def batches(workers: int) -> int:
    """Return the number of batches in shared memory at once: two prefetched per worker, one in use, one in transfer."""
    return 2 * workers + 2


def _most(workers: int, needed: Sequence[int], there: int) -> int:
    return max((w for w in range(workers + 1) if needed[w] <= there), default=0)


def _size(data: FrameDataset) -> Optional[int]:
    """Return the bytes of a sample; None if the first cannot be read, which training reports later."""
    try:
        sample = data.sample(0, augment=False)
    except (DataError, OSError):
        return None
    values = (value for held in (sample, *sample.past) for value in vars(held).values())
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
