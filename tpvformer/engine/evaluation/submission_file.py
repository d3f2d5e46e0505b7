"""Write one file with the predictions of all processes for an evaluation set of nuScenes.

Every process writes its predictions into a folder beside the target. Process 0 merges them in the order of the data
set, then renames the file to its final name.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, Sequence, Type, TypeVar

from tpvformer.config import DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.nuscenes.splits import official
from tpvformer.data.nuscenes.tables import read_table
from tpvformer.data.types import Batch
from tpvformer.engine.distributed.collectives import World, barrier
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import ConfigError

if TYPE_CHECKING:
    from tpvformer.model import Prediction

TEST_VERSION = "v1.0-test"
_SETS = {("val", "v1.0-trainval"): "val", ("val", "v1.0-mini"): "mini_val", ("test", TEST_VERSION): "test"}
_MODALITIES = ("camera", "lidar", "radar", "map", "external")
_Own = TypeVar("_Own", bound="SubmissionFile")


class SubmissionFile:
    """Write the predictions of one evaluation set; as a context, remove all partial files if ``finish`` is not reached.

    ``uses`` names the modalities that the method uses beside the cameras. Raises ConfigError for a target that cannot
    be written, before anything is predicted.
    """

    example = ""  # name of such a file
    contents = ""  # what has predictions, in the plural

    def __init__(
        self, target: Path, data: FrameDataset, cfg: DataConfig, name: str, uses: Sequence[str], world: World
    ) -> None:
        self.set = name
        self._target, self._tokens, self._world = target, data.tokens, world
        self._meta = {f"use_{name}": name == "camera" or name in uses for name in _MODALITIES}
        self._whole = official_tokens(cfg, self.set)
        self._folder = target.absolute().with_name(f".{target.name}.partial")
        self._part = self._open()

    def new_part(self, path: Path) -> Any:
        """Open the file of one process; it has a method ``close``."""
        raise NotImplementedError

    def add(self, batch: Batch, prediction: Prediction) -> None:
        """Add the predictions of a batch."""
        raise NotImplementedError

    def join(self, path: Path, log: RunLog) -> None:
        """Write the whole file from the files of all processes."""
        raise NotImplementedError

    def _open(self) -> Any:
        """Open this process's own file; the files of all processes must be in one folder."""
        if self._target.is_dir():
            raise ConfigError(f"submission is {self._target}, which is a folder; name a file such as {self.example}")
        try:
            if self._world.is_main:
                self._folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(self._folder, ignore_errors=True)  # partial files of a killed run
                self._folder.mkdir()
            barrier()
            part = self.new_part(self.part_path(self._world.rank))
        except OSError as err:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise self.unwritable(err) from err
        barrier()
        for rank in range(self._world.size if self._world.is_main else 0):
            if not self.part_path(rank).is_file():
                part.close()
                shutil.rmtree(self._folder, ignore_errors=True)
                raise ConfigError(
                    f"submission is {self._target}, but what process {rank} writes there does not appear here; name a "
                    "folder that all machines share, or use one machine"
                )
        return part

    def part_path(self, rank: int) -> Path:
        """Return the path of the file of a process."""
        return self._folder / f"{rank}.part"

    def unwritable(self, err: OSError) -> ConfigError:
        """Return the error to raise where the file cannot be written."""
        return ConfigError(
            f"submission is {self._target}, which cannot be written ({err.strerror or err}); name another file, on a "
            "disk with room that all processes share"
        )

    def __enter__(self: _Own) -> _Own:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], err: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._part.close()
        if self._world.is_main or kind is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def finish(self, log: RunLog) -> None:
        """Merge the files of all processes and give the whole its final name; every process must call it."""
        try:
            self._part.close()
            barrier()
            if self._world.is_main:
                self.join(self._folder / "whole", log)
                (self._folder / "whole").replace(self._target)
        except OSError as err:
            raise self.unwritable(err) from err
        barrier()
        said = ", ".join(name for name, used in self._meta.items() if used)
        log.line(f"{self._target}: predictions for {len(self._tokens)} {self.contents} of {self.set}, {said}")
        absent, others = len(self._whole - set(self._tokens)), len(set(self._tokens) - self._whole)
        if absent or others:
            log.warn(
                f"{self.set} has {len(self._whole)} key frames; {absent} of them are absent from the infos, which hold "
                f"{others} others; the evaluation server expects the whole set"
            )


def official_tokens(cfg: DataConfig, name: str) -> frozenset:
    """Return the sample tokens of an official evaluation set that are in the tables."""
    folder = Path(cfg.root, cfg.version)
    scenes = set(official(name))
    wanted = {row["token"] for row in read_table(folder, "scene", "name") if row["name"] in scenes}
    return frozenset(
        row["token"] for row in read_table(folder, "sample", "scene_token") if row["scene_token"] in wanted
    )


def evaluation_set(cfg: DataConfig, split: str) -> str:
    """Return the challenge's name of a split of a version."""
    if cfg.format != "nuscenes":
        raise ConfigError(f"data.format is {cfg.format}; a submission is for nuScenes' servers alone")
    if cfg.classes is not None or cfg.label_map == "surroundocc":
        raise ConfigError(f"data.label_map is {cfg.label_map}; a submission needs nuScenes' classes in nuScenes' order")
    name = _SETS.get((split, cfg.version))
    if name is None:
        known = ", ".join(f"{kind} of {version}" for kind, version in _SETS)
        raise ConfigError(
            f"data.version is {cfg.version}, whose {split} split is no evaluation set of the challenge; expected "
            f"{known}"
        )
    return name
