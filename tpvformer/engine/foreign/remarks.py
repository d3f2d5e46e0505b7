"""Lines about what a script gets in place of what it asks for, each printed once in all of its processes."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Callable, Optional

_FOLDER = "TPVFORMER_RUN_SAID"  # a folder with a file for each line that was printed
_listener: Optional[Callable[[str], None]] = None


def open_remarks() -> bool:
    """Begin to count the remarks of this process and of those that it starts; return False if it was begun before."""
    if _FOLDER in os.environ:
        return False
    os.environ[_FOLDER] = tempfile.mkdtemp(prefix="tpvformer-run-")
    return True


def close_remarks(began: bool) -> None:
    """End what ``open_remarks`` began, in the process that began it."""
    if began:
        shutil.rmtree(os.environ.pop(_FOLDER), ignore_errors=True)


def tell(listener: Callable[[str], None]) -> None:
    """Give the remarks of this process to ``listener`` from now on, instead of printing them."""
    global _listener
    _listener = listener


def remark(text: str) -> None:
    """Print a line on stderr unless a process of this run has."""
    if _listener is not None:
        _listener(text)
        return
    folder = os.environ.get(_FOLDER)
    if folder is not None:
        file = Path(folder, hashlib.sha256(text.encode()).hexdigest())
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        except OSError:
            pass  # the folder is gone: better twice than not at all
    print(f"tpvformer run: {text}", file=sys.stderr, flush=True)
