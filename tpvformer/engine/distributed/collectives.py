"""Many processes as torchrun starts them (RANK, WORLD_SIZE, LOCAL_RANK); one process needs none of it."""

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

from tpvformer.engine.device.accelerator import collective_backend
from tpvformer.engine.distributed import connect as meeting
from tpvformer.errors import ConfigError, RunEnded


@dataclass(frozen=True)
class World:
    """Where this process stands: ``rank`` of ``size``, ``local_rank`` of ``local_size`` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0


def read_world() -> World:
    """What torchrun put into the environment. Without RANK this is a single process, whatever else is set."""
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


# of an exchange, where nothing else ends a process that waits in vain; and where a watchdog does, which does not count
# the time in which a run is suspended
_TIMEOUT, _WATCHED = datetime.timedelta(minutes=30), datetime.timedelta(days=7)
_hosts: Optional[Any] = None  # the group in which processors talk; None where that is the only group there is


def start(world: World, device: torch.device, watched: bool = False) -> None:
    """Join the process group; with one process there is none. The device must be current already.

    ``watched``: a watchdog ends a process that waits in vain, so that exchanges need no short limit of their own.
    Raises ConfigError and RunEnded where the processes do not find each other.
    """
    global _hosts
    if world.size == 1:
        return
    backend = collective_backend(device)
    meeting.check_interface()
    timeout = _WATCHED if watched else _TIMEOUT
    options: Dict[str, Any] = {"timeout": timeout}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # else torchrun's agents have met already
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
    """Leave the process group together, if one was joined."""
    if dist.is_initialized():
        dist.barrier()
        # Gloo's threads let go of the last tensors only now, for which they need the interpreter; torch 2.1 waits for
        # them in destroy_process_group without giving it to them, and hangs.
        time.sleep(0.2)
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


EXCHANGED = (torch.int64, torch.float32)  # what every backend sums; some know no float64, no bytes and no averages


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place. Raises TypeError for what is not among EXCHANGED, on any backend."""
    if tensor.dtype not in EXCHANGED:
        raise TypeError(f"{tensor.dtype} is not summed over processes on every backend; expected one of {EXCHANGED}")
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def agree(values: Sequence[int]) -> List[int]:
    """Sums of small numbers over the processes. The accelerators are not waited for."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(tensor, group=_hosts)
    return [int(value) for value in tensor.tolist()]


def gather(tensor: Tensor) -> Tensor:
    """The same tensor (n) on the CPU of every process, as (processes, n); likewise without accelerators."""
    if not dist.is_initialized():
        return tensor[None]
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, tensor, group=_hosts)
    return torch.stack(everyone)


def all_gather_strings(text: str) -> List[str]:
    """The texts of all processes, in all of them."""
    mine = torch.tensor(list(text.encode()), dtype=torch.int64)
    lengths = gather(torch.tensor([len(mine)])).flatten().tolist()
    padded = torch.nn.functional.pad(mine, (0, max(lengths) - len(mine)))
    return [bytes(row[:n].tolist()).decode() for row, n in zip(gather(padded), lengths)]


def broadcast_string(text: str) -> str:
    """The text that process 0 gave."""
    if not dist.is_initialized():
        return text
    mine = torch.tensor(list(text.encode()), dtype=torch.int64)
    length = torch.tensor([len(mine)])
    dist.broadcast(length, 0, group=_hosts)
    mine = mine if dist.get_rank() == 0 else torch.empty(int(length), dtype=torch.int64)
    dist.broadcast(mine, 0, group=_hosts)
    return bytes(mine.tolist()).decode()


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of rank 0 (running statistics of ordinary batch norms drift apart otherwise)."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wrap_ddp(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """Average gradients over the processes. Buffers are not exchanged at each step; see ``share_buffers``."""
    if world.size == 1:
        return model
    ids = None if device.type == "cpu" else [device.index]
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    exchange = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
    options: Dict[str, Any] = {exchange: False, "find_unused_parameters": False}
    options["gradient_as_bucket_view"] = True  # no copy of the gradients, in time nor in memory
    return DistributedDataParallel(model, device_ids=ids, **options)
