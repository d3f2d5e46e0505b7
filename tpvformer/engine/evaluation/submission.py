"""Write predictions for the nuScenes lidar segmentation challenge, in its server's format.

The zip holds ``lidarseg/<set>/<token of the lidar record>_lidarseg.bin``, one byte a point in the scan's order, 1 to
16, and ``<set>/submission.json``, which lists the modalities that were used. Every process writes its predictions into
a folder beside the target. Process 0 merges them in the order of the data set, then renames the zip to its final name.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Dict, Optional, Sequence, Type

import torch
from torch import nn
from torch.utils.data import DataLoader

from tpvformer.config import Config, DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.nuscenes.lidarseg import scan_tokens
from tpvformer.data.nuscenes.reader import resolve
from tpvformer.data.nuscenes.splits import official
from tpvformer.data.nuscenes.tables import read_table
from tpvformer.data.types import Batch
from tpvformer.engine.distributed.collectives import World, barrier
from tpvformer.engine.forward import predict
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.prefetch import on_device
from tpvformer.errors import ConfigError, DataError
from tpvformer.labels import EVALUATED

if TYPE_CHECKING:
    from tpvformer.model import Prediction

TEST_VERSION = "v1.0-test"
_SETS = {("val", "v1.0-trainval"): "val", ("val", "v1.0-mini"): "mini_val", ("test", TEST_VERSION): "test"}
_MODALITIES = ("camera", "lidar", "radar", "map", "external")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # date of every file in the zip, so that equal predictions give equal bytes


class Submission:
    """Write the zip of one evaluation set; as a context, remove all partial files unless ``finish`` was reached.

    ``uses`` names the modalities that the method uses beside the cameras. Raises DataError for a sample without scan or
    without a record in the tables, ConfigError for a target that cannot be written; both before anything is predicted.
    """

    def __init__(
        self, target: Path, data: FrameDataset, cfg: DataConfig, split: str, uses: Sequence[str], world: World
    ) -> None:
        self.set = _evaluation_set(cfg, split)
        self._target, self._tokens, self._world = target, data.tokens, world
        data.whole_scans = True  # the server expects a class for each point of the file
        self._names = _file_names(data, cfg, split, self.set)
        self._meta = {f"use_{name}": name == "camera" or name in uses for name in _MODALITIES}
        self._whole = official_tokens(cfg, self.set)
        self._folder = target.absolute().with_name(f".{target.name}.partial")
        self._part = self._open()

    def _open(self) -> zipfile.ZipFile:
        """Open this process's own file; the files of all processes must be in one folder."""
        if self._target.is_dir():
            raise ConfigError(f"submission is {self._target}, which is a folder; name a file such as submission.zip")
        try:
            if self._world.is_main:
                self._folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(self._folder, ignore_errors=True)  # partial files of a killed run
                self._folder.mkdir()
            barrier()
            part = zipfile.ZipFile(self._part_path(self._world.rank), "w")
        except OSError as err:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise self._unwritable(err) from err
        barrier()
        for rank in range(self._world.size if self._world.is_main else 0):
            if not self._part_path(rank).is_file():
                part.close()
                shutil.rmtree(self._folder, ignore_errors=True)
                raise ConfigError(
                    f"submission is {self._target}, but what process {rank} writes there does not appear here; name a "
                    "folder that all machines share, or use one machine"
                )
        return part

    def _part_path(self, rank: int) -> Path:
        return self._folder / f"{rank}.zip"

    def _unwritable(self, err: OSError) -> ConfigError:
        return ConfigError(
            f"submission is {self._target}, which cannot be written ({err.strerror or err}); name another file, on a "
            "disk with room that all processes share"
        )

    def __enter__(self) -> Submission:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], err: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._part.close()
        if self._world.is_main or kind is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, batch: Batch, prediction: Prediction) -> None:
        """Add the predicted classes of a batch's points."""
        assert prediction.point_logits is not None
        first, last = EVALUATED[0], EVALUATED[-1]
        at_voxels = prediction.point_logits[:, first : last + 1].argmax(1) + first
        classes = at_voxels.gather(1, batch.point2voxel).to(torch.uint8).cpu().numpy()
        try:
            for token, row, length in zip(batch.tokens, classes, batch.point_lengths.tolist()):
                self._part.writestr(token, row[:length].tobytes())
        except OSError as err:
            raise self._unwritable(err) from err

    def finish(self, log: RunLog) -> None:
        """Merge the files of all processes and give the zip its final name; every process must call it."""
        try:
            self._part.close()
            barrier()
            if self._world.is_main:
                self._join(self._folder / "whole", log)
                (self._folder / "whole").replace(self._target)
        except OSError as err:
            raise self._unwritable(err) from err
        barrier()
        log.line(f"{self._target}: predictions for {len(self._names)} scans of {self.set}, {self._said()}")
        absent, others = len(self._whole - set(self._tokens)), len(set(self._tokens) - self._whole)
        if absent or others:
            log.warn(
                f"{self.set} has {len(self._whole)} key frames; {absent} of them are absent from the infos, which hold "
                f"{others} others; the evaluation server expects the whole set"
            )

    def _said(self) -> str:
        return ", ".join(name for name, used in self._meta.items() if used)

    def _join(self, path: Path, log: RunLog) -> None:
        parts = [zipfile.ZipFile(self._part_path(rank)) for rank in range(self._world.size)]
        try:
            holder = {token: part for part in parts for token in part.namelist()}
            with zipfile.ZipFile(path, "w") as whole, log.progress("zip", len(self._tokens)) as bar:
                _store(whole, f"{self.set}/submission.json", json.dumps({"meta": self._meta}).encode())
                for token in self._tokens:
                    name = f"lidarseg/{self.set}/{self._names[token]}_lidarseg.bin"
                    _store(whole, name, holder[token].read(token))
                    bar.advance()
        finally:
            for part in parts:
                part.close()


