"""Exchange values between processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK); no-ops in one process."""

from __future__ import annotations

import datetime
import inspect
import os
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tpvformer.engine.device.accelerator import collective_backend, packs_gradients
from tpvformer.engine.distributed import connect as meeting
from tpvformer.errors import ConfigError, RunEnded


@dataclass(frozen=True)
class World:
    """Hold the position of this process: ``rank`` of ``size``, ``local_rank`` of ``local_size`` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Return True in process 0, the one that writes files."""
        return self.rank == 0


def read_world() -> World:
    """Read torchrun's environment variables. Without RANK this is a single process, whatever else is set."""
    if "RANK" not in os.environ:
        return World()
    values = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        text = os.environ.get(name, "")
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise ConfigError(f"environment: RANK is set but {name} is {text!r}; start many processes with torchrun")
        values[name] = int(text)
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if values[rank] >= values[size]:
            raise ConfigError(f"environment: {rank} is {values[rank]}; expected less than {size}, {values[size]}")
    return World(values["RANK"], values["WORLD_SIZE"], values["LOCAL_RANK"], values["LOCAL_WORLD_SIZE"])


# time limits of a collective operation: without a watchdog; with one, which ends a waiting process itself and does not
# count the time in which the run is suspended
_TIMEOUT, _WATCHED = datetime.timedelta(minutes=30), datetime.timedelta(days=7)
_hosts: Optional[Any] = None  # the gloo group of the CPUs; None if the default group is gloo


def start(world: World, device: torch.device, watched: bool = False) -> None:
    """Join the process group, if there are several processes. The device must already be current.

    ``watched``: a watchdog ends a waiting process, so that collective operations need no short time limit. Raises
    ConfigError and RunEnded if the processes cannot connect.
    """
    global _hosts
    if world.size == 1:
        return
    backend = collective_backend(device)
    meeting.check_interface()
    timeout = _WATCHED if watched else _TIMEOUT
    options: Dict[str, Any] = {"timeout": timeout}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # else torchrun's agents are connected already
        about = {"device": device.type, "WORLD_SIZE": str(world.size)}
        store = meeting.meet(world.rank, world.size, world.local_rank == 0, about)
        options.update(store=store, rank=world.rank, world_size=world.size)
    try:
        dist.init_process_group(backend, **options)
        _hosts = None if backend == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
    except RuntimeError as err:
        raise RunEnded(
            f"process {world.rank} cannot exchange numbers with the others ({' '.join(str(err).split())[:300]}); name "
            "the interface that connects them, GLOO_SOCKET_IFNAME and its like (docs/distributed.md)"
        ) from err


def stop() -> None:
    """Leave the process group, together with all processes."""
    if dist.is_initialized():
        dist.barrier()
        # Gloo's threads release the last tensors only now, and need the GIL for that. torch 2.1 waits for them in
        # destroy_process_group while it holds the GIL, and hangs.
        time.sleep(0.2)
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


EXCHANGED = (torch.int64, torch.float32)  # types that every backend sums; some lack float64, bytes and averages


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place. Raises TypeError for a type outside EXCHANGED, on any backend."""
    if tensor.dtype not in EXCHANGED:
        raise TypeError(f"{tensor.dtype} is not summed over processes on every backend; expected one of {EXCHANGED}")
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def agree(values: Sequence[int]) -> List[int]:
    """Return the sums of small integers over the processes, without synchronising with the accelerators."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(tensor, group=_hosts)
    return [int(value) for value in tensor.tolist()]


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors (n) of all processes, on the CPU, as (processes, n), without using the accelerators."""
    if not dist.is_initialized():
        return tensor[None]
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, tensor, group=_hosts)
    return torch.stack(everyone)


def all_gather_strings(text: str) -> List[str]:
    """Return the strings of all processes, in all of them."""
    mine = torch.tensor(list(text.encode()), dtype=torch.int64)
    lengths = gather(torch.tensor([len(mine)])).flatten().tolist()
    padded = torch.nn.functional.pad(mine, (0, max(lengths) - len(mine)))
    return [bytes(row[:n].tolist()).decode() for row, n in zip(gather(padded), lengths)]


def broadcast_string(text: str) -> str:
    """Return the string of process 0."""
    if not dist.is_initialized():
        return text
    mine = torch.tensor(list(text.encode()), dtype=torch.int64)
    length = torch.tensor([len(mine)])
    dist.broadcast(length, 0, group=_hosts)
    mine = mine if dist.get_rank() == 0 else torch.empty(int(length), dtype=torch.int64)
    dist.broadcast(mine, 0, group=_hosts)
    return bytes(mine.tolist()).decode()


def share_buffers(model: nn.Module) -> None:
    """Copy the buffers of rank 0 to every process, because running statistics of batch norms differ between them."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wrap_ddp(model: nn.Module, world: World, device: torch.device, unused: bool = False) -> nn.Module:
    """Wrap a model in DDP, which averages gradients. Buffers are not exchanged at each step; see ``share_buffers``.

    ``unused``: search for parameters that a step does not use, as only a checkout's own model may have them.

    ``static_graph`` stays off: it saves the search for unused parameters, which is off already, and delays the first
    exchange; gradients are the same to the bit (tests/engine/distributed/test_agreement.py).
    """
    if world.size == 1:
        return model
    ids = None if device.type == "cpu" else [device.index]
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    exchange = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
    options: Dict[str, Any] = {exchange: False, "find_unused_parameters": unused}
    options["gradient_as_bucket_view"] = not packs_gradients(device)  # saves a copy of the gradients
    return DistributedDataParallel(model, device_ids=ids, **options)
