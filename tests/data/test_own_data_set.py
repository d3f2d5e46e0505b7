"""A fifth data set, in a format that only its class knows: the page's example, then commands, windows, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Iterator

import numpy as np
import pytest
import torch
from page_blocks import blocks, run

from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.config import Config, ConfigError, DataConfig
from tpvformer.config import formats as known
from tpvformer.data import formats
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import register
from tpvformer.data.own import own_records
from tpvformer.data.record import Record
from tpvformer.errors import DataError

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict[str, Any]]:
    """What the page's blocks have bound after training and evaluation, in a folder of their own.

    The data set that they register is forgotten after this file's tests.
    """
    folder, bound = tmp_path_factory.mktemp("reader"), {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as registered:
        registered.setattr(formats, "_OWN", {})
        registered.setattr(known, "_registered", [])
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            run([*blocks("A label map"), *blocks("A data set of your own")], bound)
        yield {**bound, "here": folder}


@pytest.fixture
def toy(names: Dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Dict[str, Any]:
    monkeypatch.chdir(names["here"])
    return names


def test_the_example_trains_and_evaluates_its_classes(toy: Dict[str, Any]) -> None:
    metric = toy["summary"]["evaluation"]["metrics"]["miou_points"]
    assert list(metric["iou"]) == ["road", "car", "wall"] and metric["value"] is not None
    assert toy["summary"]["evaluation"]["samples"] == 2


def test_frames_are_what_the_files_hold(toy: Dict[str, Any]) -> None:
    config: Config = toy["config"]
    data = FrameDataset(config.data, config.model.grid, "train", 0)
    frame = data.load_frame(2)
    assert len(data) == 4 and frame.camera_names == ["front", "back"] and data.has_labels
    points = np.load("data/toy/train2-points.npy")
    np.testing.assert_allclose(frame.points, points, atol=1e-5)
    assert frame.labels.tolist() == (np.load("data/toy/train2-labels.npy") - 1).tolist()
    image = toy["cv2"].imread("data/toy/train2-back.png")
    assert torch.equal(frame.images[1], torch.from_numpy(image))


def test_windows_come_from_scene_time_and_pose(toy: Dict[str, Any]) -> None:
    config: Config = toy["config"]
    data = FrameDataset(config.data, config.model.grid, "train", 0, past=2)
    assert data.windows == [(), (0,), (1, 0), (2, 1)]
    past = data.sample(3, augment=False).past[0]
    assert past.now2past[1, 3] == pytest.approx(2.0)  # the vehicle drove two metres ahead


def test_commands_read_it_where_the_configuration_registers_it(
    toy: Dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """predict without --rig takes the configured set; data check looks at all files of a source."""
    body = blocks("A data set of your own")[1]
    tree = dataclasses.asdict(toy["config"])
    file = Path("mine.py")
    head = "import json\nfrom pathlib import Path\n\nimport numpy as np\n"
    file.write_text(f"{head}{body}\nfrom tpvformer.config import from_dict\n\nconfig = from_dict({tree!r})\n")
    words = ["--py-config", str(file), "--ckpt-path", "out/toy", "--out", "out/predicted", "--device", "cpu", "--truth"]
    assert main(["predict", *words]) == 0
    with np.load("out/predicted/val1.npz") as stored:
        assert stored["class_names"].tolist() == ["road", "car", "wall"] and "true_point_labels" in stored.files
    capsys.readouterr()
    assert main(["data", "check", "--py-config", str(file), "--rig", "val.json"]) == 0
    assert "2 frames: 4 images, 2 scans and 2 label files looked at" in capsys.readouterr().out
    Path("data/toy/val1-back.png").rename("data/toy/away.png")
    try:
        assert main(["data", "check", "--py-config", str(file), "--rig", "val.json"]) == 1
        assert "val1" in capsys.readouterr().out
    finally:
        Path("data/toy/away.png").rename("data/toy/val1-back.png")


def test_weights_open_where_the_data_set_is_unknown(toy: Dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_registered", [])
    monkeypatch.setattr(formats, "_OWN", {})
    with pytest.raises(ConfigError, match="data.format is 'toy'; expected 'nuscenes' or 'semantickitti', or a"):
        DataConfig(format="toy")
    model = TPVFormer.from_pretrained("out/toy", device="cpu")
    assert model.config.data.format == "nuscenes" and list(model.names.values()) == ["road", "car", "wall"]


# ---- refusals

GOOD = Record("a", "a.npy", ("front",), ("a.png",), np.eye(4)[None] * [[[2.0], [3], [1], [1]]])


class Listed:
    def __init__(self, *records: Any) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> Any:
        return self._records[index]


REFUSED: Dict[str, Any] = {
    "has no frames": (),
    "record 0 is a str; expected a tpvformer.data.record.Record": ("a",),
    "records 0 and 1 have the token a": (GOOD, GOOD),
    "record 0 has the token '../a'": (dataclasses.replace(GOOD, token="../a"),),
    r"has the cameras \('front',\) and 2 images": (dataclasses.replace(GOOD, images=("a.png", "b.png")),),
    r"lidar2img is \(4, 4\); expected \(1, 4, 4\) finite numbers": (dataclasses.replace(GOOD, lidar2img=np.eye(4)),),
    "lidar2img has no inverse": (dataclasses.replace(GOOD, lidar2img=np.zeros((1, 4, 4))),),
    r"ego2global is \(3,\)": (dataclasses.replace(GOOD, ego2global=np.zeros(3)),),
    "has an image without a path": (dataclasses.replace(GOOD, images=("",)),),
    "has labels of points, but no scan": (dataclasses.replace(GOOD, scan="", labels="b.npy"),),
    "has 2 sizes of images; expected 1": (dataclasses.replace(GOOD, sizes=((1, 1), (2, 2))),),
    "holds the name": (dataclasses.replace(GOOD, scene="a\x1b"),),
    "has the slots": (dataclasses.replace(GOOD, slots=(-1,)),),
    "has the timestamp nan": (dataclasses.replace(GOOD, timestamp=float("nan")),),
}


@pytest.mark.parametrize("expected", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        own_records(Listed(*REFUSED[expected]), "mine", "root")
    assert str(caught.value).startswith("data.format mine: ") and "\n" not in str(caught.value)


def test_paths_lie_below_the_root_unless_they_are_absolute(tmp_path: Path) -> None:
    (record,) = own_records(Listed(dataclasses.replace(GOOD, scan="/x/a.npy")), "mine", tmp_path)
    assert record.images == (str(tmp_path / "a.png"),) and record.scan == "/x/a.npy" and record.labels == ""


def test_a_built_in_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="is to be registered as 'nuscenes'; expected a name of its own"):
        register("nuscenes", lambda source, root: Listed(GOOD))
