"""One command in many processes on this machine: torchrun with the command's exit status and without a traceback."""

from __future__ import annotations

import logging
import os
from typing import List

from .device import visible_cards


def launch(processes: int, argv: List[str]) -> int:
    """Run ``python -m tpvformer <argv>`` in ``processes`` processes; returns the first failure's exit status, or 0.

    The same as ``torchrun --standalone --nproc_per_node=<processes> -m tpvformer <argv>``. A process that fails has
    said why itself; the others are stopped. Without OMP_NUM_THREADS the cores are shared out among the processes.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", str(threads(processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(parse_args(["--standalone", f"--nproc_per_node={processes}", "-m", "tpvformer", *argv]))
    except ChildFailedError as err:
        _, failure = err.get_first_failure()
        code = int(failure.exitcode)
        return code if code > 0 else 128 - code  # ended by a signal: the shell's way of saying so
    except SignalException as err:  # Ctrl-C, or an end from outside; the processes have been stopped
        return 128 + int(err.sigval)
    return 0


def one_a_card(most: int, device: str) -> int:
    """How many processes to start: one for each visible card, ``most`` at most; ``most`` where there is no card.

    Fewer than ``most`` make a smaller global batch, which a line on stdout says.
    """
    cards = visible_cards(device)
    if not 0 < cards < most:
        return most
    seen = "1 card is visible: 1 process is" if cards == 1 else f"{cards} cards are visible: {cards} processes are"
    batches = "1 batch" if cards == 1 else f"{cards} batches"
    print(f"{seen} started instead of {most}, and a step takes {batches} instead of {most}", flush=True)
    return cards


def threads(processes: int) -> int:
    """Threads for each of ``processes``: an equal share of the cores that this process may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)
