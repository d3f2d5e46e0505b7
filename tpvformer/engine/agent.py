"""Run torchrun with changes for long trainings on several machines, one agent a machine.

    python -m tpvformer.engine.agent TORCHRUN'S FLAGS -m tpvformer train ...

The agent takes torchrun's flags and environment variables (PET_*). It differs from torchrun in eight points:

- The rendezvous listens at the given address only, not at all addresses of the machine.
- A lost machine can join again. torchrun shares the rendezvous store with its processes, and an agent that joins after
  a restart is then refused (https://github.com/pytorch/pytorch/issues/135712).
- Without OMP_NUM_THREADS the cores are divided among the processes.
- The exit status is that of the process that failed.
- An error of the rendezvous is printed as one line.
- SIGUSR1 is forwarded to the processes, which save and end.
- Ctrl-Z also stops the processes, which torch starts in sessions of their own.
- After 10 s of waiting for other machines a line is printed; after TPVFORMER_WAIT_MINUTES the agent ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any, List, Optional, Tuple

from tpvformer.engine.distributed.connect import FIRST_WORD, WAIT, patience
from tpvformer.engine.distributed.launch import threads
from tpvformer.engine.distributed.rendezvous import address_to_listen_at, listen_at
from tpvformer.errors import ConfigError

PORT = 29400  # torch's default port of a rendezvous


def run_agent(flags: List[str]) -> int:
    """Start the processes that torchrun's ``flags`` describe; return the exit status of the first failure, or 0.

    A failed process has printed its own error; the other processes are stopped. Raises ConfigError for an endpoint that
    is not HOST:PORT.
    """
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    args = parse_args(flags)
    if str(args.nproc_per_node).isdigit():
        os.environ.setdefault("OMP_NUM_THREADS", str(threads(int(args.nproc_per_node))))
    host, port = endpoint(args)
    # later stores of this process on the same port use this server, which is closed with the variable
    store = None if host is None else listen_at(host, port, timeout=timedelta(seconds=60))
    handlers = {"SIGUSR1": lambda number, _: _pass_on(number), "SIGTSTP": lambda *_: _stand_still()}
    before = {
        getattr(signal, name): signal.signal(getattr(signal, name), handler)
        for name, handler in handlers.items()
        if hasattr(signal, name)  # Windows has none
    }
    os.environ["TPVFORMER_ENDPOINT"] = args.rdzv_endpoint  # distinguishes jobs of the same name
    seconds = int(patience())
    limits = {"c10d": f"join_timeout={seconds}", "static": f"timeout={seconds}"}
    if args.rdzv_backend in limits and "timeout" not in args.rdzv_conf:
        args.rdzv_conf = ",".join(filter(None, (args.rdzv_conf, limits[args.rdzv_backend])))
    word = threading.Timer(FIRST_WORD, _say_waiting, (args.nnodes, args.rdzv_endpoint or args.master_addr, seconds))
    word.daemon = True
    word.start()
    try:
        run(args)
    except ChildFailedError as err:
        _, failure = err.get_first_failure()
        code = int(failure.exitcode)
        return code if code > 0 else 128 - code  # ended by a signal: 128 + its number, as a shell reports it
    except SignalException as err:  # Ctrl-C or SIGTERM; the processes have been stopped
        return 128 + int(err.sigval)
    except (RendezvousError, getattr(dist, "DistError", RendezvousError)) as err:
        print(f"agent: the machines did not find each other, or lost each other: {_reason(err)}", file=sys.stderr)
        return 1
    finally:
        word.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        del store
    return 0


def endpoint(args: Any) -> Tuple[Optional[str], int]:
    """Return the host and port to listen at; (None, 0) for an agent that does not serve, or an unsupported backend."""
    named = args.rdzv_endpoint
    if not named and args.rdzv_backend == "static" and args.master_port is not None:
        named = f"{args.master_addr}:{args.master_port}"
    if not named or args.rdzv_backend not in ("c10d", "static") or "store_type=file" in args.rdzv_conf:
        return None, 0
    host, _, port = named.rpartition(":") if ":" in named.rpartition("]")[2] else (named, ":", str(PORT))
    if not port.isdigit() or int(port) >= 2**16:
        raise ConfigError(f"agent: the endpoint {named} has no port; expected HOST:PORT with a port up to 65535")
    hosts = args.rdzv_backend == "c10d" or str(args.node_rank) == "0"
    return (address_to_listen_at(host.strip("[]")), int(port)) if hosts else (None, 0)


def _children() -> List[int]:
    """Return the process ids of the children, from /proc, or from pgrep on macOS; torch does not expose them."""
    if not Path("/proc/self/stat").exists():
        found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]
    pids = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended
            pid, _, rest = file.read_text().partition(" ")
            if rest.rpartition(")")[2].split()[1] == str(os.getpid()):
                pids.append(int(pid))
    return pids


def _pass_on(number: int) -> None:
    """Send a signal to the child processes."""
    for pid in _children():
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _stand_still() -> None:
    """Stop the process groups of the children, then this process; continue them when this process is continued."""
    groups = [pid for pid in _children() if os.getpgid(pid) == pid]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for group in groups:
            with contextlib.suppress(OSError):
                os.killpg(group, number)
        if number == signal.SIGSTOP:
            os.kill(os.getpid(), signal.SIGSTOP)


def _say_waiting(machines: str, place: str, seconds: int) -> None:
    """Print that the agent waits, if no process has been started yet."""
    if not _children():
        print(
            f"agent: waits for the other machines ({machines} in all) at {place}, until {seconds / 60:g} minutes have "
            f"passed ({WAIT})",
            file=sys.stderr,
            flush=True,
        )


def _reason(err: BaseException) -> str:
    """Return the message of the innermost cause."""
    while err.__cause__ is not None:
        err = err.__cause__
    return " ".join(str(err).split())


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; return its exit status."""
    try:
        return run_agent(sys.argv[1:] if argv is None else argv)
    except ConfigError as err:
        print(err, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
