"""File systems of a few MiB."""

from __future__ import annotations

from pathlib import Path

import programs


def can_mount(folder: Path) -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", str(folder)]
    try:
        return programs.run(command).returncode == 0
    except FileNotFoundError:
        return False
