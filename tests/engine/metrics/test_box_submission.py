"""The detection challenge's file: its content, one and many processes, what is refused. The boxes come from a stand-in
for the decoding; test_detection_devkit.py has the file scored by the devkit."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict

import numpy as np
import pytest
from engine_tools import processes
from submission_tools import META, write_set

from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import Boxes
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation import box_submission
from tpvformer.engine.evaluation.box_submission import MOST, BoxSubmission, submission_to
from tpvformer.engine.evaluation.submission import Submission
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("quick")
COUNTS = (3, 0, 600, 40, 1)


def some_boxes(seed: int, count: int) -> Boxes:
    rng = np.random.RandomState(seed)
    return Boxes(
        np.float32(rng.uniform(-50, 50, (count, 3))),
        np.float32(rng.uniform(1, 5, (count, 3))),
        np.float32(rng.uniform(-3, 3, count)),
        np.float32(rng.normal(0, 2, (count, 2))),
        rng.randint(0, 10, count),
        np.float32(rng.uniform(0, 1, count)),
        attributes=rng.randint(-1, 8, count),
    )


@pytest.fixture(scope="module")
def placed(tmp_path_factory) -> Config:
    """A test set whose infos hold poses."""
    root = tmp_path_factory.mktemp("placed")
    config = write_set(root, COUNTS, "scene-0077", "v1.0-test")
    stored = pickle.loads((root / "infos.pkl").read_bytes())  # noqa: S301 - a file that this test has just written
    for info in stored["infos"]:
        info.update(lidar2ego_translation=[1.0, 0.0, 2.0], lidar2ego_rotation=[1.0, 0.0, 0.0, 0.0])
        info.update(ego2global_translation=[600.0, 1600.0, 0.0], ego2global_rotation=[0.0, 0.0, 0.0, 1.0])
    (root / "infos.pkl").write_bytes(pickle.dumps(stored, protocol=2))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, version="v1.0-test"))


def opened(config: Config) -> FrameDataset:
    return FrameDataset(config.data, config.model.grid, "test", 0, require_labels=False)


def written(config: Config, path: Path, predicted: Dict[str, Boxes], monkeypatch, *uses: str) -> Dict[str, Any]:
    monkeypatch.setattr(box_submission, "decoded", lambda tokens, _: [predicted[token] for token in tokens])
    data = opened(config)
    with BoxSubmission(path, data, config, "test", uses, World()) as writer:
        for tokens in (data.tokens[3:], data.tokens[:3]):
            held: Any = SimpleNamespace(tokens=tokens)
            writer.add(held, held.tokens)
        writer.finish(RunLog(None, True))
    found: Dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_file(placed: Config, tmp_path: Path, monkeypatch, capsys) -> None:
    predicted = {token: some_boxes(k, COUNTS[k]) for k, token in enumerate(opened(placed).tokens)}
    found = written(placed, tmp_path / "new" / "results_nusc.json", predicted, monkeypatch, "lidar")
    assert "predictions for 5 samples of test, use_camera, use_lidar" in capsys.readouterr().out
    assert os.listdir(tmp_path / "new") == ["results_nusc.json"]
    assert found["meta"] == {**META, "use_lidar": True}
    assert list(found["results"]) == list(predicted), "every sample, in the order of the set"
    assert [len(rows) for rows in found["results"].values()] == [3, 0, MOST, 40, 1]
    boxes = predicted["sample2"]
    rows = found["results"]["sample2"]
    scores = [row["detection_score"] for row in rows]
    assert scores == sorted(boxes.scores.tolist(), reverse=True)[:MOST], "the best ones"
    k, first = int(boxes.scores.argmax()), rows[0]
    x, y, z = boxes.centres[k].tolist()
    assert first["translation"] == pytest.approx([600 - 1 - x, 1600 - y, z + 2], abs=1e-9), "the vehicle looks back"
    length, width, height = boxes.sizes[k].tolist()
    assert first["size"] == [width, length, height]
    w, _, _, turned = first["rotation"]
    assert np.exp(2j * np.arctan2(turned, w)) == pytest.approx(-np.exp(1j * boxes.yaws[k]), abs=1e-6)
    assert first["velocity"] == pytest.approx((-boxes.velocities[k]).tolist())
    assert set(first) == {
        "sample_token", "translation", "size", "rotation", "velocity", "detection_name", "detection_score",
        "attribute_name",
    }  # fmt: skip


def test_numbers_that_are_not_finite_are_left_out(placed: Config, tmp_path: Path, monkeypatch) -> None:
    predicted = {token: some_boxes(k, 4) for k, token in enumerate(opened(placed).tokens)}
    predicted["sample1"].sizes[2, 1] = np.inf
    predicted["sample1"].velocities[0, 1] = np.nan
    found = written(placed, tmp_path / "a.json", predicted, monkeypatch)
    assert [len(rows) for rows in found["results"].values()] == [4, 2, 4, 4, 4]


def test_a_failure_leaves_the_old_file(placed: Config, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    out.write_text("what was there before")
    with pytest.raises(KeyboardInterrupt), BoxSubmission(out, opened(placed), placed, "test", (), World()):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a.json"]
    assert out.read_text() == "what was there before"


def test_a_sample_without_a_pose_is_refused(tmp_path: Path) -> None:
    config = write_set(tmp_path / "set", COUNTS)
    data = FrameDataset(config.data, config.model.grid, "val", 0)
    with pytest.raises(DataError, match=r"sample0: its record in .*infos\.pkl has no lidar2ego or no ego2global"):
        BoxSubmission(tmp_path / "a.json", data, config, "val", (), World())
    assert os.listdir(tmp_path) == ["set"]


def test_the_name_chooses_the_challenge(placed: Config, tmp_path: Path) -> None:
    def chosen(name: str, detection: Any, segmentation: float) -> type:
        config: Any = SimpleNamespace(
            data=placed.data,
            model=SimpleNamespace(detection=detection),
            loss=SimpleNamespace(segmentation=segmentation),
        )
        with submission_to(tmp_path / name, opened(placed), config, "test", (), World()) as writer:
            return type(writer)

    assert chosen("a.json", object(), 1.0) is BoxSubmission
    assert chosen("a.zip", object(), 1.0) is Submission
    assert chosen("a.zip", None, 1.0) is Submission
    with pytest.raises(ConfigError, match=r"a\.json, which would hold boxes, but the model has no head for them"):
        chosen("a.json", None, 1.0)
    with pytest.raises(
        ConfigError, match=r"a\.zip, which would hold classes of points, but the model learns boxes alone"
    ):
        chosen("a.zip", object(), 0.0)
    assert os.listdir(tmp_path) == []


WRITE = """
import pickle, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from tpvformer.data.dataset import FrameDataset
from tpvformer.engine.distributed import collectives
from tpvformer.engine.evaluation import box_submission
from tpvformer.engine.logging.log import RunLog
config, predicted, out = pickle.load(open(sys.argv[1], "rb"))
box_submission.decoded = lambda tokens, _: [predicted[token] for token in tokens]
world = collectives.read_world()
collectives.start(world, torch.device("cpu"))
data = FrameDataset(config.data, config.model.grid, "test", 0, require_labels=False)
with box_submission.BoxSubmission(Path(out), data, config, "test", (), world) as writer:
    for token in data.tokens[world.rank :: world.size]:
        writer.add(SimpleNamespace(tokens=[token]), [token])
    writer.finish(RunLog(None, False))
collectives.stop()
"""


def test_any_number_of_processes_writes_the_same_bytes(placed: Config, tmp_path: Path) -> None:
    predicted = {token: some_boxes(k, COUNTS[k]) for k, token in enumerate(opened(placed).tokens)}
    for size in (1, 3):
        task = placed, predicted, str(tmp_path / f"{size}.json")
        (tmp_path / "task.pkl").write_bytes(pickle.dumps(task))
        processes(size, WRITE, str(tmp_path / "task.pkl"))
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "3.json").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["1.json", "3.json", "task.pkl"]
