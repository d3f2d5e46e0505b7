"""The values of ``data.format``: those that this package reads, and the data sets that a program has registered."""

from __future__ import annotations

from typing import List, Tuple

from tpvformer.errors import ConfigError
from tpvformer.untrusted.names import is_file_name, short

BUILT_IN = ("nuscenes", "semantickitti")
_registered: List[str] = []


def formats() -> Tuple[str, ...]:
    """Return the known values of ``data.format``; those of ``tpvformer.data.formats.register`` follow the built-in."""
    return (*BUILT_IN, *_registered)


def add_format(name: str) -> None:
    """Let ``data.format`` take a name. Raises ConfigError for a built-in one, and for one that is no plain name."""
    if name in BUILT_IN or not is_file_name(name):
        raise ConfigError(
            f"the data set is to be registered as {short(name)}; expected a name of its own, other than "
            f"{' and '.join(BUILT_IN)}"
        )
    if name not in _registered:
        _registered.append(name)