def predict_all(
    model: nn.Module, loader: DataLoader, config: Config, device: torch.device, log: RunLog, into: Submission
) -> None:
    """Predict this rank's share of a set without labels."""
    model.eval()
    with torch.no_grad(), log.progress("predict", len(loader)) as bar:
        for i, batch in enumerate(on_device(loader, device)):
            into.add(batch, predict(model, batch, config))
            if i % config.train.print_every == 0:
                log.line(f"[PREDICT] Iter {i}/{len(loader)}")
            bar.advance()


def official_tokens(cfg: DataConfig, name: str) -> frozenset:
    """Return the sample tokens of an official evaluation set that are in the tables."""
    folder = Path(cfg.root, cfg.version)
    scenes = set(official(name))
    wanted = {row["token"] for row in read_table(folder, "scene", "name") if row["name"] in scenes}
    return frozenset(
        row["token"] for row in read_table(folder, "sample", "scene_token") if row["scene_token"] in wanted
    )


def _evaluation_set(cfg: DataConfig, split: str) -> str:
    """Return the challenge's name of a split of a version."""
    if cfg.format != "nuscenes":
        raise ConfigError(f"data.format is {cfg.format}; a submission is for nuScenes' lidarseg server alone")
    name = _SETS.get((split, cfg.version))
    if name is None:
        known = ", ".join(f"{kind} of {version}" for kind, version in _SETS)
        raise ConfigError(
            f"data.version is {cfg.version}, whose {split} split is no evaluation set of the challenge; expected "
            f"{known}"
        )
    return name


def _file_names(data: FrameDataset, cfg: DataConfig, split: str, name: str) -> Dict[str, str]:
    """Return the token of the lidar record of each sample; check beforehand that every scan exists."""
    known = scan_tokens(cfg.root, cfg.version)
    for token, scan in zip(data.tokens, data.scans):
        if not scan:
            raise DataError(
                f"sample {token}: its record in {cfg.infos(split)} names no lidar scan, but a submission for {name} "
                "labels every point of it; make the infos again with tpvformer data infos"
            )
        resolve(scan, cfg.root, token)
        if token not in known:
            raise DataError(
                f"sample {token}: {Path(cfg.root, cfg.version)}/sample_data.json has no LIDAR_TOP key frame of it; "
                "expected infos and tables of the same nuScenes version, so set data.version or make the infos again"
            )
    return {token: known[token] for token in data.tokens}


def _store(into: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    into.writestr(entry, content)
