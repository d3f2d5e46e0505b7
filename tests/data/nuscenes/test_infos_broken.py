"""Broken tables and hostile info files: one sentence, exit status 2, nothing half-written, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest
from info_tools import columns_of

from tpvformer import files
from tpvformer.cli import main
from tpvformer.data.formats import load_infos
from tpvformer.data.nuscenes.infos import pickle_file, tensor_file
from tpvformer.data.nuscenes.infos.build import build
from tpvformer.data.nuscenes.infos.tensor_file import TensorFile, write_tensors
from tpvformer.errors import ConfigError, DataError
from tpvformer.files import atomic_file
from tpvformer.untrusted.pickle import load_pickle

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def tensors(whole, tmp_path_factory) -> bytes:
    """The info file of the training split, with tensors."""
    file = tmp_path_factory.mktemp("broken") / "infos.safetensors"
    write_tensors(build(whole, VERSION, ["synthetic_train"])["synthetic_train"], file)
    return file.read_bytes()


@pytest.fixture()
def tables(whole, tmp_path) -> Path:
    """A copy of the tables alone; no other file is needed to make infos."""
    shutil.copytree(whole / VERSION, tmp_path / "set" / VERSION)
    return tmp_path / "set"


def edit(root: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = root / VERSION / f"{name}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def refused(root: Path, capsys, *more: str) -> str:
    """The one line that the command says, after exit status 2, having left nothing in --out."""
    out = root.parent / "out"
    assert main(["data", "infos", "--root", str(root), "--version", VERSION, "--out", str(out), *more]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("tpvformer data: ")
    assert said.err.count("\n") == 1
    assert not out.exists()
    return said.err


def first(rows: List[dict], **values: Any) -> None:
    rows[0].update(values)


CAMERA = 1  # the first row of calibrated_sensor is the lidar's
NAN, HUGE = float("nan"), 10**400


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        (
            "calibrated_sensor",
            lambda r: first(r[CAMERA:], camera_intrinsic=[[0, 0, 1], [0, 9, 1], [0, 0, 1]]),
            "no proj",
        ),
        (
            "calibrated_sensor",
            lambda r: first(r[CAMERA:], camera_intrinsic=[[NAN, 0, 1], [0, 9, 1], [0, 0, 1]]),
            "no proj",
        ),
        ("calibrated_sensor", lambda r: first(r[CAMERA:], camera_intrinsic=[]), "expected 3x3 numbers"),
        ("calibrated_sensor", lambda r: first(r[CAMERA:], camera_intrinsic=[[HUGE] * 3] * 3), "expected 3x3 numbers"),
        ("calibrated_sensor", lambda r: first(r[CAMERA:], translation=[1, NAN, 2]), "no usable pose"),
        ("calibrated_sensor", lambda r: first(r[CAMERA:], rotation=[1, 2, 3]), "no usable pose"),
        ("calibrated_sensor", lambda r: first(r, rotation=[0, 0, 0, 0]), "no usable pose"),
        ("calibrated_sensor", lambda r: first(r, rotation=["1", "0", "0", "0"]), "no usable pose"),
        ("calibrated_sensor", lambda r: first(r, rotation="none"), 'rotation is "none", not list'),
        ("calibrated_sensor", lambda r: r.pop(CAMERA), "which calibrated_sensor.json does not have"),
        ("calibrated_sensor", lambda r: r.append(r[0]), "two rows have the token"),
        ("calibrated_sensor", lambda r: first(r, sensor_token="x"), "which the sensor table does not have"),
        ("calibrated_sensor", lambda r: r[0].pop("rotation"), "has no 'rotation'"),
        ("ego_pose", lambda r: r.pop(0), "no row"),
        ("ego_pose", lambda r: r.append(r[0]), "two rows have the token"),
        ("ego_pose", lambda r: first(r, translation=[1, 2, float("inf")]), "no usable pose"),
        ("ego_pose", lambda r: first(r, translation=[HUGE, 2, 3]), "no usable pose"),
        ("ego_pose", lambda r: first(r, translation=None), "not list"),
        ("sample_data", lambda r: r.pop(0), "no key frame of"),
        ("sample_data", lambda r: r.append({**r[0], "token": "x"}), "two key frames of"),
        ("sample_data", lambda r: first(r, timestamp="now"), 'timestamp is "now", not int'),
        ("sample_data", lambda r: first(r, timestamp=HUGE), "beyond 64 bits"),
        ("sample_data", lambda r: first(r, sample_token=["a"]), "not str"),
        ("sample_data", lambda r: first(r, is_key_frame=1), "not bool"),
        ("sample_data", lambda r: r.insert(0, "row"), "a row has no"),
        ("sample_data", lambda r: [row.update(prev="x") for row in r], "which is no lidar row"),
        ("sample", lambda r: r.clear(), "have no sample"),
        ("sample", lambda r: r.append({**r[0], "token": "x"}), "no key frame of"),
        ("sample", lambda r: r.append(r[0]), "two rows have the token"),
        ("scene", lambda r: r.clear(), "none of the"),
        ("scene", lambda r: first(r, name=7), "name is 7, not str"),
        ("splits", lambda s: s.update(synthetic_val="scene-0103"), "expected {split: [scene names]}"),
        ("splits", lambda s: s.update(synthetic_val=[]), "none of the 0 scenes of split synthetic_val"),
        ("splits", lambda s: s.update({"../../up": ["scene-0103"]}), "is not made of letters"),
    ],
)
def test_a_broken_table_is_one_sentence(tables, capsys, name, change, text):
    edit(tables, name, change)
    assert text in refused(tables, capsys)


@pytest.mark.parametrize("name", ["scene", "sample", "sensor", "calibrated_sensor", "sample_data", "ego_pose"])
@pytest.mark.parametrize(
    "damage",
    [
        None,
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text[: len(text) // 2],
        lambda text: '{"a": 1}',
        lambda text: "null",
        lambda text: "[" * 100_000,
        lambda text: text + "]",
        lambda text: text.replace("},", "}", 1),
        lambda text: '[{"token": "\udcff"}]',
        lambda text: text.replace('"token": "', '"token": "\\udcff', 1),
    ],
)
def test_a_damaged_file_is_one_sentence(tables, capsys, name, damage):
    path = tables / VERSION / f"{name}.json"
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text()), errors="surrogateescape")
    assert f"{name}.json" in refused(tables, capsys)


@pytest.mark.parametrize("name", ["scene", "ego_pose"])
def test_a_table_that_cannot_be_opened(tables, capsys, monkeypatch, name):
    def denied(path: Path, *args: Any, **options: Any) -> Any:
        if path.stem == name:
            raise PermissionError(13, "Permission denied")
        return plain_open(path, *args, **options)

    plain_open = Path.open
    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(Path, "read_bytes", lambda path: denied(path, "rb").read())
    assert f"{name}.json: cannot be read (Permission denied)" in refused(tables, capsys)


def test_what_is_not_read_may_be_missing(tables):
    for name in ("category", "attribute", "visibility", "instance", "log", "sample_annotation", "map", "lidarseg"):
        (tables / VERSION / f"{name}.json").unlink()
    (tables / VERSION / "splits.json").unlink()
    assert {s: len(i) for s, i in build(tables, VERSION, ["mini_train", "mini_val"]).items()} == {
        "mini_train": 2, "mini_val": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--splits", "val"], "belongs to the version v1.0-trainval"),
        (["--splits", "nothing"], "is none of"),
        (["--version", "v1.0-big"], "no official splits"),
        (["--version", "v1.0-trainval"], "no such folder of nuScenes tables"),
    ],
)
def test_wrong_arguments(tables, capsys, more, text):
    assert text in refused(tables, capsys, *more)


def test_a_full_disk_leaves_what_was_there(whole, tmp_path, monkeypatch, capsys):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    command = ["data", "infos", "--root", str(whole), "--version", VERSION, "--out", str(tmp_path)]
    (tmp_path / "nuscenes_infos_synthetic_train.pkl").write_text("old")
    monkeypatch.setattr(pickle_file.pickle, "dump", full)
    assert main(command) == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["nuscenes_infos_synthetic_train.pkl"]
    assert (tmp_path / "nuscenes_infos_synthetic_train.pkl").read_text() == "old"
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(ConfigError, match="No space left"), atomic_file(tmp_path / "a") as file:
        file.write(b"half")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a"):
        raise KeyboardInterrupt
    assert len(list(tmp_path.iterdir())) == 1


class Calls:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("place", ["infos", "data_list", "metadata"])
def test_a_pickle_that_names_os_system_is_refused(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    Path("a.pkl").write_bytes(pickle.dumps({place: [{"token": Calls()}]}))
    with pytest.raises(DataError, match=r"refused, the pickle calls for \S*system"):
        load_infos("a.pkl")
    assert main(["check-geometry", "--infos", "a.pkl"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tpvformer check-geometry: a.pkl: refused")
    assert said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pkl"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.update(cam_intrinsic=np.zeros((3, 3))), "cannot be inverted"),
        (lambda c: c.update(cam_intrinsic=np.diag([1.0, 0, 1])), "cannot be inverted"),
        (lambda c: c.update(cam_intrinsic=np.full((3, 3), np.nan)), "not finite"),
        (lambda c: c.update(cam_intrinsic=np.eye(5)), "CAM_FRONT: .*numbers of shape"),
        (lambda c: c.update(cam_intrinsic=np.eye(4)[:, [3, 0, 1, 2]]), "CAM_FRONT: .*is the matrix transposed"),
        (lambda c: c.update(data_path=None), "CAM_FRONT: names no image"),
        (lambda c: c.update(cam_intrinsic=np.eye(3).astype(str)), "numbers of shape"),
        (lambda c: c.update(cam_intrinsic=None), "numbers of shape"),
        (lambda c: c.update(sensor2lidar_translation=np.array([0, np.inf, 0])), "not finite"),
        (lambda c: c.update(sensor2lidar_rotation=[1, 0, 0, 0]), "numbers of shape"),
        (lambda c: c.pop("sensor2lidar_translation"), "has no 'sensor2lidar_translation'"),
        (lambda c: c.pop("data_path"), "has no 'data_path'"),
    ],
)
def test_an_unusable_calibration_in_a_pickle(whole, tmp_path, change, text):
    stored = load_pickle(whole / "nuscenes_infos_val.pkl")
    change(stored["infos"][1]["cams"]["CAM_FRONT"])
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(stored))
    with pytest.raises(DataError, match=f"record 1 .*{text}") as caught:
        load_infos(tmp_path / "a.pkl")
    assert "\n" not in str(caught.value)


def test_a_token_occurs_once(whole, tmp_path):
    stored = load_pickle(whole / "nuscenes_infos_val.pkl")
    stored["infos"][2]["token"] = stored["infos"][0]["token"]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(stored))
    with pytest.raises(DataError, match="record 2 has the token .* of record 0"):
        load_infos(tmp_path / "a.pkl")


def with_header(data: bytes, change: Callable[[dict], Any]) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def filled(value: float) -> Callable[[bytes], bytes]:
    """All projections become this number."""

    def change(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        a, b = json.loads(data[8 : 8 + length])["lidar2img"]["data_offsets"]
        return data[: 8 + length + a] + struct.pack("<d", value) * ((b - a) // 8) + data[8 + length + b :]

    return change


def header(change: Callable[[dict], Any]) -> Callable[[bytes], bytes]:
    return lambda data: with_header(data, change)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: b"", "cannot be read"),
        (lambda data: data[:5], "header's length"),
        (lambda data: data[:100], "header's length"),
        (lambda data: data[:-1], "it ends before"),
        (lambda data: data[: len(data) // 2], "it ends before"),
        (lambda data: b"\xff" * 8 + data[8:], "header's length"),
        (lambda data: data[:8] + b"!" + data[9:], "header is not"),
        (lambda data: struct.pack("<Q", 2) + b"[]", "header is not"),
        (lambda data: pickle.dumps({"infos": [1]}), "header's length"),
        (header(lambda h: h["__metadata__"].update(layout="x")), "has the layout 'x'"),
        (header(lambda h: h["__metadata__"].update(cameras="[]")), "names no cameras"),
        (header(lambda h: h["__metadata__"].update(cameras='["CAM_FRONT"]')), "its array"),
        (header(lambda h: h.pop("lidar2img")), "'lidar2img' is absent"),
        (header(lambda h: h["lidar2img"].update(dtype="F32")), "'lidar2img' is"),
        (header(lambda h: h["lidar2img"].update(shape=[2, 6, 16])), "'lidar2img' is"),
        (header(lambda h: h["lidar2img"].update(shape=[-2, -6, 4, 4])), "'lidar2img' is"),
        (header(lambda h: h["lidar2img"].update(data_offsets=[-8, 1528])), "'lidar2img' is"),
        (header(lambda h: h["lidar2img"].update(data_offsets=[2**70, 2**70 + 1536])), "it ends before"),
        (header(lambda h: h["lidar2img"].update(data_offsets="ab")), "'lidar2img' is"),
        (header(lambda h: h["lidar2img"]["data_offsets"].__setitem__(slice(None), [4, 1540])), "it ends before"),
        (header(lambda h: h["tokens.bytes"].update(shape=[60])), "'tokens.bytes' is"),
        (header(lambda h: h["timestamps"].update(shape=[10**30])), "'timestamps' is"),
        (filled(float("nan")), "not finite"),
        (filled(0.0), "cannot be inverted"),
    ],
)
def test_a_damaged_tensor_file_is_one_sentence(tensors, tmp_path, change, text):
    path = tmp_path / "a.safetensors"
    path.write_bytes(change(tensors))
    with pytest.raises(DataError, match=text) as caught:
        load_infos(path)
    assert "\n" not in str(caught.value)
    assert "a.safetensors" in str(caught.value)


def test_any_single_changed_byte_of_the_header_is_read_or_refused(tensors, tmp_path):
    data = tensors
    length = struct.unpack("<Q", data[:8])[0]
    rng = np.random.default_rng(0)
    path = tmp_path / "a.safetensors"
    for at, value in zip(rng.integers(0, 8 + length, 400), rng.integers(0, 256, 400)):
        changed = bytearray(data)
        changed[at] = value
        path.write_bytes(changed)
        try:
            load_infos(path)
            columns_of(TensorFile(path))
        except DataError as err:
            assert "\n" not in str(err)


def test_an_absent_tensor_file_and_no_samples(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_infos(tmp_path / "none.safetensors")
    with pytest.raises(DataError, match="cannot be read"):
        load_infos(tmp_path.rename(tmp_path.with_suffix(".safetensors")))
    assert tensor_file.SUFFIX == ".safetensors"
