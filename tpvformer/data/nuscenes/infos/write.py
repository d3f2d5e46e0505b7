"""Write the info files of a nuScenes download, and give a configuration the set of a download that has none."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Callable, Generator, Iterator, Optional, Sequence

from tpvformer.config import Config
from tpvformer.data.nuscenes.boxes import add_boxes
from tpvformer.data.nuscenes.infos.build import SWEEPS, build
from tpvformer.data.nuscenes.infos.pickle_file import write_pickle
from tpvformer.data.nuscenes.infos.tensor_file import write_tensors
from tpvformer.data.nuscenes.splits import default_splits, further, scenes_of
from tpvformer.data.nuscenes.tables import Progress, version_below
from tpvformer.errors import ConfigError, DataError
from tpvformer.files import folder_prefix

WRITERS = {"pkl": write_pickle, "safetensors": write_tensors}  # by suffix


def write_infos(
    root: Path,
    warn: Callable[[str], None],
    version: Optional[str] = None,
    splits: Sequence[str] = (),
    out: Optional[Path] = None,
    formats: Sequence[str] = tuple(WRITERS),
    prefix: Optional[str] = None,
    sweeps: int = SWEEPS,
    progress: Optional[Progress] = None,
) -> Iterator[str]:
    """Write ``nuscenes_infos_<split>.<format>`` for each split; yield a line about each file.

    Defaults: the only ``version`` below ``root``, the splits of that version, ``out`` the folder that holds ``root``,
    ``prefix`` the root as given. ``warn`` takes a line about a split with missing scenes. Raises ConfigError and
    DataError.
    """
    version = version or version_below(root)
    folder = root / version
    splits = splits or default_splits(folder)
    if not splits:
        raise ConfigError(f"version is {version}, which has no official splits; {further(folder)}")
    out = root.parent if out is None else out
    before = folder_prefix(root.as_posix() if prefix is None else prefix)
    made = build(root, version, splits, before, sweeps, progress)
    try:
        add_boxes(made, folder, progress)
    except DataError as err:
        warn(f"the infos get no boxes, which only detection needs: {err}")
    for split, infos in made.items():
        scenes, wanted = len(set(infos.scenes)), len(set(scenes_of(folder, split)))
        what = f"{len(infos)} samples of {scenes} scenes, {len(infos.cameras)} cameras, {len(infos.sweeps)} sweeps"
        if infos.boxes is not None:
            what += f", {len(infos.boxes.yaws)} boxes"
        if scenes < wanted:
            warn(f"{split}: {scenes} of its {wanted} scenes are in {folder}")
        for kind in formats:
            path = out / f"nuscenes_infos_{split}.{kind}"
            WRITERS[kind](infos, path)
            yield f"{path}: {what}, {path.stat().st_size / 1e6:.1f} MB"


@contextlib.contextmanager
def set_below(
    root: Optional[Path], version: Optional[str], split: str, config: Config, progress: Optional[Progress] = None
) -> Generator[Config, None, None]:
    """Yield the configuration with the set of a nuScenes download, or unchanged without ``root``.

    The tables are read when the context is entered. Raises ConfigError and DataError.
    """
    if root is None:
        yield config
        return
    version = version or version_below(root)
    splits = default_splits(root / version)
    named = [name for name in splits if name.endswith(split)] or (splits if len(splits) == 1 else [])
    if not named:
        raise ConfigError(
            f"{root / version} has no split that is called {split}; give another --split or --version; "
            f"{further(root / version)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        infos = Path(folder, "infos.safetensors")
        write_tensors(build(root, version, named[:1], f"{root.as_posix()}/", 0, progress)[named[0]], infos)
        places = {"root": str(root), "version": version, f"{split}_infos": str(infos)}
        yield dataclasses.replace(config, data=dataclasses.replace(config.data, **places))
