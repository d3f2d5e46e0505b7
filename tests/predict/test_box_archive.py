"""Boxes of a model with a detection head go out: in results, in archives and back; damaged ones are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List

import cv2
import numpy as np
import pytest
import torch
from api_tools import CONFIG, images_of, lively
from dense_tools import dense_config
from rig_tools import THREE, write_rig
from shown_boxes import CAR, CONE, boxed, some_boxes
from tiny_nuscenes import write_tiny
from view_tools import archive, save

from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.config import Config, DetectionConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import BICYCLE_RACK, DETECTION_CLASSES, Boxes
from tpvformer.data.detection.inside import points_inside
from tpvformer.data.street.write import write_dataset
from tpvformer.labels import CLASS_NAMES
from tpvformer.model import TPVFormer as Network
from tpvformer.predict import draw, encoded_frame
from tpvformer.predict.archive import in_lidar_frame
from tpvformer.predict.box_arrays import box_arrays, observed
from tpvformer.predict.frames import FramePredictions
from tpvformer.predict.read_results import read_result, read_results
from tpvformer.predict.result import Result

pytestmark = pytest.mark.usefixtures("quick")
FIELDS = ("centres", "sizes", "yaws", "velocities", "labels", "scores")


def same(found: Any, expected: Boxes) -> None:
    for name in FIELDS:
        ours, theirs = getattr(found, name), getattr(expected, name)
        if theirs is None:
            assert ours is None, name
        else:
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=name == "velocities"), name


@pytest.fixture()
def detector(monkeypatch: pytest.MonkeyPatch) -> TPVFormer:
    """A model in whose output the same three boxes are found everywhere."""
    monkeypatch.setattr(encoded_frame, "decode_batch", lambda maps, model: [some_boxes()])
    return lively(with_head(CONFIG))


def with_head(config: Config) -> Config:
    head = DetectionConfig(channels=16, group_channels=8, blocks=1, min_score=0.05)
    loss = dataclasses.replace(config.loss, detection=1.0)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, detection=head), loss=loss)


def test_a_result_has_boxes_and_its_archive_too(detector: TPVFormer, tmp_path: Path) -> None:
    rig = write_rig(tmp_path, THREE)
    result = detector.predict(images_of(rig), rig)
    same(result.boxes, some_boxes())
    assert result.box_names[8] == "pedestrian" and repr(result).endswith("0 points, 3 boxes)")
    read = read_result(result.save(tmp_path / "r.npz"))
    same(read.boxes, some_boxes())
    assert read.true_boxes is None and read.box_names == tuple(result.box_names.values())
    assert 'id="f0-boxes"' in str(result.to_html())


def test_a_model_without_a_head_has_none(model: TPVFormer, rig: Path, tmp_path: Path) -> None:
    result: Result = model.predict(images_of(rig), rig)
    assert result.boxes is None and repr(result).endswith(" points)")
    file = result.save(tmp_path / "r.npz")
    assert not [name for name in np.load(file).files if "box" in name]
    assert read_result(file).boxes is None and "boxes" not in [*map(str, vars(result.voxels))]


def test_the_command_says_how_many(detector: TPVFormer, tmp_path: Path, capsys, monkeypatch) -> None:
    from tpvformer.predict import frames

    monkeypatch.setattr(frames, "build_model", lambda *_: detector.network)
    monkeypatch.setattr(frames, "load_weights", lambda *_, **__: SimpleNamespace(which=""))
    rig = write_rig(tmp_path, THREE)
    (line,) = frames.FramePredictions(
        detector.config, tmp_path / "w.pth", tmp_path / "out", str(rig), index=0, device="cpu"
    )
    assert ", 3 boxes" in line


def test_truth_and_prediction_come_back_from_a_file(tmp_path: Path) -> None:
    read = read_result(save(tmp_path / "a.npz", boxed(archive())))
    same(read.boxes, some_boxes())
    assert read.true_boxes is not None and len(read.true_boxes) == 1 and read.true_boxes.scores is None
    assert read.true_boxes.centres.tolist() == [[1, 7, -0.5]]
    none = boxed(archive())
    for name in list(none):
        if name.startswith("box_"):
            none[name] = none[name][:0]
    none["box_names"] = boxed(archive())["box_names"]
    read = read_result(save(tmp_path / "none.npz", none))
    assert read.boxes is not None and len(read.boxes) == 0
    assert main(["view", str(tmp_path / "none.npz"), "--html", str(tmp_path / "n.html"), "--png", str(tmp_path)]) == 0


def test_boxes_of_a_grid_in_the_ego_frame_are_given_in_the_lidar_frame() -> None:
    lidar2ego = np.eye(4)
    lidar2ego[:2, :2], lidar2ego[:3, 3] = [[0, 1], [-1, 0]], (0.9, 0, 1.8)  # the lidar's x is the ego's right
    frame: Any = SimpleNamespace(lidar2ego=lidar2ego, token="t")
    config: Any = SimpleNamespace(model=SimpleNamespace(grid=SimpleNamespace(frame="ego")))
    moved = in_lidar_frame(some_boxes(), frame, config)
    assert moved.centres[0] == pytest.approx([-6, 1 - 0.9, -2.3]), "6 m to the left"
    assert moved.yaws[0] == pytest.approx(np.pi / 2) and moved.velocities[0] == pytest.approx([0, 3], abs=1e-6)
    back = moved.transformed(lidar2ego)
    assert back.centres == pytest.approx(some_boxes().centres, abs=1e-5)


def test_a_data_set_gives_predicted_and_true_boxes(tmp_path: Path) -> None:
    """A head with fresh weights on a grid in the ego frame; lidar points lie in the true boxes."""
    write_dataset(tmp_path / "street", 2, (64, 32), 6, 1, workers=1, occupancy=True)
    config = with_head(dense_config(tmp_path / "street", "occ3d"))
    network = Network(config.model)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    (line,) = FramePredictions(config, tmp_path / "w.pth", tmp_path / "out", index=0, device="cpu", truth=True)
    (read,) = read_results([tmp_path / "out"])
    dataset = FrameDataset(config.data, config.model.grid, "val", 0, boxes=True)
    frame = dataset.load_frame(0)
    found = read.boxes
    assert found is not None and found.scores is not None and f", {len(found)} boxes" in line
    assert 0 < len(found) <= 500 and found.scores.min() > 0.05 and (np.diff(found.scores) <= 0).all()
    true = observed(frame.boxes)
    assert true is not None and len(true) > 5 and frame.lidar2ego is not None
    same(read.true_boxes, true)
    held = points_inside(true, frame.points)
    assert held.min() > 0
    for label in set(true.labels.tolist()):
        number, own = CLASS_NAMES.index(DETECTION_CLASSES[label]), true.labels == label
        of_class = points_inside(true, frame.points[frame.labels == number])
        assert (of_class[own] > 0.5 * held[own]).all(), DETECTION_CLASSES[label]
    again = encoded_frame.predict_frame(network.eval(), dataset, 0, config, torch.device("cpu")).boxes
    assert again is not None
    again = again.transformed(np.linalg.inv(frame.lidar2ego))
    assert again.centres == pytest.approx(found.centres, abs=1e-3)
    assert again.scores == pytest.approx(found.scores, abs=1e-5)


def test_true_boxes_without_points_and_racks_are_not_shown() -> None:
    rack = some_boxes(scores=False, labels=np.array([CAR, BICYCLE_RACK, CONE]))
    arrays = box_arrays(observed(rack), "true_box_")
    assert arrays["true_box_labels"].tolist() == [CAR, CONE] and "true_box_scores" not in arrays
    assert tuple(arrays["box_names"].tolist()) == DETECTION_CLASSES
    seen = observed(dataclasses.replace(rack, points=np.array([0, 7, 1])))
    assert seen is not None and seen.labels.tolist() == [CONE]
    assert observed(None) is None and box_arrays(None, "box_") == {}


def test_the_picture_of_a_data_set_has_boxes(detector: TPVFormer, tmp_path: Path, monkeypatch) -> None:
    """tpvformer picture: predicted boxes and those of the frame."""
    asked: List[Any] = []
    real = draw.frame_picture
    monkeypatch.setattr(draw, "frame_picture", lambda *given: asked.append(given[-1]) or real(*given))
    monkeypatch.setattr(draw, "build_model", lambda *_: detector.network)
    monkeypatch.setattr(draw, "load_weights", lambda *_, **__: SimpleNamespace(which=""))
    config = dataclasses.replace(with_head(CONFIG), data=write_tiny(tmp_path / "set"))
    draw.draw_frame(config, tmp_path / "w.pth", 0, tmp_path / "one.png", "cpu")
    read = FrameDataset.load_frame
    true = some_boxes(scores=False)
    monkeypatch.setattr(FrameDataset, "load_frame", lambda *given: dataclasses.replace(read(*given), boxes=true))
    draw.draw_frame(config, tmp_path / "w.pth", 0, tmp_path / "two.png", "cpu")
    one, two = (cv2.imread(str(tmp_path / name)) for name in ("one.png", "two.png"))
    assert one.shape == two.shape and (one != two).any()
    assert [len(boxes.true.segments) for boxes in asked] == [0, 3 * 5 + 3] and len(asked[0].predicted.segments) == 13


BAD: List[Any] = [
    (lambda a: a.pop("box_sizes"), "has no array 'box_sizes'"),
    (lambda a: a.pop("box_scores"), "has no array 'box_scores'"),
    (lambda a: a.update(box_centres=np.zeros((3, 2))), "box_centres is float64 of shape (3, 2)"),
    (lambda a: a.update(box_centres=np.array([["x"] * 3] * 3)), "box_centres is <U1"),
    (lambda a: a.update(box_yaws=np.zeros(2)), "box_yaws is float64 of shape (2,); expected numbers of shape (3,)"),
    (lambda a: a.update(box_yaws=np.full(3, np.nan)), "box_yaws holds numbers that are not finite"),
    (lambda a: a.update(box_velocities=np.full((3, 2), np.inf)), "box_velocities holds numbers that are not finite"),
    (lambda a: a.update(box_centres=np.full((3, 3), 1e30)), "box_centres holds numbers beyond 1e+06"),
    (lambda a: a.update(box_sizes=np.zeros((3, 3))), "box_sizes holds 0.0; expected metres above 0"),
    (lambda a: a.update(box_scores=np.array([0.5, 0.5, 1.5])), "box_scores are 0.5 to 1.5; expected 0 to 1"),
    (lambda a: a.update(box_labels=np.array([0, 1, 10])), "box_labels hold class 10, but there are 10 box_names"),
    (lambda a: a.update(box_labels=np.array([0, 1, -1])), "box_labels holds -1 to 1; expected classes, 0 to 255"),
    (lambda a: a.update(box_labels=np.zeros(3)), "box_labels is float64"),
    (lambda a: a.update(box_names=np.array(["x"] * 300)), "has 300 box_names"),
    (lambda a: a.update(true_box_sizes=np.ones((9, 3))), "true_box_sizes is float64 of shape (9, 3)"),
    (lambda a: a.update(box_centres=np.zeros((20000, 3))), "holds 20000 box_centres; expected 16384 at most"),
    (lambda a: a.update(box_names=np.array([{}], dtype=object)), "or holds Python objects, which are never read"),
]


@pytest.mark.parametrize(("change", "text"), BAD, ids=[text for _, text in BAD])
def test_damaged_boxes_are_refused_in_one_sentence(tmp_path: Path, capsys, change, text: str) -> None:
    arrays = boxed(archive())
    change(arrays)
    path = save(tmp_path / "r.npz", arrays)
    assert main(["view", str(path), "--html", str(tmp_path / "x.html")]) == 2
    said = capsys.readouterr().err
    assert text in said and str(path) in said and said.count("\n") == 1
    assert not (tmp_path / "x.html").exists()


def test_float16_and_integers_are_numbers_too(tmp_path: Path) -> None:
    arrays = boxed(archive())
    arrays.update(box_sizes=np.full((3, 3), 2), box_yaws=np.zeros(3, np.float16))
    read = read_result(save(tmp_path / "r.npz", arrays))
    assert read.boxes is not None and read.boxes.sizes.dtype == read.boxes.yaws.dtype == np.float32
    assert torch.from_numpy(read.boxes.labels).dtype == torch.int64
