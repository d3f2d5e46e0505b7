"""Limit the memory that reading an untrusted file may take.

A few bytes can ask for gigabytes: a place in a pickle's table of memories, the length of a text, the shape of an array
in a compressed archive. Found by fuzzing: a damaged info pickle of 20 kB took 23 GB, until the kernel ended the
process.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Generator


@contextmanager
def memory_budget(size: int) -> Generator[None, None, None]:
    """Let the process take at most 32 times ``size`` bytes and 1 GiB more than it has; MemoryError comes beyond that.

    The limit works on Linux only. The limit counts for all threads, so keep the time short.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    try:
        import resource
    except ImportError:  # a Python that was built without it
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
