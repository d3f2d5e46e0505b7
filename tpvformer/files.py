"""Write files atomically, and make paths of local files and of remote storage (``s3://``, ``memory://``)."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Generator, Union, cast

from tpvformer.errors import ConfigError


@contextmanager
def replacing(path: Path, suffix: str = "") -> Generator[Path, None, None]:
    """Yield a name beside ``path`` to write to; it ends with ``suffix``, for writers that choose a format by it.

    When the block ends, the file replaces ``path``. Where the block fails, the file is removed and ``path`` unchanged.
    Raises OSError where the file cannot replace ``path``, and every error of the block.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial{suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO, None, None]:
    """Yield a file that replaces ``path`` when all of it is written; folders are made. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            yield file
    except OSError as err:
        raise ConfigError(
            f"{path}: cannot be written ({err.strerror or err}); choose another --out or make room"
        ) from err


def folder_prefix(text: str) -> str:
    """Return a folder as a prefix of file names, with its final slash."""
    return text if not text or text.endswith(("/", "\\")) else f"{text}/"


@contextmanager
def gc_paused() -> Generator[None, None, None]:
    """Pause Python's garbage collector. Tables and records have no cycles, and collection takes a third of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def to_path(first: Union[str, Path], *rest: str) -> Path:
    """Return the path of a file or folder; parts are joined as by ``Path``.

    A text with ``://`` becomes a ``UPath``, which has the same methods. Raises ConfigError where the packages for its
    kind of storage are not installed.
    """
    text = str(first)
    if "://" not in text:
        return Path(first, *rest)
    _need(text.partition("://")[0])
    from upath import UPath

    return cast(Path, UPath(text, *rest))


@lru_cache(maxsize=None)
def _need(protocol: str) -> None:
    try:
        import fsspec
        import upath  # noqa: F401

        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as err:
        raise ConfigError(
            f"{protocol}:// cannot be read ({err}); pip install tpvformer[remote] and the fsspec package for this "
            "storage (for example s3fs), or copy the data to a local folder"
        ) from None
