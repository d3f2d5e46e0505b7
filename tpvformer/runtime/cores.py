"""Find the cores that this process may use, configure its threads, and measure the load of other processes."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path
from typing import Iterator, Optional, Tuple

ROOT = Path("/")  # folder of proc and sys
LOADED = 1 / 8  # share of all cores; a smaller load of other processes is not reported


def cores() -> int:
    """Return the cores that this process may use at once, at least one: its CPU affinity, limited by its cgroup quota.

    ``docker run --cpus=1`` sets the quota only: 64 threads would then wait for each other.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _share()
    return bound if share is None else max(1, min(bound, math.ceil(share)))


def set_up_threads() -> None:
    """Set the environment variables of OpenMP and Numba, unless the user has; call it before PyTorch is imported.

    Idle threads spin for about 10 us instead of milliseconds before they sleep. This is no slower on free cores and
    leaves busy cores to other programs. Threads are limited to the cgroup quota.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if _share() is not None and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(cores())
        os.environ.setdefault("NUMBA_NUM_THREADS", str(cores()))


def load_of_others(seconds: float = 0.2) -> Optional[str]:
    """Return a sentence if other processes keep part of this machine busy, measured over ``seconds``; else None.

    Works on Linux only. Other processes of this launch (children of this process's parent, if LOCAL_WORLD_SIZE is above
    1) are not counted.
    """
    try:
        before = _ticks()
        time.sleep(seconds)
        (total, busy, ours, count), (total_0, busy_0, ours_0, _) = _ticks(), before
    except (OSError, ValueError, IndexError):
        return None
    if total <= total_0:
        return None
    others = count * ((busy - busy_0) - max(0, ours - ours_0)) / (total - total_0)
    if others < LOADED * count:
        return None
    return f"other processes keep {others:.1f} of {count} cores busy: steps will take longer"


def _ticks() -> Tuple[int, int, int, int]:
    """Return ticks since boot of all cores, non-idle ticks, ticks of our processes; and the number of cores."""
    lines = (ROOT / "proc/stat").read_text(encoding="ascii").splitlines()
    fields = [int(word) for word in lines[0].split()[1:9]]  # user nice system idle iowait irq softirq steal
    count = sum(line.startswith("cpu") for line in lines) - 1
    total = sum(fields)
    return total, total - fields[3] - fields[4], sum(_our_ticks()), count


def _our_ticks() -> Iterator[int]:
    me = os.getpid()
    siblings = os.getppid() if os.environ.get("LOCAL_WORLD_SIZE", "1") != "1" else me
    for folder in (ROOT / "proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            after_name = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(folder.name) == me or int(after_name[1]) in (me, siblings):
                yield int(after_name[11]) + int(after_name[12])


def _share() -> Optional[float]:
    """Return the cores that the cgroups of this process allow; None without a quota."""
    shares = []
    with contextlib.suppress(OSError, ValueError):
        for line in (ROOT / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                top = ROOT / "sys/fs/cgroup" / ("cpu" if controllers else "")
                own = top / group.strip("/")
                shares += [_quota(folder) for folder in (own, *own.parents) if top in (folder, *folder.parents)]
    return min((share for share in shares if share is not None), default=None)


def _quota(folder: Path) -> Optional[float]:
    """Return the quota of one cgroup in cores, version 2 or 1; None without one."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        values = [int((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii")) for name in ("quota", "period")]
        return values[0] / values[1] if values[0] > 0 else None
    return None
