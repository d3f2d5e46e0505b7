"""The challenge's zip: with scores and without, and what is refused. test_distributed.py has it from many processes."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import List

import pytest
import torch
from engine_tools import tiny_model, write_config
from submission_tools import META, checked, write_set

from tpvformer.cli import main
from tpvformer.compat.tensors import read_archive
from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import collate
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation.submission import Submission
from tpvformer.engine.forward import predict
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import ConfigError
from tpvformer.model.tpvformer import Prediction

pytestmark = pytest.mark.usefixtures("quick")
POINTS = (40, 90, 60, 75, 50)
COUNTS = {f"scan{i}": count for i, count in enumerate(POINTS)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, quick) -> Path:
    """A model that would say "noise" everywhere, were it asked."""
    model = tiny_model()
    with torch.no_grad():
        model.aggregator.classifier.bias[0] += 100
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Config:
    return write_set(tmp_path_factory.mktemp("mini"), POINTS)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory) -> Config:
    return write_set(tmp_path_factory.mktemp("test"), POINTS, "scene-0077", "v1.0-test")


def command(config: Config, weights: Path, folder: Path, *options: str) -> List[str]:
    file = write_config(folder / "tiny.py", config)
    return ["eval", "--py-config", str(file), "--ckpt-path", str(weights), "--device", "cpu", *options]


def model_of(weights: Path) -> torch.nn.Module:
    model = tiny_model().eval()
    model.load_state_dict(read_archive(weights)["state_dict"])
    return model


def test_the_test_set_without_labels(test_set: Config, weights: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "test.zip"
    assert main(command(test_set, weights, tmp_path, "--split", "test", "--submission", str(out))) == 0
    found = checked(out, "test", COUNTS, META)
    said = capsys.readouterr().out
    assert "predictions for 5 scans of test, use_camera" in said
    assert "miou" not in said and "oss" not in said, "nothing is scored without labels"
    assert os.listdir(out.parent) == ["test.zip"]
    # every point, in the scan's order, has the likeliest class but noise of the voxel that it lies in
    data = FrameDataset(test_set.data, test_set.model.grid, "test", 0, require_labels=False)
    model = model_of(weights)
    for i in range(len(POINTS)):
        sample = data[i]
        with torch.no_grad():
            logits = predict(model, collate([sample], 0), test_set).point_logits
        assert (logits.argmax(1) == 0).all()
        for point, cell in enumerate(sample.grid_index):
            row = (sample.voxel_coords == cell).all(1).nonzero().item()
            assert found[f"scan{i}"][point] == logits[0, 1:17, row].argmax() + 1


def test_the_validation_set_with_scores(mini: Config, weights: Path, tmp_path: Path, capsys) -> None:
    out, scores = tmp_path / "val.zip", tmp_path / "scores.json"
    options = ("--submission", str(out), "--json", str(scores), "--also-uses", "external")
    assert main(command(mini, weights, tmp_path, *options)) == 0
    checked(out, "mini_val", COUNTS, {**META, "use_external": True})
    said = capsys.readouterr().out
    assert "Current val miou pts is" in said
    assert "WARNING" not in said
    assert json.loads(scores.read_text())["samples"] == 5


def test_a_class_of_empty_space_is_never_submitted(mini: Config, tmp_path: Path) -> None:
    logits = torch.zeros(1, 18, 2)
    logits[0, 17] = logits[0, 0] = 9.0
    logits[0, 16, 0] = logits[0, 1, 1] = 1.0
    data = FrameDataset(mini.data, mini.model.grid, "val", 0)
    data._records = data._records[:1]
    batch = dataclasses.replace(collate([data[0]], 0), point2voxel=torch.tensor([[0, 1] * 20]))
    log = RunLog(None, False)
    with Submission(tmp_path / "a.zip", data, mini.data, "val", ["lidar"], World()) as writer:
        writer.add(batch, Prediction(logits, logits))
        writer.finish(log)
    found = checked(tmp_path / "a.zip", "mini_val", {"scan0": 40}, {**META, "use_lidar": True})
    assert found["scan0"].tolist() == [16, 1] * 20


def test_a_folder_that_processes_do_not_share_is_refused_at_once(mini: Config, tmp_path: Path) -> None:
    data = FrameDataset(mini.data, mini.model.grid, "val", 0)
    with pytest.raises(ConfigError, match=r"what process 1 writes there does not appear here; name a folder that all"):
        Submission(tmp_path / "a.zip", data, mini.data, "val", (), World(0, 2, 0, 1))
    with pytest.raises(ConfigError, match="a disk with room that all processes share"):
        Submission(tmp_path / "a.zip", data, mini.data, "val", (), World(1, 2, 0, 1))
    assert os.listdir(tmp_path) == []


def test_infos_that_are_not_the_set_are_said(mini: Config, weights: Path, tmp_path: Path, capsys) -> None:
    stored = pickle.loads(Path(mini.data.val_infos).read_bytes())  # noqa: S301 - a file that this test has just written
    few = tmp_path / "few.pkl"
    few.write_bytes(pickle.dumps({**stored, "infos": stored["infos"][:3]}, protocol=2))
    options = command(
        mini, weights, tmp_path, "--set", f"data.val_infos={few}", "--submission", str(tmp_path / "a.zip")
    )
    assert main(options) == 0
    assert "WARNING - mini_val has 5 key frames; 2 of them are absent from the infos" in capsys.readouterr().out
    checked(tmp_path / "a.zip", "mini_val", {f"scan{i}": POINTS[i] for i in range(3)}, META)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--split", "test"], "--split test has no published labels and so no scores; give --submission FILE.zip"),
        (["--split", "test", "--submission", "{}/a.zip", "--json", "{}/a.json"], "no scores; leave --json out"),
        (["--split", "test", "--submission", "{}/a.zip", "--permute-cameras"], "leave --permute-cameras out"),
        (["--also-uses", "lidar"], "--also-uses is for a submission"),
        (["--split", "test", "--submission", "{}/a.zip"], "v1.0-test/sample_data.json: no such file, so the tokens"),
        (["--submission", "{}/a.zip", "--set", "data.version=v1.0-own"], "v1.0-own"),
        (["--submission", "{}/file/a.zip"], "submission is {}/file/a.zip, which cannot be written (File exists)"),
        (["--submission", "{}/folder"], "submission is {}/folder, which is a folder; name a file"),
    ],
)
def test_one_sentence_and_no_file(
    mini: Config, weights: Path, tmp_path: Path, capsys, options: List[str], sentence: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder").mkdir()
    assert main(command(mini, weights, tmp_path, *(text.format(tmp_path) for text in options))) == 2
    said = capsys.readouterr().err
    assert sentence.format(tmp_path) in said
    assert said.startswith("tpvformer eval: ") and said.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "tiny.py"]
    assert os.listdir(tmp_path / "folder") == []


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("scan", "sample sample3: ./somewhere/else/samples/LIDAR_TOP/log__LIDAR_TOP__3.pcd.bin is missing"),
        ("short", "sample sample3: {}/samples/LIDAR_TOP/log__LIDAR_TOP__3.pcd.bin has 7 bytes"),
        ("none", "sample sample3: its record in {}/infos.pkl names no lidar scan"),
        ("token", "sample sample3: {}/v1.0-test/sample_data.json has no LIDAR_TOP key frame of it"),
        ("table", "{}/v1.0-test/sample_data.json: ends in the middle of a record"),
    ],
)
def test_a_damaged_set_leaves_no_file(weights: Path, tmp_path: Path, capsys, damage: str, sentence: str) -> None:
    config = write_set(tmp_path / "set", POINTS, "scene-0077", "v1.0-test")
    root, tables = tmp_path / "set", tmp_path / "set" / "v1.0-test" / "sample_data.json"
    scan = root / "samples/LIDAR_TOP/log__LIDAR_TOP__3.pcd.bin"
    if damage == "scan":
        scan.unlink()
    elif damage == "short":  # found while the zip is being written
        scan.write_bytes(b"1234567")
    elif damage == "none":
        stored = pickle.loads((root / "infos.pkl").read_bytes())  # noqa: S301 - a file that this test has just written
        stored["infos"][3]["lidar_path"] = ""
        (root / "infos.pkl").write_bytes(pickle.dumps(stored, protocol=2))
    elif damage == "token":
        tables.write_text(tables.read_text().replace("sample3", "another"))
    else:
        tables.write_text(tables.read_text()[:-40])
    out = tmp_path / "out" / "a.zip"
    out.parent.mkdir()
    out.write_text("what was there before")
    assert main(command(config, weights, tmp_path, "--split", "test", "--submission", str(out))) == 2
    said = capsys.readouterr().err
    assert sentence.format(root) in said and said.count("\n") == 1
    assert os.listdir(out.parent) == ["a.zip"]
    assert out.read_text() == "what was there before"


def test_a_process_that_fails_takes_the_parts_of_all_with_it(mini: Config, tmp_path: Path) -> None:
    data = FrameDataset(mini.data, mini.model.grid, "val", 0)
    with Submission(tmp_path / "a.zip", data, mini.data, "val", (), World()):
        assert os.listdir(tmp_path) == [".a.zip.partial"]
        other = Submission(tmp_path / "a.zip", data, mini.data, "val", (), World(1, 2, 0, 1))
        with pytest.raises(KeyboardInterrupt), other:
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == []
