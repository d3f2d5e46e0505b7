"""Lock a work dir for one training, with a file that names its process.

The file carries two locks. The kernel's lock (``lockf``) ends with its process, and a loader's workers do not inherit
it. It works on one machine, and on shared file systems that support locks. Windows has none. The content of the file
(host, process, start time) works on every file system. A run on another machine cannot be checked through it, so a
person must decide whether that run has ended.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Dict, Optional

from tpvformer.errors import ConfigError

NAME = "run.lock"
_PATIENCE = 5.0  # seconds to wait for a process that is ending


class WorkDirLock:
    """Lock a work dir from ``acquire`` to ``release``, in the process that writes there."""

    def __init__(self, work_dir: Path) -> None:
        self._path, self._handle = work_dir / NAME, -1

    def acquire(self) -> None:
        """Take the lock. Raises ConfigError if another training has it, OSError if no file can be written."""
        until = time.monotonic() + _PATIENCE
        while True:
            problem = self._try()
            if not problem:
                return
            if time.monotonic() > until:
                raise ConfigError(problem)
            time.sleep(0.2)

    def release(self) -> None:
        """Remove the lock file; do nothing if the lock is not held or the file belongs to another process now."""
        if self._handle < 0:
            return
        try:
            if _same_file(self._handle, self._path) and _is_ours(_read(self._handle)):
                self._path.unlink()
        except OSError:
            pass  # the work dir is missing or read-only; the kernel's lock ends anyway
        finally:
            os.close(self._handle)
            self._handle = -1

    def _try(self) -> str:
        """Try to take the lock; return why it is not available, or an empty string."""
        try:
            handle, new = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            try:
                handle, new = os.open(self._path, os.O_RDWR), False
            except FileNotFoundError:
                return f"{self._path} came and went"
        held = False
        try:
            alone = _lock(handle)
            if not _same_file(handle, self._path):
                return f"{self._path} came and went"
            problem = "" if new else self._held_by(_read(handle), alone)
            if not problem:
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, json.dumps(_ourselves()).encode() + b"\n")
                self._handle, held = handle, True
            return problem
        finally:
            if not held:
                os.close(handle)

    def _held_by(self, owner: Dict[str, Any], alone: Optional[bool]) -> str:
        """Return a sentence about the run that holds the lock; empty if that run has ended.

        ``alone``: whether the kernel gave its lock to this process; None if the file system has no locks.
        """
        pid, host, since = (_printable(owner.get(key, "?")) for key in ("pid", "host", "since"))
        text = f"work dir {self._path.parent} is in use: process {pid} on {host} trains there since {since}"
        ways = "choose another --work-dir, or stop that run first; it saves what it has at SIGTERM"
        here = _ourselves()
        if alone is False:
            return f"{text}; {ways}"
        if owner.get("boot") == here["boot"]:
            started = _started(owner.get("pid"))
            alive = owner.get("namespace") == here["namespace"] and started and started == owner.get("started")
            unknown = owner.get("namespace") != here["namespace"] and alone is None
            return f"{text}; {ways}" if alive or unknown else ""
        if not owner or owner.get("host") == here["host"]:
            return ""  # incomplete, or written before this machine was restarted
        if owner.get("job") and owner.get("job") == here["job"] and owner.get("start") != here["start"]:
            return ""  # the same job, restarted by its scheduler on another machine
        return (
            f"{text}; {ways}. If that run has ended without removing its lock (its machine is gone), delete "
            f"{self._path} and start again"
        )


def _ourselves() -> Dict[str, Any]:
    """Return the file's content for this process. ``started`` tells it apart from a later process with the same id."""
    job, start = _job()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "started": _started(os.getpid()),
        "boot": _text("/proc/sys/kernel/random/boot_id") or socket.gethostname(),
        "namespace": _link("/proc/self/ns/pid"),
        "job": job,
        "start": start,
    }


def _job() -> Any:
    """Return the name of this process's job, empty without a scheduler, and the number of its start."""
    elastic = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if elastic != "none":
        # one rendezvous admits one training at a time, on any machines
        return f"{elastic} at {os.environ.get('TPVFORMER_ENDPOINT', '')}", f"{os.getpid()} {time.time()}"
    slurm = os.environ.get("SLURM_JOB_ID", "")
    return (f"slurm {slurm}", os.environ.get("SLURM_RESTART_COUNT", "0")) if slurm else ("", "")


def _is_ours(owner: Dict[str, Any]) -> bool:
    here = _ourselves()
    return all(owner.get(key) == here[key] for key in ("host", "pid", "started", "boot"))


def _lock(handle: int) -> Optional[bool]:
    """Return whether the kernel gives the lock to this process; None if the file system or the system has no locks."""
    try:
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return None
    except OSError as err:
        return False if err.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def _same_file(handle: int, path: Path) -> bool:
    """Return whether ``path`` is still the open file; another process may have removed it."""
    try:
        found, opened = os.stat(path), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def _read(handle: int) -> Dict[str, Any]:
    """Read the content; return an empty dict if ``acquire`` did not write it.

    The open handle is used: closing a second handle of the file would release the kernel's lock.
    """
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        owner = json.loads(os.read(handle, 4096))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) and isinstance(owner.get("host"), str) else {}


def _printable(value: Any) -> str:
    """Return the printable characters of a value from a file, at most 100."""
    return "".join(c for c in str(value)[:100] if c.isprintable())


def _started(pid: Any) -> str:
    """Return the start time of a process of this machine, in the kernel's ticks; empty if it does not run."""
    stat = _text(f"/proc/{pid}/stat") if isinstance(pid, int) else ""
    return stat.rpartition(")")[2].split()[19] if stat else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
