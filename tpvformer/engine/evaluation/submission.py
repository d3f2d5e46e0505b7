"""Write predictions for the nuScenes lidar segmentation challenge, in its server's format.

The zip holds ``lidarseg/<set>/<token of the lidar record>_lidarseg.bin``, one byte a point in the scan's order, 1 to
16, and ``<set>/submission.json``, which lists the modalities that were used.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader

from tpvformer.config import Config, DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.nuscenes.lidarseg import scan_tokens
from tpvformer.data.nuscenes.reader import resolve
from tpvformer.data.types import Batch
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation.submission_file import SubmissionFile, evaluation_set
from tpvformer.engine.forward import predict
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.prefetch import on_device
from tpvformer.errors import DataError
from tpvformer.labels import EVALUATED

if TYPE_CHECKING:
    from tpvformer.model import Prediction

_EPOCH = (1980, 1, 1, 0, 0, 0)  # date of every file in the zip, so that equal predictions give equal bytes


class Submission(SubmissionFile):
    """Write the zip of one evaluation set; as a context, remove all partial files unless ``finish`` was reached.

    ``uses`` names the modalities that the method uses beside the cameras. Raises DataError for a sample without scan or
    without a record in the tables, ConfigError for a target that cannot be written; both before anything is predicted.
    """

    example, contents = "submission.zip", "scans"

    def __init__(
        self, target: Path, data: FrameDataset, cfg: DataConfig, split: str, uses: Sequence[str], world: World
    ) -> None:
        name = evaluation_set(cfg, split)
        data.whole_scans = True  # the server expects a class for each point of the file
        self._names = _file_names(data, cfg, split, name)
        super().__init__(target, data, cfg, name, uses, world)

    def new_part(self, path: Path) -> zipfile.ZipFile:
        return zipfile.ZipFile(path, "w")

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
            raise self.unwritable(err) from err

    def join(self, path: Path, log: RunLog) -> None:
        parts = [zipfile.ZipFile(self.part_path(rank)) for rank in range(self._world.size)]
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
    model: nn.Module, loader: DataLoader, config: Config, device: torch.device, log: RunLog, into: SubmissionFile
) -> None:
    """Predict this rank's share of a set without labels."""
    model.eval()
    with torch.no_grad(), log.progress("predict", len(loader)) as bar:
        for i, batch in enumerate(on_device(loader, device)):
            into.add(batch, predict(model, batch, config))
            if i % config.train.print_every == 0:
                log.line(f"[PREDICT] Iter {i}/{len(loader)}")
            bar.advance()


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
