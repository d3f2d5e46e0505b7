"""Create a store that listens at one given address instead of all addresses of the machine."""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any, Dict, Optional

from torch.distributed import TCPStore

from tpvformer.engine.distributed.parent import RESERVED_PORT


def address_to_listen_at(host: str) -> Optional[str]:
    """Return ``host`` as an IP address if it is one or "localhost"; None for names, which may resolve differently."""
    try:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
    except ValueError:
        return None


def listen_at(address: str, port: int, timeout: timedelta) -> Optional[TCPStore]:
    """Return a store whose server listens at this address only; torch's servers listen at all addresses. Port 0: any.

    In rank 0 of a launch the socket that the launcher has bound is used (``RESERVED_PORT``). While the store lives,
    stores of this process on the same port use its server (``multi_tenant``). Returns None if the address belongs to
    another machine or the port is taken: torch then connects to the server, or reports the error.
    """
    reserved = os.environ.pop(RESERVED_PORT, "")  # of the launcher: bound already
    if reserved.isdecimal():
        server = socket.socket(fileno=int(reserved))
    else:
        server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    with server:
        try:
            if not reserved:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((address, port))
            server.listen(1024)
        except OSError:
            return None
        options: Dict[str, Any] = {"is_master": True, "multi_tenant": True, "wait_for_workers": False}
        port = server.getsockname()[1]
        return TCPStore(address, port, timeout=timeout, master_listen_fd=server.detach(), **options)
