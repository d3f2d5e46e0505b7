"""The addresses at which processes accept connections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Set


def listening(pids: List[int]) -> Set[str]:
    """The addresses at which these processes accept connections, in the kernel's hexadecimal form."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                sockets[fields[9]] = fields[1].partition(":")[0]
    found = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(handle)
            except OSError:
                continue
            found.add(sockets.get(target[len("socket:[") : -1]) if target.startswith("socket:") else None)
    return {address for address in found if address}


LOOPBACK = "0100007F"  # 127.0.0.1
