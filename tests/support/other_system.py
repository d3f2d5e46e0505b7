"""Becomes Windows or macOS as far as Python's modules go, imports the whole package and predicts a frame.

    python other_system.py win32|darwin SET WEIGHTS OUT

Run by test_without_packages.py in a process of its own, for the names are taken away for good.
"""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import select
import signal
import sys
from typing import Any

import cv2  # noqa: F401 - what others import for themselves is here before
import numba
import numpy  # noqa: F401
import rich.progress  # noqa: F401
import safetensors.torch  # noqa: F401
import torch.distributed.run
import torch.utils.data
import yaml  # noqa: F401

GONE = {"win32": ("resource", "fcntl", "termios", "pwd", "grp", "syslog", "pty"), "darwin": ("spwd",)}
NAMES = {
    "win32": {
        signal: (
            *("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL", "SIGPIPE", "SIGCHLD", "SIGCONT", "SIGSTOP"),
            *("SIGTSTP", "SIGQUIT", "setitimer", "alarm", "pthread_sigmask", "sigwait"),
        ),
        os: (
            *("fork", "register_at_fork", "sched_getaffinity", "getuid", "geteuid", "sysconf", "uname", "getloadavg"),
            *("killpg", "setsid", "getpgid", "nice", "statvfs", "mkfifo", "fchmod", "pread", "WNOHANG"),
        ),
        select: ("poll",),
        errno: ("EDQUOT",),
    },
    "darwin": {os: ("sched_getaffinity", "sched_setaffinity")},
}
# the two kinds of module that are for somebody who has the other package, or the other card
ELSEWHERE = ("tpvformer.compat.openmmlab", "tpvformer.ops.triton_", "tpvformer.viz.rerun_file", "tpvformer.__main__")


class Hidden:
    """A finder of modules that says of some that they do not exist."""

    def __init__(self, names: Any) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def become(system: str) -> None:
    sys.meta_path.insert(0, Hidden(GONE[system]))  # type: ignore[arg-type]
    for name in GONE[system]:
        sys.modules.pop(name, None)
    for module, names in NAMES[system].items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    sys.platform = system
    hide_proc()


def hide_proc() -> None:
    """No /proc and no /dev/shm, by whatever function they are looked for."""

    def hidden(path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc", "/dev/shm"))

    def guard(function: Any) -> Any:
        def guarded(path: Any, *args: Any, **kwargs: Any) -> Any:
            if hidden(path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
            return function(path, *args, **kwargs)

        return guarded

    import builtins
    import io

    io.open = builtins.open = guard(builtins.open)  # type: ignore[assignment]
    for name in ("open", "stat", "listdir", "scandir"):
        setattr(os, name, guard(getattr(os, name)))


def main() -> int:
    system, frames, weights, out = sys.argv[1:]
    numba.njit(lambda x: x + 1)(1)  # its compiler asks the system for its kind when it is first used
    become(system)
    import tpvformer

    for found in pkgutil.walk_packages(tpvformer.__path__, "tpvformer."):
        if not found.name.startswith(ELSEWHERE):
            importlib.import_module(found.name)
    from tpvformer.cli import main as command
    from tpvformer.engine.device.accelerator import peak_memory_mib
    from tpvformer.engine.distributed.signals import SIGNALS, StopSignals

    print("signals", [number.name for number in SIGNALS], "peak", peak_memory_mib(torch.device("cpu")) is not None)
    with StopSignals():
        pass
    for argv in (
        ["doctor", "--device", "cpu"],
        ["predict", "--py-config", frames, "--ckpt-path", weights, "--device", "cpu", "--index", "0", "--out", out],
    ):
        status = command(argv)
        print(argv[0], "ended with", status, flush=True)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
