"""Streams: what a temporal model remembers is carried from frame to frame, and forgotten where a drive breaks off."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import pytest
import torch
from api_tools import CONFIG, assert_same, lively
from engine_tools import write_config
from rig_tools import POSES, THREE, camera, changed, drive_of, matrices, save
from torch import Tensor

from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.config import Config, GridConfig
from tpvformer.config.history import HistoryConfig
from tpvformer.data.dataset import open_frames
from tpvformer.data.loader import collate
from tpvformer.data.street.write import write_dataset
from tpvformer.data.types import Frame
from tpvformer.engine.forward import predict
from tpvformer.errors import ConfigError, DataError
from tpvformer.model.history import PlaneHistory, remember
from tpvformer.predict.result import Result
from tpvformer.predict.stream import Stream

pytestmark = pytest.mark.usefixtures("quick")


def temporal(config: Config, frames: int = 1) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, history=HistoryConfig(frames=frames)))


@pytest.fixture(scope="module")
def remembering() -> TPVFormer:
    return lively(temporal(CONFIG, 2))


@pytest.fixture(scope="module")
def street(tmp_path_factory: Any) -> Config:
    """A configuration of a model that remembers two frames, with a street of four frames to validate on."""
    root = tmp_path_factory.mktemp("street") / "set"
    write_dataset(root, 2, (64, 36), 3, 4, workers=1)
    infos = {f"{split}_infos": str(root / f"nuscenes_infos_{split}.pkl") for split in ("train", "val")}
    data = dataclasses.replace(CONFIG.data, root=str(root), version="v1.0-mini", **infos)
    return temporal(dataclasses.replace(CONFIG, data=data), 2)


def frame(number: int = 0, seconds: Optional[float] = 0.0, **other: Any) -> Frame:
    """A frame of a vehicle that drives 3 m along x from one to the next."""
    pose = np.eye(4)
    pose[0, 3] = 3.0 * number
    lidar2img = np.stack(list(matrices(THREE).values()))
    made = Frame(
        f"frame{number}",
        torch.zeros(3, 1, 1, 3, dtype=torch.uint8),
        [one["name"] for one in THREE],
        lidar2img,
        np.zeros((0, 3), np.float32),
        np.zeros(0, np.uint8),
        lidar2global=pose,
        timestamp=seconds,
        scene="drive",
    )
    return dataclasses.replace(made, **other)


@dataclasses.dataclass
class Seen:
    """What stands for an encoded frame: it knows what it read."""

    read: Optional[PlaneHistory]
    history: Optional[PlaneHistory]


def encode(value: float) -> Any:
    def run(history: Optional[PlaneHistory]) -> Seen:
        return Seen(history, remember(torch.full((1, 2, 3), value), history, 2))

    return run


def stream(lines: Optional[List[Tuple[str, str]]] = None) -> Stream:
    told = [] if lines is None else lines
    return Stream(temporal(CONFIG, 2).model, lambda kind, line: told.append((kind, line)))


def test_a_frame_reads_what_the_frames_before_left() -> None:
    lines: List[Tuple[str, str]] = []
    drive = stream(lines)
    assert drive.step(frame(0, 10.0), encode(1.0)).read is None
    second = drive.step(frame(1, 10.5), encode(2.0)).read
    assert second is not None and second.seconds.tolist() == [[0.5]]
    assert second.planes.unique().tolist() == [1.0] and second.to_past[0, 0, 0, 3] == 3.0
    third = drive.step(frame(2, 11.25), encode(3.0)).read
    assert third is not None and third.seconds.tolist() == [[0.75, 1.25]]
    assert third.planes[0, :, 0, 0].tolist() == [2.0, 1.0] and third.to_past[0, :, 0, 3].tolist() == [3.0, 6.0]
    assert not lines


RESETS: Dict[str, Tuple[Frame, str]] = {
    "scene": (frame(1, 0.5, scene="other"), "frame1 is of scene other, frame0 of drive"),
    "older": (frame(1, -0.5), "frame1 is not later than frame0, by 0.500 s"),
    "gap": (frame(1, 2.5), "frame1 is 2.500 s after frame0, more than model.history.max_seconds=2"),
    "jump": (frame(100, 0.5), "frame100 is 300.0 m away from frame0 after 0.500 s"),
    "rig": (frame(1, 0.5, camera_names=["front", "left", "back"]), "frame1 has other cameras than frame0"),
}


@pytest.mark.parametrize("kind", sorted(RESETS))
def test_what_begins_anew(kind: str) -> None:
    lines: List[Tuple[str, str]] = []
    drive, (second, said) = stream(lines), RESETS[kind]
    drive.step(frame(0, 0.0), encode(1.0))
    assert drive.step(second, encode(2.0)).read is None
    ((found, line),) = lines
    assert found == kind and said in line and line.endswith(": the stream begins anew")
    assert second.timestamp is not None
    later = dataclasses.replace(second, token="later", timestamp=second.timestamp + 0.5)  # noqa: S106
    read = drive.step(later, encode(3.0)).read
    assert read is not None and read.planes.unique().tolist() == [2.0] and len(lines) == 1


def test_cameras_in_other_places_are_another_rig() -> None:
    lines: List[Tuple[str, str]] = []
    drive = stream(lines)
    drive.step(frame(0, 0.0), encode(1.0))
    shaken = np.stack(list(matrices([camera("front", 3.0), *THREE[1:]]).values()))
    assert drive.step(frame(1, 0.5, lidar2img=shaken), encode(2.0)).read is not None
    turned = np.stack(list(matrices([camera("front", 40.0), *THREE[1:]]).values()))
    assert drive.step(frame(2, 1.0, lidar2img=turned), encode(3.0)).read is None
    assert [kind for kind, _ in lines] == ["rig"]


def test_frames_without_pose_or_time_are_alone_and_told_once() -> None:
    lines: List[Tuple[str, str]] = []
    drive = stream(lines)
    for one in (frame(0), frame(1, None), frame(2, 1.0), frame(3, 1.5, lidar2global=None), frame(4, 2.0)):
        assert drive.step(one, encode(1.0)).read is None
    assert [kind for kind, _ in lines] == ["unknown"] and "frame1 has no timestamp" in lines[0][1]
    assert drive.step(frame(5, 2.5), encode(1.0)).read is not None


def test_two_streams_do_not_mix() -> None:
    one, other = stream(), stream()
    for number in range(3):
        reads = (
            one.step(frame(number, number / 2), encode(1.0)).read,
            other.step(frame(number, number / 2), encode(2.0)).read,
        )
        values = [None if read is None else read.planes.unique().tolist() for read in reads]
        assert values == ([None, None] if number == 0 else [[1.0], [2.0]])


def test_an_error_leaves_the_stream_as_it_was() -> None:
    def fail(_: Optional[PlaneHistory]) -> Seen:
        raise DataError("no image")

    drive = stream()
    drive.step(frame(0, 0.0), encode(1.0))
    with pytest.raises(DataError):
        drive.step(frame(1, 0.5), fail)
    assert drive.step(frame(2, 1.0), encode(2.0)).read is not None


def test_a_grid_in_the_vehicle_s_frame_moves_with_the_vehicle() -> None:
    model = dataclasses.replace(
        temporal(CONFIG).model, grid=dataclasses.replace(GridConfig(w=6, h=5, z=4), frame="ego")
    )
    lidar2ego = np.array([[0, 1, 0, 1.0], [-1, 0, 0, 0], [0, 0, 1, 2.0], [0, 0, 0, 1]])
    drive = Stream(model)
    for number in range(2):
        one = frame(number, number / 2)
        assert one.lidar2global is not None
        at = dataclasses.replace(one, lidar2ego=lidar2ego, lidar2global=one.lidar2global @ lidar2ego)
        read = drive.step(at, encode(1.0)).read
    assert read is not None and np.allclose(read.to_past[0, 0, :, 3].tolist(), [3, 0, 0, 1])


def window_logits(model: TPVFormer, index: int) -> Tensor:
    """The dense probabilities of a sample with its window, as an evaluation computes them."""
    batch = collate([open_frames(model.config, "val")[index]], 0)
    with torch.no_grad():
        return predict(model.network.eval(), batch, model.config, dense=True).voxel_logits[0].softmax(0)


def test_a_stream_is_the_window_that_begins_with_it(street: Config) -> None:
    model = lively(street)
    results = list(model.stream(rig=street.data.val_infos))
    static = lively(dataclasses.replace(street, model=CONFIG.model))
    alone = list(static.stream(rig=street.data.val_infos))
    assert [one.history is None for one in results + alone] == [False] * 4 + [True] * 4
    for index in range(3):
        expected = window_logits(model, index).numpy()
        assert np.allclose(results[index].voxels.probabilities, expected, atol=1e-5), index
    forgot = model.predict(rig=shuffled(street, [2]))[0]
    assert np.abs(forgot.voxels.probabilities - results[2].voxels.probabilities).max() > 1e-4


def shuffled(config: Config, order: List[int]) -> str:
    """Infos of the validation set in another order."""
    import pickle

    path = Path(config.data.val_infos)
    content = pickle.loads(path.read_bytes())  # noqa: S301 - written by this test
    content["infos"] = [content["infos"][i] for i in order]
    out = path.with_name(f"order{''.join(map(str, order))}.pkl")
    out.write_bytes(pickle.dumps(content))
    return str(out)


def test_frames_are_run_in_the_order_of_time_and_predict_returns_them_as_given(street: Config) -> None:
    model = lively(street)
    expected = list(model.stream(rig=street.data.val_infos))
    order = [2, 0, 3, 1]
    other = shuffled(street, order)
    assert [one.token for one in model.stream(rig=other)] == [one.token for one in expected]
    for result, index in zip(model.predict(rig=other), order):
        assert result.token == expected[index].token
        assert_same(result, expected[index])


def test_every_way_to_give_a_drive_is_the_same_stream(remembering: TPVFormer, tmp_path: Path) -> None:
    rig = drive_of(tmp_path)
    expected = list(remembering.stream(rig=rig))
    frames = [
        {name: tmp_path / file for name, file in one["images"].items()} for one in json.loads(rig.read_text())["frames"]
    ]
    times = [i / 2 for i in range(4)]

    def by_hand() -> Iterator[Result]:
        history = None
        for images, pose, time in zip(frames, POSES, times):
            result = remembering.predict(images, rig, history=history, ego2global=pose, timestamp=time)
            history = result.history
            yield result

    matrix = matrices(THREE)
    ways = [
        by_hand(),
        remembering.predict(frames, rig, ego2global=POSES, timestamp=times),
        remembering.stream(frames, rig, ego2global=np.stack(POSES), timestamp=times),
        remembering.stream(zip(frames, POSES, times), rig),
        remembering.stream(zip(frames, POSES, times), matrix),
        remembering.stream(((images, pose, t, None, matrix) for images, pose, t in zip(frames, POSES, times))),
    ]
    for way in ways:
        for result, other in zip(way, expected):
            assert_same(result, other, 1e-5)
    still = list(remembering.stream(zip(frames, [POSES[0]] * 4, times), rig))
    assert np.abs(still[3].voxels.probabilities - expected[3].voxels.probabilities).max() > 1e-4


def test_two_streams_of_one_model_do_not_mix(remembering: TPVFormer, tmp_path: Path) -> None:
    one, other = drive_of(tmp_path / "one"), changed_drive(tmp_path / "other")
    alone = [list(remembering.stream(rig=rig)) for rig in (one, other)]
    for pair in zip(zip(*(remembering.stream(rig=rig) for rig in (one, other))), zip(*alone)):
        for result, expected in zip(*pair):
            assert_same(result, expected)


def changed_drive(folder: Path) -> Path:
    path = drive_of(folder)
    rig = json.loads(path.read_text())
    rig["frames"] = rig["frames"][::-1]
    for i, one in enumerate(rig["frames"]):
        one.update(timestamp=i / 2)
    return save(path, rig)


def test_resets_are_warned_of_once_a_cause(remembering: TPVFormer, tmp_path: Path) -> None:
    rig = drive_of(tmp_path)
    content = json.loads(rig.read_text())
    for i, (scene, time) in enumerate((("a", 0.0), ("b", 0.5), ("c", 1.0), ("c", 9.0))):
        content["frames"][i].update(scene=scene, timestamp=time)
    with pytest.warns(UserWarning) as caught:
        results = list(remembering.stream(rig=save(rig, content)))
    said = [str(one.message) for one in caught]
    assert len(said) == 2 and "of scene b, frame0 of a" in said[0] and "8.000 s after frame2" in said[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for result in results:
            images = {
                name: tmp_path / file for name, file in content["frames"][int(result.token[-1])]["images"].items()
            }
            assert_same(result, remembering.predict(images, rig))


def test_what_does_not_fit_is_refused(remembering: TPVFormer, model: TPVFormer, tmp_path: Path) -> None:
    rig = drive_of(tmp_path)
    first = next(remembering.stream(rig=rig))
    assert first.history is not None
    with pytest.raises(ConfigError, match="the model has no model.history"):
        model.predict(rig=rig, history=first.history)
    with pytest.raises(ConfigError, match="history.planes.* belongs to the model that made it"):
        planes = first.history.planes
        bad = first.history._replace(planes=planes._replace(planes=planes.planes[:, :, :5]), timestamp=99.0)
        remembering.predict(rig=rig, history=bad)
    frames = [{name: tmp_path / file for name, file in json.loads(rig.read_text())["frames"][0]["images"].items()}]
    for more, said in (
        ({"ego2global": [np.eye(3)]}, "ego2global is no 4x4 pose"),
        ({"ego2global": [2 * np.eye(4)]}, "ego2global is no 4x4 pose"),
        ({"timestamp": [float("nan")]}, "timestamp is nan; expected a finite number"),
        ({"timestamp": [1.0, 2.0]}, "times .timestamp. are of 2 frames, images of 1"),
    ):
        with pytest.raises(DataError, match=said):
            remembering.predict(frames, rig, **more)
    with pytest.raises(DataError, match="without images; the frames of a rig bring their own timestamp"):
        remembering.predict(rig=rig, timestamp=[1.0])
    with pytest.raises(DataError, match="frame 0 is a dict; expected a tuple .images, ego2global"):
        next(remembering.stream(iter(frames), rig))
    with pytest.raises(DataError, match="expected points, poses and times in their tuples"):
        remembering.stream(iter(frames), rig, timestamp=[1.0])
    lost = changed(json.loads(rig.read_text()), "lidar2ego", remove=True)
    with pytest.raises(DataError, match="the rig does not say where its lidar is on the vehicle"):
        remembering.predict(frames, lost, ego2global=[np.eye(4)], timestamp=[0.0])


def test_the_command_streams_scenes_in_the_order_of_time(street: Config, tmp_path: Path, capsys: Any) -> None:
    model = lively(street)
    torch.save(model.network.state_dict(), tmp_path / "w.pth")
    config = write_config(tmp_path / "c.py", street)
    words = ["predict", "--py-config", str(config), "--ckpt-path", str(tmp_path / "w.pth"), "--device", "cpu"]
    assert main([*words, "--rig", shuffled(street, [2, 0, 3, 1]), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "streams 4 frames of 1 scenes in the order of time" in said and "anew" not in said
    for result in model.stream(rig=street.data.val_infos):
        with np.load(tmp_path / "out" / f"{result.token}.npz") as file:
            assert np.array_equal(file["voxels"], result.voxels.labels)
    rig = drive_of(tmp_path / "rig")
    content = json.loads(rig.read_text())
    for i, one in enumerate(content["frames"]):
        one.update(scene=f"drive{i // 2}")
    save(rig, content)
    assert main([*words, "--rig", str(rig), "--out", str(tmp_path / "more")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "anew" in line]
    assert lines == ["frame frame2 is of scene drive1, frame1 of drive0: the stream begins anew"]
    assert main([*words, "--rig", str(rig), "--index", "1", "--out", str(tmp_path / "one")]) == 0
    assert "frame 1 alone: nothing is remembered" in capsys.readouterr().out
