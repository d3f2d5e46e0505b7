"""Tables in nuScenes' schema that are not all of nuScenes: front cameras alone, Lyft's, labels of nuScenes-panoptic."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest

from tpvformer.cli import main
from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import load_infos
from tpvformer.data.nuscenes.infos.build import build, build_scene
from tpvformer.data.nuscenes.infos.pickle_file import write_pickle
from tpvformer.data.nuscenes.infos.read import record_of
from tpvformer.data.nuscenes.infos.tensor_file import write_tensors
from tpvformer.data.nuscenes.reader import read_labels
from tpvformer.errors import DataError

VERSION = "v1.0-mini"


def edit(root: Path, name: str, change: Callable[[List[dict]], List[dict]]) -> List[dict]:
    path = root / VERSION / f"{name}.json"
    rows = change(json.loads(path.read_text()))
    path.write_text(json.dumps(rows))
    return rows


def both(root: Path, folder: Path) -> List[list]:
    """The records of the training split by way of either kind of info file."""
    infos = build(root, VERSION, ["mini_train"], f"{root.as_posix()}/")["mini_train"]
    write_pickle(infos, folder / "a.pkl")
    write_tensors(infos, folder / "a.safetensors")
    return [load_infos(folder / f"a.{kind}") for kind in ("pkl", "safetensors")]


def test_cameras_without_key_frames_are_left_out(root: Path, tmp_path: Path, caplog: Any, capsys: Any) -> None:
    before = both(root, tmp_path)[0]
    edit(root, "sample_data", lambda rows: [row for row in rows if "/CAM_BACK" not in row["filename"]])
    with caplog.at_level(logging.WARNING):
        made = both(root, tmp_path)
    assert sum("CAM_BACK (2), CAM_BACK_LEFT (2), CAM_BACK_RIGHT (2)" in text for text in caplog.messages) == 1
    for records in made:
        for old, new in zip(before, records):
            assert (
                new.camera_names == ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT") and new.images == old.images[:3]
            )
            np.testing.assert_array_equal(new.lidar2img, old.lidar2img[:3])
    assert main(["data", "check", "--root", str(root), "--version", VERSION]) == 0
    assert "note: no sample has a key frame of CAM_BACK, CAM_BACK_LEFT, CAM_BACK_RIGHT" in capsys.readouterr().out


def test_one_lost_image_does_not_bar_the_set(root: Path, tmp_path: Path, caplog: Any) -> None:
    before = both(root, tmp_path)[0]
    lost = before[0].images[0].rsplit("/", 1)[-1]
    edit(root, "sample_data", lambda rows: [row for row in rows if not row["filename"].endswith(lost)])
    for records in both(root, tmp_path):
        assert records[0].images == before[0].images[1:] and records[0].slots == (1, 2, 3, 4, 5)
        np.testing.assert_array_equal(records[0].lidar2img, before[0].lidar2img[1:])
        assert records[1].images == before[1].images and records[1].slots == ()
    assert "no key frame of CAM_FRONT (1)" in caplog.text
    assert len(record_of(*build_scene(root, VERSION, before[0].token)).images) == 5


def test_a_sample_without_any_camera_is_refused(root: Path) -> None:
    edit(root, "sample_data", lambda rows: [row for row in rows if "/CAM_" not in row["filename"]])
    with pytest.raises(DataError, match=r"has no key frame of any camera \(CAM_FRONT, .*one camera at least"):
        build(root, VERSION, ["mini_train"])


def test_distortion_beside_intrinsics_is_refused(root: Path, capsys: Any) -> None:
    def add(value: list) -> None:
        edit(root, "calibrated_sensor", lambda rows: [{**row, "camera_distortion": value} for row in rows])

    add([0.0, 0.0])
    assert main(["data", "check", "--root", str(root), "--version", VERSION]) == 0
    add([-0.2, 0.1])
    with pytest.raises(DataError, match="calibrated_sensor.json: row .*: CAM_FRONT.* has the camera_distortion"):
        build(root, VERSION, ["mini_train"])
    capsys.readouterr()
    assert main(["data", "check", "--root", str(root), "--version", VERSION]) == 1
    assert "CAM_FRONT has the camera_distortion [-0.2, 0.1], but the model knows pinhole" in capsys.readouterr().out


def lyft(root: Path) -> None:
    """Another version name, folders of their own, fractions of microseconds, no labels, no splits."""
    for name in ("sample", "sample_data", "ego_pose"):
        edit(root, name, lambda rows: [{**row, "timestamp": row["timestamp"] + 0.375} for row in rows])
    for name in ("images", "lidar"):
        (root / name).mkdir()
    for row in edit(root, "sample_data", lambda rows: rows):
        (root / row["filename"]).rename(root / moved(row)["filename"])
    edit(root, "sample_data", lambda rows: [moved(row) for row in rows])
    shutil.rmtree(root / "samples")
    (root / VERSION / "splits.json").unlink()
    (root / VERSION / "lidarseg.json").unlink()
    (root / VERSION).rename(root / "v1.01-train")


def moved(row: dict) -> dict:
    folder = "images" if "/CAM_" in row["filename"] else "lidar"
    return {**row, "filename": f"{folder}/{row['filename'].rsplit('/', 1)[-1]}"}


def test_lyft(root: Path, tmp_path: Path, capsys: Any) -> None:
    stamps = {row["token"]: row["timestamp"] for row in edit(root, "sample", lambda rows: rows)}
    lyft(root)
    command = ["data", "infos", "--root", str(root), "--version", "v1.01-train", "--out", str(tmp_path)]
    assert main(command) == 2
    assert f"{root / 'v1.01-train'}/splits.json may list others" in capsys.readouterr().err
    names = [row["name"] for row in json.loads((root / "v1.01-train" / "scene.json").read_text())]
    (root / "v1.01-train" / "splits.json").write_text(json.dumps({"all": names}))
    assert main(command) == 0
    infos = build(root, "v1.01-train", ["all"])["all"]
    assert infos.timestamps.tolist() == [stamps[token] for token in infos.tokens]
    assert len(load_infos(tmp_path / "nuscenes_infos_all.pkl")) == 6
    capsys.readouterr()
    assert main(["data", "check", "--root", str(root), "--version", "v1.01-train"]) == 0
    said = capsys.readouterr().out
    assert "images/                                 36        36\n" in said and "no faults" in said
    assert "note: no lidarseg.json: this set has no labels of points" in said
    for bad in (float("nan"), float("inf"), 1e40):
        (root / "v1.01-train" / "sample.json").write_text(
            json.dumps(
                [{**row, "timestamp": bad} for row in json.loads((root / "v1.01-train/sample.json").read_text())]
            )
        )
        with pytest.raises(DataError, match="sample.json: holds a timestamp beyond 64 bits"):
            build(root, "v1.01-train", ["all"])


def panoptic(root: Path) -> None:
    """The same labels as nuScenes-panoptic stores them, with numbers of objects."""
    rows = json.loads((root / VERSION / "lidarseg.json").read_text())
    for row in rows:
        raw = np.fromfile(root / row["filename"], np.uint8).astype(np.uint16)
        row["filename"] = f"panoptic/{VERSION}/{row['sample_data_token']}_panoptic.npz"
        (root / row["filename"]).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(root / row["filename"], data=raw * 1000 + np.arange(len(raw), dtype=np.uint16) % 100)
    shutil.rmtree(root / "lidarseg")
    (root / VERSION / "lidarseg.json").unlink()
    (root / VERSION / "panoptic.json").write_text(json.dumps(rows))


def labels(root: Path, infos: Path) -> List[np.ndarray]:
    cfg = Config(name="t").data
    cfg = type(cfg)(root=str(root), version=VERSION, val_infos=str(infos))
    data = FrameDataset(cfg, Config(name="t").model.grid, "val", 0)
    return [data.load_frame(i).labels for i in range(len(data))]


def test_panoptic_labels_are_those_of_lidarseg(root: Path, tmp_path: Path, capsys: Any) -> None:
    write_tensors(build(root, VERSION, ["mini_train"], f"{root.as_posix()}/")["mini_train"], tmp_path / "a.safetensors")
    before = labels(root, tmp_path / "a.safetensors")
    panoptic(root)
    for old, new in zip(before, labels(root, tmp_path / "a.safetensors")):
        np.testing.assert_array_equal(old, new)
    assert main(["data", "check", "--root", str(root), "--version", VERSION]) == 0
    said = capsys.readouterr().out
    assert "note: no lidarseg.json: labels are the categories of nuScenes-panoptic" in said
    assert f"panoptic/{VERSION}/ " in said and "6 label files looked at" in said
    (file, *_) = sorted((root / "panoptic" / VERSION).iterdir())
    for damage, text in ((lambda d: d[: len(d) // 2], "no file of nuScenes-panoptic"), (lambda d: b"", "no file of")):
        file.write_bytes(damage(file.read_bytes()))
        assert main(["data", "check", "--root", str(root), "--version", VERSION]) == 1
        assert text in capsys.readouterr().out
    for wrong in (np.zeros((3, 3), np.uint16), np.zeros(9), np.full(9, -5)):
        np.savez(tmp_path / "a.npz", data=wrong)
        with pytest.raises(DataError, match="expected a label a point"):
            read_labels(tmp_path / "a.npz", tmp_path / "a.bin", "t", 9, 32)
    np.savez(tmp_path / "a.npz", data=np.full(9, 40000, np.uint16))
    with pytest.raises(DataError, match="holds label 40"):
        read_labels(tmp_path / "a.npz", tmp_path / "a.bin", "t", 9, 32)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: {"translation": [1000 * v for v in r["translation"]]}, r"CAM_.* lies \d{3,4} m away from the lidar"),
        (lambda r: {"rotation": [90.0, 0, 0, 0]}, "a unit quaternion of 4"),
        (lambda r: {"camera_intrinsic": np.transpose(r["camera_intrinsic"]).tolist()}, "which is transposed"),
    ],
)
def test_calibrations_that_are_none(root: Path, capsys: Any, change: Callable[[dict], dict], text: str) -> None:
    cameras = lambda rows: [{**r, **change(r)} if r["camera_intrinsic"] else r for r in rows]  # noqa: E731
    edit(root, "calibrated_sensor", cameras)
    with pytest.raises(DataError, match=text):
        build(root, VERSION, ["mini_train"])
    main(["data", "check", "--root", str(root), "--version", VERSION])
    said = capsys.readouterr().out
    assert ("CAM_FRONT lies" in said) if "lies" in text else ("no faults" not in said)
