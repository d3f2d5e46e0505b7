"""Programs that a test starts: each in a session of its own, its output in files, and none lives past its time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Set, Union

SECONDS = 300.0  # the time of a program that is given none, on a busy machine
LOOPBACK = "0100007F"  # 127.0.0.1, as the kernel writes it
Command = Sequence[Union[str, Path]]
Done = subprocess.CompletedProcess  # of str


class Overdue(AssertionError):
    """A program was not done, or had not said something, in time; with its output so far."""


class Program(subprocess.Popen):
    """A process whose every wait has a limit, 300 s unless another is given.

    ``options`` are those of ``subprocess.Popen``. ``out`` and ``err`` are what it has printed so far, in files rather
    than pipes: a process that it started and that lives on cannot keep anybody waiting. As a context it is ended, with
    all that it started, when the context is left.
    """

    def __init__(self, command: Command, **options: Any) -> None:
        self._files = {name: tempfile.TemporaryFile() for name in ("stdout", "stderr")}  # noqa: SIM115
        given = {"start_new_session": True, **self._files, **options}
        super().__init__([str(word) for word in command], **given)

    @property
    def out(self) -> str:
        return self._text("stdout")

    @property
    def err(self) -> str:
        return self._text("stderr")

    def _text(self, name: str) -> str:
        handle = self._files[name].fileno()
        text = os.pread(handle, os.fstat(handle).st_size, 0).decode(errors="replace")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def said(self) -> str:
        return f"\n--- stdout\n{self.out[-6000:]}\n--- stderr\n{self.err[-6000:]}"

    def wait(self, timeout: Union[float, None] = SECONDS) -> int:
        """Its exit status. Past ``timeout`` seconds it is ended: Overdue."""
        try:
            return super().wait(timeout)
        except subprocess.TimeoutExpired:
            self.end()
            raise Overdue(f"{self.args}: not done within {timeout} s{self.said()}") from None

    def until(self, there: Union[str, Callable[[], bool]], seconds: float = SECONDS) -> None:
        """Wait for a text in ``out``, or for a function to be true; Overdue where the program ends before."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.poll() is not None
            if there in self.out if isinstance(there, str) else there():
                return
            if ended or time.monotonic() > deadline:
                self.end()
                why = "it ended" if ended else f"{seconds} s passed"
                raise Overdue(f"{self.args}: {why} before {there}{self.said()}")
            time.sleep(0.02)

    def end(self) -> None:
        """Kill it and all that it started."""
        for pid in family(self.pid) if self.poll() is None else []:
            _kill(os.kill, pid)
        _kill(os.killpg, self.pid)  # those whose parent has ended; there is no such group if it shares its starter's
        super().wait(SECONDS)

    def __exit__(self, *_: object) -> None:
        self.end()
        for stream in (*self._files.values(), self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


Start = Callable[..., Program]  # the fixture ``start`` of conftest.py


def run(command: Command, seconds: float = SECONDS, check: bool = False, **options: Any) -> Done:
    """As ``subprocess.run`` with captured text, but with a limit that holds: past ``seconds`` the program and all that
    it started are killed, Overdue. AssertionError where ``check`` asks for an exit status of 0 and there is another."""
    with Program(command, **options) as program:
        status = program.wait(seconds)
        assert status == 0 or not check, f"{program.args}: exit status {status}{program.said()}"
        return subprocess.CompletedProcess(program.args, status, program.out, program.err)


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{seconds} s passed"
        time.sleep(0.02)


def family(pid: int) -> List[int]:
    """A process and all that it started, however removed; where there is no /proc the process alone."""
    children: Dict[int, List[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = file.read_text()
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(text.split()[0]))
    found = [pid]
    for member in found:
        found.extend(children.get(member, []))
    return found


def listening(pids: List[int]) -> Set[str]:
    """The addresses at which these processes accept connections, in the kernel's hexadecimal form."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                sockets[fields[9]] = fields[1].partition(":")[0]
    found = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(handle)
            except OSError:
                continue
            found.add(sockets.get(target[len("socket:[") : -1]) if target.startswith("socket:") else None)
    return {address for address in found if address}


def state(pid: object) -> str:
    """A process's state, one letter of Linux; "X" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _kill(kill: Callable[[int, int], None], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        kill(number, signal.SIGKILL)
