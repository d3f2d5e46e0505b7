"""Start one command in many processes on this machine, with torchrun's environment variables, and forward signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Dict, List

from tpvformer.data.worker_processes import interrupts_held
from tpvformer.engine.device.accelerator import visible_cards
from tpvformer.engine.distributed.parent import RESERVED_PORT, Tether
from tpvformer.engine.distributed.signals import heard, hears_ctrl_c, say_heard
from tpvformer.errors import ConfigError
from tpvformer.runtime.cores import cores

_GRACE = 10.0  # seconds until the processes are killed after one of them failed


def launch(processes: int, argv: List[str]) -> int:
    """Run ``python -m tpvformer <argv>`` in ``processes`` processes; return the first failure's exit status, or 0.

    The processes connect as with ``torchrun --standalone --nproc_per_node=<processes>``. A failed process has printed
    its own error; the others are stopped. All processes end if this one ends. SIGTERM, SIGUSR1 and SIGHUP are forwarded
    without a time limit, so that training can save first; torchrun kills after 30 s. The first Ctrl-C of a training
    that saves is forwarded too. Otherwise, and at the second Ctrl-C, KeyboardInterrupt is raised after all processes
    have ended. Without OMP_NUM_THREADS the cores are divided among the processes. Raises ConfigError on Windows.
    """
    if sys.platform == "win32":
        raise ConfigError(f"{processes} processes at once are for Linux and macOS; start one, without --processes")
    common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    meeting = _reserve_port()
    common.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(meeting.getsockname()[1]))
    common["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(threads(processes))
    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):  # listens on the loopback interface only
            common.setdefault("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", name))
    children: List[subprocess.Popen] = []
    tether = Tether()
    common.update(tether.environment)

    def pass_on(number: int, _: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    typed: List[int] = []  # one entry for each Ctrl-C

    def interrupt(number: int, _: object) -> None:
        typed.append(number)
        if len(typed) > 1 or not saves(argv):
            raise KeyboardInterrupt
        say_heard()
        pass_on(signal.SIGTERM, None)  # the processes ignore Ctrl-C, which a terminal sends to all of them

    before: Dict[int, Any] = {number: signal.signal(number, pass_on) for number in heard()}
    if hears_ctrl_c():
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        for rank in range(processes):
            env: Dict[str, str] = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            handles = tether.handles
            if rank == 0:
                env[RESERVED_PORT], handles = str(meeting.fileno()), (*handles, meeting.fileno())
            command = [sys.executable, "-m", "tpvformer", *argv]
            with interrupts_held():
                children.append(subprocess.Popen(command, env=env, pass_fds=handles))
        meeting.close()
        status = _wait(children)
        if status and typed:
            raise KeyboardInterrupt  # Ctrl-C came before there was anything to save
        return status
    finally:
        _stop(children, 0.0 if len(typed) > 1 else _GRACE)
        tether.close()
        meeting.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: List[subprocess.Popen]) -> int:
    """Wait until all processes have succeeded or one has failed; return the exit status as a shell reports it."""
    while True:
        codes = [child.poll() for child in children]
        failed = [code for code in codes if code]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]  # ended by a signal: 128 + its number
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)  # polls, because subprocess cannot wait for several processes


def saves(argv: List[str]) -> bool:
    """Return whether a command saves when it is asked to stop: a training without ``--max-steps``."""
    return argv[:1] == ["train"] and not any(word.replace("_", "-").startswith("--max-s") for word in argv)


def _stop(children: List[subprocess.Popen], grace: float) -> None:
    """Terminate the processes that still run; kill them after ``grace`` seconds."""
    running = [child for child in children if child.poll() is None]
    for child in running:
        child.terminate()
    deadline = time.monotonic() + grace
    for child in running:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _reserve_port() -> socket.socket:
    """Return a socket bound to a free port of the loopback interface, which no other program can take until rank 0
    listens on this same socket: seconds pass until then."""
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))
    return reserved


def one_a_card(most: int, device: str) -> int:
    """Return the processes to start: one for each visible card, at most ``most``; ``most`` if there is no card.

    Fewer than ``most`` processes make a smaller global batch; a line on stdout reports it.
    """
    cards = visible_cards(device)
    if not 0 < cards < most:
        return most
    seen = "1 card is visible: 1 process is" if cards == 1 else f"{cards} cards are visible: {cards} processes are"
    batches = "1 batch" if cards == 1 else f"{cards} batches"
    print(f"{seen} started instead of {most}, and a step takes {batches} instead of {most}", flush=True)
    return cards


def threads(processes: int) -> int:
    """Return the threads of each of ``processes``: an equal share of this process's cores, at least one."""
    return max(1, cores() // processes)
