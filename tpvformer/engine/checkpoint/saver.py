"""Decide when a run saves, and write its checkpoints in a thread while training continues."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from torch.utils._pytree import tree_flatten  # PyTorch 2.1 has no tree_leaves

from tpvformer.config import TrainConfig
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import SaveError


class Saver:
    """Write the checkpoints of a run in a thread, one at a time: the next one waits for the last.

    If a file in the middle of an epoch cannot be written, a warning is logged: training continues and tries again
    later. If that file is ``required``, the next ``wait`` raises SaveError.
    """

    def __init__(self, work_dir: Path, config: TrainConfig, log: RunLog) -> None:
        self._work_dir, self._config, self._log = work_dir, config, log
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[BaseException] = None
        self._last = time.monotonic()

    def due_by_steps(self, global_iter: int) -> bool:
        """Return whether a checkpoint is due after this many steps; equal in all processes."""
        steps = self._config.save_every_steps
        return steps > 0 and global_iter % steps == 0

    def due_by_minutes(self) -> bool:
        """Return whether a checkpoint is due by the clock of this process."""
        minutes = self._config.save_every_minutes
        return minutes > 0 and time.monotonic() >= self._last + 60 * minutes

    def submit(self, name: str, content: Dict[str, Any], required: bool = False, best: bool = False) -> None:
        """Start to write ``content``, which must not be modified afterwards."""
        self.wait()
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._write, args=(name, content, required, best), name=f"save {name}")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last file is written. Raises its error, except an OSError of a file not ``required``."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for the last file without raising SaveError, at the end of a run that may raise its own error."""
        with contextlib.suppress(SaveError):
            self.wait()

    def _write(self, name: str, content: Dict[str, Any], required: bool, best: bool) -> None:
        try:
            self._try_to_write(name, content, required, best)
        except BaseException as err:  # an exception of a thread is not propagated
            self._error = err

    def _try_to_write(self, name: str, content: Dict[str, Any], required: bool, best: bool) -> None:
        began = time.perf_counter()
        try:
            path = store.write(self._work_dir, name, content, best)
            store.prune(self._work_dir, self._config.keep_checkpoints, content["global_iter"])
        except OSError as err:
            problem = self._explain(name, content, err)
            if required:
                raise SaveError(problem) from err
            self._log.warn(f"{problem}; training goes on, and the next save tries again")
        else:
            size, seconds = path.stat().st_size / 2**20, time.perf_counter() - began
            self._log.line(f"saved {path}, {size:.1f} MiB in {seconds:.1f} s")

    def _explain(self, name: str, content: Dict[str, Any], err: OSError) -> str:
        tensors = (leaf for leaf in tree_flatten(content)[0] if isinstance(leaf, torch.Tensor))
        needed = sum(tensor.nbytes for tensor in tensors) / 2**20
        try:
            free = shutil.disk_usage(self._work_dir).free / 2**20
        except OSError:
            return f"checkpoint {self._work_dir / name} cannot be written: the work dir is gone ({err.strerror or err})"
        whole = store.newest_first(self._work_dir)
        kept = f"{whole[0].name} before it is whole" if whole else "there was none before it"
        return (
            f"checkpoint {self._work_dir / name} cannot be written ({err.strerror or err}): it takes {needed:.1f} MiB, "
            f"{free:.1f} MiB are free there; {kept}"
        )
