"""Many frames in Python: batches, folders, a rig's own frames, and tensors in place of arrays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Dict, List

import cv2
import numpy as np
import pytest
import torch
from api_tools import CONFIG, assert_same, images_of
from engine_tools import write_config
from rig_tools import THREE, matrices, write_images, write_rig

from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.data.rig.tensors import as_image
from tpvformer.errors import DataError
from tpvformer.predict.result import Result, Results

pytestmark = pytest.mark.usefixtures("quick")


def drive(folder: Path) -> Path:
    """A rig of three frames, the second without lidar."""
    return write_rig(folder, THREE, (40, 0, 30), labelled=False)


def test_the_frames_of_a_rig_are_what_the_command_predicts(model: TPVFormer, tmp_path: Path) -> None:
    """Archive by archive and bit by bit, scene and place in the drive included; by the file and by its folder."""
    rig = drive(tmp_path)
    torch.save(model.network.state_dict(), tmp_path / "w.pth")
    words = ["--py-config", str(write_config(tmp_path / "c.py", CONFIG)), "--ckpt-path", str(tmp_path / "w.pth")]
    out = tmp_path / "out"
    assert main(["predict", *words, "--device", "cpu", "--rig", str(rig), "--out", str(out)]) == 0
    results = model.predict(rig=rig)
    assert isinstance(results, Results) and [one.token for one in results] == ["frame0", "frame1", "frame2"]
    assert [len(one.points) for one in results] == [40, 0, 30]
    for path in results.save(tmp_path / "mine"):
        with np.load(path) as ours, np.load(out / path.name) as theirs:
            assert sorted(ours.files) == sorted(theirs.files)
            for name in ours.files:
                assert ours[name].dtype == theirs[name].dtype and np.array_equal(ours[name], theirs[name]), name
    for same in (model(str(rig)), model(tmp_path), model.predict(rig=tmp_path), list(model.stream(rig=rig))):
        assert [type(one) for one in same] == [Result] * 3
        for ours, theirs in zip(same, results):
            assert_same(ours, theirs)


def test_a_rig_s_content_names_its_frames_from_here(model: TPVFormer, tmp_path: Path, monkeypatch) -> None:
    rig = drive(tmp_path)
    monkeypatch.chdir(tmp_path)
    content = json.loads(rig.read_text())
    for ours, theirs in zip(model.predict(rig=content), model.predict(rig=rig)):
        assert_same(ours, theirs)
    (alone,) = model.predict(rig=write_rig(tmp_path / "alone", THREE))
    assert alone.token == "rig" and len(alone.points) == 0


def test_frames_are_read_when_they_are_asked_for(model: TPVFormer, tmp_path: Path) -> None:
    rig = drive(tmp_path)
    (tmp_path / "images" / "2-left.jpg").unlink()
    frames = model.stream(rig=rig)
    assert (next(frames).token, next(frames).token) == ("frame0", "frame1")
    with pytest.raises(DataError, match="sample frame2: .*2-left.jpg is missing"):
        next(frames)


def test_a_batch_is_its_frames_in_order(model: TPVFormer, rig: Path) -> None:
    first = {name: cv2.imread(str(path))[..., ::-1] for name, path in images_of(rig).items()}
    second = {name: np.ascontiguousarray(image[::-1]) for name, image in first.items()}
    points = np.random.RandomState(0).uniform(-40, 40, (20, 3))
    expected = [model.predict(first, rig, points), model.predict(second, rig)]
    assert np.abs(expected[0].voxels.probabilities - expected[1].voxels.probabilities).max() > 1e-6
    in_order: List[List[Any]] = [[frame[one["name"]] for one in THREE] for frame in (first, second)]
    for batch in ([first, second], in_order, (first, in_order[1])):
        answers = model(batch, rig, [points, None])
        assert isinstance(answers, Results) and len(answers) == 2
        assert [len(one.point_labels) for one in answers] == [20, 0]
        for ours, theirs in zip(answers, expected):
            assert_same(ours, theirs)
    assert isinstance(model(first, rig), Result) and isinstance(model(in_order[0], rig), Result)
    assert isinstance(model([first], rig), Results)
    with pytest.raises(DataError, match="points are of 1 frames, images of 2; expected one scan for each"):
        model([first, second], rig, [points])
    with pytest.raises(DataError, match="frame 1 of the batch: images and cameras do not match: 'left'"):
        model([first, {name: second[name] for name in ("front", "right")}], rig)


def test_tensors_are_the_same_images(model: TPVFormer, rig: Path) -> None:
    """Of PyTorch's layout, bytes or from 0 to 1, and of NumPy's; points and projections as tensors too."""
    arrays = {name: np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]) for name, path in images_of(rig).items()}
    points = torch.rand(20, 3) * 40
    expected = model.predict(arrays, rig, points.numpy())
    chw = {name: torch.from_numpy(array).permute(2, 0, 1) for name, array in arrays.items()}
    kinds: Dict[str, Dict[str, Any]] = {
        "bytes": chw,
        "0 to 1": {name: tensor.float() / 255 for name, tensor in chw.items()},
        "with a gradient": {name: (tensor.double() / 255).requires_grad_() for name, tensor in chw.items()},
        "numpy's layout": {name: torch.from_numpy(array) for name, array in arrays.items()},
        "an array in torch's layout": {name: tensor.numpy() for name, tensor in chw.items()},
    }
    for images in kinds.values():
        answer = model(images, rig, points)
        assert_same(answer, expected)
        assert np.array_equal(answer.point_labels, expected.point_labels)
    assert np.array_equal(expected.label(points), expected.point_labels)
    projections = {name: torch.from_numpy(matrix) for name, matrix in matrices(list(THREE)).items()}
    assert_same(model(chw, projections), model(arrays, matrices(list(THREE))))
    normalised = {name: (tensor.float() - 120) / 58 for name, tensor in chw.items()}
    with pytest.raises(DataError, match="image front holds float32 numbers from -.*as the camera took it"):
        model(normalised, rig)


def test_an_image_in_torch_s_layout_is_told_by_its_shape() -> None:
    image = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(4, 5, 3)
    for given in (image, image.transpose(2, 0, 1), torch.from_numpy(image), torch.from_numpy(image).permute(2, 0, 1)):
        assert np.array_equal(as_image(given, "a"), image)
    assert as_image("a.jpg", "a") == "a.jpg"
    half = torch.from_numpy(image).permute(2, 0, 1).to(torch.float32).div(255)
    assert np.array_equal(as_image(half, "a"), image)


def test_stacked_tensors_are_frames_and_cameras(model: TPVFormer, tmp_path: Path) -> None:
    """Four numbers of axes are one moment, five a batch."""
    cameras = [{**one, "width": 77, "height": 45} for one in THREE]
    rig = write_rig(tmp_path, cameras)
    images = images_of(rig)
    stack = torch.stack(
        [torch.from_numpy(cv2.imread(str(images[one["name"]]))[..., ::-1].copy()).permute(2, 0, 1) for one in cameras]
    )
    expected = model(images, rig)
    assert_same(model(stack, rig), expected)
    batch = model(torch.stack([stack, stack.flip(2)]), rig)
    assert len(batch) == 2
    assert_same(batch[0], expected)
    assert np.abs(batch[1].voxels.probabilities - expected.voxels.probabilities).max() > 1e-6


def test_a_folder_of_images(model: TPVFormer, rig: Path) -> None:
    """One moment by the cameras' names, a drive by the names that the cameras' folders share."""
    expected = model.predict(images_of(rig), rig)
    assert_same(model(rig.parent / "images", rig), expected)
    assert_same(model(str(rig.parent / "images"), matrices(list(THREE))), model(images_of(rig), matrices(list(THREE))))
    deep = rig.parent / "drive"
    for name, path in images_of(rig).items():
        (deep / name).mkdir(parents=True)
        shutil.copy(path, deep / name / f"cam-{name}.jpg")
    assert_same(model(deep, rig), expected)  # one image each needs no common name
    other = write_images(rig.parent / "more", THREE, seed=7)
    for name in images_of(rig):
        (deep / name / f"cam-{name}.jpg").rename(deep / name / "1.jpg")
        shutil.copy(rig.parent / "more" / other[name], deep / name / "0.JPG")
        (deep / name / "notes.txt").touch()
    answers = model(deep, rig)
    assert isinstance(answers, Results) and len(answers) == 2
    assert_same(answers[1], expected)
    assert np.abs(answers[0].voxels.probabilities - expected.voxels.probabilities).max() > 1e-6
    (deep / "left" / "0.JPG").rename(deep / "left" / "2.JPG")
    with pytest.raises(DataError, match="not every camera has an image 0; expected the same names of files"):
        model(deep, rig)
    (rig.parent / "images" / "left.jpg").unlink()
    with pytest.raises(DataError, match="images: holds no image of camera left; expected front.jpg and so on"):
        model(rig.parent / "images", rig)


def test_what_is_missing_is_said(model: TPVFormer, rig: Path) -> None:
    projections = matrices(list(THREE))
    cases = (
        (lambda: model.predict(), "rig is missing: give a rig file"),
        (lambda: model(images_of(rig)), "rig is missing"),
        (lambda: model(3, rig), "images are a int; expected"),
        (lambda: model(np.array(None), rig), "images are a ndarray; expected"),
        (lambda: model("nowhere"), "nowhere: no such file or folder; expected a rig file"),
        (lambda: model(rig=projections), "images are missing: lidar2img matrices name none"),
        (lambda: model(rig=list(projections.values())), "images are missing"),
        (lambda: model(rig=rig, points=np.zeros((1, 3))), "points are given without images"),
        (lambda: model(rig.parent / "images", list(projections.values())), "lidar2img has no names"),
        (lambda: model(rig.parent / "images" / "left.jpg", rig), "left.jpg, which is no folder"),
    )
    for ask, text in cases:
        with pytest.raises(DataError, match=text):
            ask()
