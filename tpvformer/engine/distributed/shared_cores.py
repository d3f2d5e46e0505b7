"""Divide the cores of a machine among the processes of a run."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from typing import List

from tpvformer.engine.distributed import collectives as distributed
from tpvformer.runtime.cores import cores


def cores_of_this_process() -> int:
    """Return the cores that this process may count as its own, at least one. All processes of the run must call it.

    Cores that several processes of a machine may use are divided among them; cores to which a launcher has bound this
    process alone (Slurm's --cpus-per-task) all count. A quota of the container is divided by the processes in it.
    """
    bound: List[int] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    bound = bound or list(range(os.cpu_count() or 1))
    machine = platform.node()
    everyone = [json.loads(text) for text in distributed.all_gather_strings(json.dumps([machine, bound]))]
    near = [theirs for name, theirs in everyone if name == machine]
    users = Counter(core for theirs in near for core in theirs)
    share = sum(1 / users[core] for core in bound)
    if cores() < len(bound):  # a quota allows fewer than the affinity does
        share = min(share, cores() / len(near))
    return max(1, int(share + 1e-6))
