"""Where files lie: below a local folder, or anywhere that fsspec reaches (``s3://``, ``gs://``, ``memory://``, ...)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Union, cast

from tpvformer.config import ConfigError


def to_path(first: Union[str, Path], *rest: str) -> Path:
    """The path of a file or folder; parts are joined as by ``Path``.

    A text with ``://`` becomes a ``UPath``, which answers to the same calls. Raises ConfigError where the packages for
    its kind of storage are not installed.
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
