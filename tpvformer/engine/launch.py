"""One command in many processes on this machine: torchrun with the command's exit status and without a traceback."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from datetime import timedelta
from typing import List

from .agent import run_agent
from .device import visible_cards
from .rendezvous import listen_at

LOCAL = "127.0.0.1"


def launch(processes: int, argv: List[str]) -> int:
    """Run ``python -m tpvformer <argv>`` in ``processes`` processes; returns the first failure's exit status, or 0.

    As ``torchrun --standalone --nproc_per_node=<processes> -m tpvformer <argv>`` does, but nothing listens where other
    machines could connect.
    """
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    store = listen_at(LOCAL, 0, timedelta(seconds=60))  # kept until all is done
    place = f"{LOCAL}:{0 if store is None else store.port}"
    meeting = ["--nnodes=1", "--rdzv_backend=c10d", f"--rdzv_endpoint={place}", f"--rdzv_id={uuid.uuid4()}"]
    return run_agent([*meeting, f"--local_addr={LOCAL}", f"--nproc_per_node={processes}", "-m", "tpvformer", *argv])


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
