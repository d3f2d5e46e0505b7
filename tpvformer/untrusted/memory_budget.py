"""Limit the memory that reading an untrusted file may take.

A few bytes can request gigabytes: an index in a pickle's memo, the length of a string, the shape of an array in a
compressed archive. Found by fuzzing: a damaged info pickle of 20 kB took 23 GB, until the kernel killed the process.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Generator


@contextmanager
def memory_budget(size: int) -> Generator[None, None, None]:
    """Limit the process' address space to 32 times ``size`` bytes plus 1 GiB above what it has taken.

    Beyond the limit, allocations raise MemoryError. It works on Linux only, and holds for all threads while the block
    runs.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    try:
        import resource
    except ImportError:  # a Python without this module
        yield
        return
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = taken + 32 * size + 2**30
    bounded = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
    resource.setrlimit(resource.RLIMIT_AS, (bounded, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
