"""Write a synthetic drive in the layout that is asked for, and say what was written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable, Optional, Tuple

from tpvformer.errors import ConfigError
from tpvformer.files import folder_prefix


def synthesize(
    out: Path,
    scenes: int,
    seed: int,
    frames: int,
    size: Optional[Tuple[int, int]] = None,
    workers: Optional[int] = None,
    occupancy: bool = False,
    prefix: str = "",
    kitti: bool = False,
    progress: Optional[Callable[[int, int], None]] = None,
) -> str:
    """Write nuScenes' layout, or with ``kitti`` SemanticKITTI's, to ``out``; return a line about it.

    ``size`` is the width and height of the images, by default 1600x900; the other arguments are those of
    ``write_dataset``. Raises ConfigError, also if Numba or OpenCV cannot be used.
    """
    try:
        from tpvformer.data.street.write import write_dataset, write_sequences
    except (ImportError, RuntimeError) as err:  # Numba raises RuntimeError if it finds no cache folder
        raise ConfigError(
            f"synth draws with Numba and OpenCV, and one of them cannot be used here ({err}); tpvformer doctor says "
            "what is missing. The folder may also be made on another machine and copied"
        ) from err

    began, before = time.perf_counter(), folder_prefix(prefix)
    if kitti:
        if size is not None or occupancy or before:
            raise ConfigError(
                "--kitti: SemanticKITTI has images of its own size, always voxels and no info files; leave --size, "
                "--occupancy and --prefix out"
            )
        fresh = write_sequences(out, scenes, seed, frames, workers, progress)
        what = f"{scenes} sequences of {frames} frames with voxels, seed {seed}"
    else:
        width, height = shape = size or (1600, 900)
        fresh = write_dataset(out, scenes, shape, seed, frames, workers, progress, occupancy, before)
        what = f"{scenes} scenes of {frames} frames, images {width}x{height}, seed {seed}"
    if not fresh:
        return f"{out}: already holds {what}"
    return f"{out}: {what}, written in {time.perf_counter() - began:.1f} s"
