"""Writing a file whole or not at all; making millions of small objects without being interrupted."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Generator

from tpvformer.config import ConfigError


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO, None, None]:
    """A file to write, which appears under ``path`` when all of it is written. Raises ConfigError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as err:
        raise ConfigError(
            f"{path}: cannot be written ({err.strerror or err}); choose another --out or make room"
        ) from err


@contextmanager
def gc_paused() -> Generator[None, None, None]:
    """No search for cycles meanwhile: tables and records are trees, and looking through them again and again as they
    grow takes a third of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
