"""A procedural street: its layout, its objects, and one ray caster that six cameras and a lidar share.

Importing it raises ConfigError where Numba finds no folder for what it compiles.
"""

from __future__ import annotations

from numba import njit

from tpvformer.errors import ConfigError

try:

    @njit(cache=True)
    def _probe() -> None: ...

except RuntimeError as err:  # of the kind "cannot cache function"
    raise ConfigError(
        "synthetic streets are drawn by kernels that Numba compiles, and it finds no folder where it may keep them; "
        "set NUMBA_CACHE_DIR to a folder that can be written"
    ) from err
