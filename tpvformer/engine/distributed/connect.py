"""Connect the processes of a run without an agent: wait for a limited time, and print which processes are missing."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any, Dict, List, Tuple

import torch
from torch.distributed import PrefixStore, Store, TCPStore

from tpvformer.engine.distributed.rendezvous import address_to_listen_at, listen_at
from tpvformer.errors import ConfigError, RunEnded

WAIT = "TPVFORMER_WAIT_MINUTES"  # how long processes wait for each other
FIRST_WORD = 10.0  # seconds until the missing processes are printed


def patience() -> float:
    """Return the seconds that processes wait for each other at the start. Raises ConfigError."""
    text = os.environ.get(WAIT) or "5"
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 < minutes < 1e6:
        raise ConfigError(f"environment: {WAIT} is {text!r}; expected a number of minutes above 0")
    return 60 * minutes


def check_interface() -> None:
    """Raise ConfigError if GLOO_SOCKET_IFNAME names an interface that this machine does not have."""
    asked = os.environ.get("GLOO_SOCKET_IFNAME", "")
    there = [name for _, name in socket.if_nameindex()]
    for name in asked.split(","):
        if name and name not in there:
            raise ConfigError(f"environment: GLOO_SOCKET_IFNAME names {name!r}; this machine has {', '.join(there)}")


def meeting_place() -> Tuple[str, int]:
    """Return MASTER_ADDR and MASTER_PORT. Raises ConfigError if one is missing or invalid."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address:
        raise ConfigError("environment: WORLD_SIZE is above 1 but MASTER_ADDR is missing; start with torchrun")
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:9]) < 2**16):
        raise ConfigError(f"environment: MASTER_PORT is {port!r}; expected a port, 1 to 65535")
    return address, int(port)


def meet(rank: int, size: int, speaks: bool, about: Dict[str, str]) -> Store:
    """Return a store that all processes have reached, each with the same ``about`` and its own RANK.

    ``speaks``: whether this process prints on stderr what it waits for. Raises ConfigError for errors of the
    environment, and RunEnded if a process does not connect within ``patience()``.
    """
    deadline = _Deadline(rank, speaks)
    address, port = meeting_place()
    store = _server(address, port, deadline) if rank == 0 else _client(address, port, deadline)
    try:
        if store.add(f"meeting/rank {rank}", 1) > 1:
            raise ConfigError(f"environment: two processes were started with RANK={rank}; each needs its own")
        mine = {**about, "torch": torch.__version__}
        store.set(f"meeting/{rank}", json.dumps({**mine, "host": socket.gethostname()}))
        if rank:
            _wait(store, [0], address, deadline)
            _compare(mine, store, 0, rank)
        _wait(store, range(size), address, deadline)
        for other in range(size) if rank == 0 else ():
            _compare(mine, store, other, rank)
    except RuntimeError as err:
        if isinstance(err, RunEnded):
            raise
        raise RunEnded(
            f"process 0 at {address}:{port} ended before all processes had connected; its output says why"
        ) from err
    return PrefixStore("group", store)


class _Deadline:
    """Track the waiting time, and print once what the process waits for."""

    def __init__(self, rank: int, speaks: bool) -> None:
        self._rank, self._speaks, self._began, self._seconds = rank, speaks, time.monotonic(), patience()
        self._said = False

    @property
    def left(self) -> timedelta:
        return timedelta(seconds=max(1.0, self._began + self._seconds - time.monotonic()))

    def pause(self, what: str) -> None:
        """Sleep briefly while waiting for ``what``. Raises RunEnded after the time limit."""
        waited = time.monotonic() - self._began
        if waited >= self._seconds:
            raise RunEnded(
                f"waited {self._seconds / 60:g} minutes for {what}; see that all processes are started and reach each "
                f"other, and start all again ({WAIT} sets the time)"
            )
        if waited >= FIRST_WORD and not self._said and self._speaks:
            self._said = True
            limit = f"until {self._seconds / 60:g} minutes have passed ({WAIT})"
            print(f"process {self._rank} waits for {what}, {limit}", file=sys.stderr, flush=True)
        time.sleep(0.1)


def _server(address: str, port: int, deadline: _Deadline) -> Store:
    literal = address_to_listen_at(address)
    taken = ConfigError(
        f"environment: MASTER_PORT {port} is in use on this machine, by another run or program; end that, or give all "
        "processes another port"
    )
    try:
        found = None if literal is None else listen_at(literal, port, deadline.left)
        return found or TCPStore(address, port, is_master=True, timeout=deadline.left, wait_for_workers=False)
    except OSError as err:
        if err.errno == errno.EADDRINUSE:
            raise taken from err
        raise ConfigError(f"environment: cannot listen at {address}:{port} ({err.strerror or err})") from err
    except RuntimeError as err:
        text = " ".join(str(err).split())
        if "EADDRINUSE" in text or "in use" in text.lower():
            raise taken from err
        raise ConfigError(f"environment: cannot listen at {address}:{port} ({text[:200]})") from err


def _client(address: str, port: int, deadline: _Deadline) -> Store:
    while True:
        try:
            socket.create_connection((address, port), timeout=2).close()
            break
        except (OSError, UnicodeError) as err:
            reason = getattr(err, "strerror", None) or str(err) or "no answer"
            deadline.pause(f"process 0 at {address}:{port}, which does not answer ({reason})")
    found: List[Any] = []

    def connect() -> None:
        try:
            found.append(TCPStore(address, port, is_master=False, timeout=deadline.left))
        except RuntimeError as err:
            found.append(err)

    # in a thread, because the constructor waits without limit if another program listens there
    threading.Thread(target=connect, name="meeting", daemon=True).start()
    while not found:
        deadline.pause(f"process 0 at {address}:{port}, where another program seems to listen")
    if isinstance(found[0], RuntimeError):
        text = " ".join(str(found[0]).split())
        raise RunEnded(f"the program at {address}:{port} is not process 0 of this run ({text[:200]})") from found[0]
    return found[0]


def _wait(store: Store, ranks: Any, address: str, deadline: _Deadline) -> None:
    keys = [f"meeting/{rank}" for rank in ranks]
    while not store.check(keys):
        missing: List[str] = [str(rank) for rank in ranks if not store.check([f"meeting/{rank}"])]
        if missing:
            which = f"process{'es' if len(missing) > 1 else ''} {', '.join(missing[:10])}"
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            deadline.pause(f"{which}{more} (RANK) of {len(ranks)} to reach {address}")


def _compare(mine: Dict[str, str], store: Store, other: int, rank: int) -> None:
    theirs = json.loads(store.get(f"meeting/{other}"))
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise ConfigError(
                f"the processes of this run differ: {name} is {value} in process {rank} and {theirs.get(name)} in "
                f"process {other} on {theirs.get('host')}; start all with the same command and packages"
            )
