"""Write predictions for the nuScenes detection challenge, in its server's format: results_nusc.json.

``meta`` lists the modalities that were used; ``results`` has a list for every sample, empty where nothing was found,
of at most 500 boxes in the global frame: the middle, width, length and height in metres, the rotation about z as a
quaternion w, x, y, z, the velocity, class, score and attribute.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Dict, List, Sequence

import numpy as np

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import ATTRIBUTES, DETECTION_CLASSES, Boxes
from tpvformer.data.types import Batch
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation.boxes import decoded
from tpvformer.engine.evaluation.submission import Submission
from tpvformer.engine.evaluation.submission_file import SubmissionFile, evaluation_set
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.metrics.detection_matching import placed
from tpvformer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tpvformer.model import Prediction

MOST = 500  # boxes of a sample


def submission_to(
    target: Path, data: FrameDataset, config: Config, split: str, uses: Sequence[str], world: World
) -> SubmissionFile:
    """Return the writer that the target's name asks for: FILE.json for boxes, any other name for classes of points.

    Raises ConfigError for a name that does not fit what the model predicts, and what the writers raise.
    """
    boxes, points = config.model.detection is not None, config.loss.segmentation != 0
    if target.suffix.lower() == ".json":
        if not boxes:
            raise ConfigError(
                f"submission is {target}, which would hold boxes, but the model has no head for them "
                "(model.detection); name a file such as submission.zip"
            )
        return BoxSubmission(target, data, config, split, uses, world)
    if not points:
        raise ConfigError(
            f"submission is {target}, which would hold classes of points, but the model learns boxes alone "
            "(loss.segmentation=0); name a file such as results_nusc.json"
        )
    return Submission(target, data, config.data, split, uses, world)


class BoxSubmission(SubmissionFile):
    """Write the boxes of one evaluation set; as a context, remove all partial files unless ``finish`` was reached.

    Raises DataError for a sample whose pose is not known, and what SubmissionFile raises; both before anything is
    predicted.
    """

    example, contents = "results_nusc.json", "samples"

    def __init__(
        self, target: Path, data: FrameDataset, config: Config, split: str, uses: Sequence[str], world: World
    ) -> None:
        name = evaluation_set(config.data, split)
        poses = [data.grid2global(i) for i in range(len(data))]
        for token, pose in zip(data.tokens, poses):
            if pose is None:
                raise DataError(
                    f"sample {token}: its record in {config.data.infos(split)} has no lidar2ego or no ego2global, "
                    "which bring boxes into the global frame; make the infos again with tpvformer data infos"
                )
        self._config, self._poses = config, dict(zip(data.tokens, poses))
        super().__init__(target, data, config.data, name, uses, world)

    def new_part(self, path: Path) -> BinaryIO:
        return path.open("wb")

    def add(self, batch: Batch, prediction: Prediction) -> None:
        """Add the boxes of a batch."""
        found = decoded(prediction, self._config)
        assert found is not None
        try:
            for token, boxes in zip(batch.tokens, found):
                pose = self._poses[token]
                assert pose is not None
                rows = json.dumps(result_rows(token, boxes, pose), allow_nan=False)
                self._part.write(f"{json.dumps(token)}: {rows}\n".encode())
        except OSError as err:
            raise self.unwritable(err) from err

    def join(self, path: Path, log: RunLog) -> None:
        places = {}  # of each token: the process's file, and where its line is
        parts = [self.part_path(rank).open("rb") for rank in range(self._world.size)]
        try:
            for part in parts:
                start = 0
                for line in part:
                    places[json.loads(line[: line.index(b": [")])] = part, start, len(line)
                    start += len(line)
            with path.open("wb") as whole, log.progress("json", len(self._tokens)) as bar:
                whole.write(f'{{"meta": {json.dumps(self._meta)}, "results": {{'.encode())
                for i, token in enumerate(self._tokens):
                    part, start, length = places[token]
                    part.seek(start)
                    whole.write((b",\n" if i else b"\n") + part.read(length).rstrip())
                    bar.advance()
                whole.write(b"\n}}\n")
        finally:
            for part in parts:
                part.close()


def result_rows(token: str, boxes: Boxes, pose: np.ndarray) -> List[Dict[str, Any]]:
    """Return the best boxes of a sample as plain values, highest score first.

    ``pose`` (4, 4) float64 takes them to the global frame. Boxes with numbers that are not finite are left out.
    """
    assert boxes.scores is not None and boxes.attributes is not None
    numbers = (boxes.centres, boxes.sizes, boxes.yaws[:, None], boxes.velocities, boxes.scores[:, None])
    finite = np.isfinite(np.concatenate(numbers, 1)).all(1)
    boxes = boxes.take(np.flatnonzero(finite))
    assert boxes.scores is not None and boxes.attributes is not None
    boxes = boxes.take(np.argsort(-boxes.scores, kind="stable")[:MOST])
    centres, yaws, velocities = placed(boxes, pose)
    assert boxes.scores is not None and boxes.attributes is not None
    return [
        {
            "sample_token": token,
            "translation": centre,
            "size": [width, length, height],
            "rotation": [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))],
            "velocity": velocity,
            "detection_name": DETECTION_CLASSES[label],
            "detection_score": score,
            "attribute_name": ATTRIBUTES[attribute] if attribute >= 0 else "",
        }
        for centre, (length, width, height), yaw, velocity, label, score, attribute in zip(
            centres.tolist(),
            boxes.sizes.tolist(),
            yaws.tolist(),
            velocities.tolist(),
            boxes.labels,
            boxes.scores.tolist(),
            boxes.attributes,
        )
    ]
