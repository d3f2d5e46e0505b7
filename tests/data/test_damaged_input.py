"""Everything a training run reads, damaged in every way that we know of: one sentence, exit status 2, no traceback,
nothing executed, nothing left behind but the log.

Each kind of input has more cases in a file of its own: infos and tables in test_infos_broken and test_infos_fuzz,
downloads in test_data_check, checkpoints in test_weights, configurations in test_load_config, dense labels in
test_dense_labels.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import cv2
import numpy as np
import pytest
import torch
from engine_tools import POINTS, tiny_config, tiny_model, write_config
from tiny_nuscenes import VERSION, write_tiny

from tpvformer.cli import main
from tpvformer.config import DataConfig

pytestmark = pytest.mark.usefixtures("quick")
IMAGE = "samples/CAM_BACK/log__CAM_BACK__{}.jpg"
SCAN = "samples/LIDAR_TOP/log__LIDAR_TOP__{}.pcd.bin"
LABEL = f"lidarseg/{VERSION}/scan{{}}_lidarseg.bin"
Damage = Callable[[Path], Any]


class Bomb:
    """A pickle that runs a command where it is opened."""

    def __init__(self, call: Callable[..., Any], *arguments: str) -> None:
        self._reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


def everywhere(pattern: str, change: Callable[[bytes], bytes]) -> Damage:
    """Changes that file of every sample, so that the first one read is bad whatever the order."""

    def damage(folder: Path) -> None:
        for i in range(len(POINTS)):
            path = folder / "set" / pattern.format(i)
            path.write_bytes(change(path.read_bytes()))

    return damage


def removed(name: str) -> Damage:
    def damage(folder: Path) -> None:
        for path in (folder / "set").glob(name):
            path.unlink()

    return damage


def infos(change: Callable[[List[Dict[str, Any]]], Any]) -> Damage:
    """Rewrites the info pickle with what ``change`` makes of its records, or leaves of them."""

    def damage(folder: Path) -> None:
        path = folder / "set" / "infos.pkl"
        stored = pickle.loads(path.read_bytes())  # noqa: S301  # written by this test
        stored["infos"] = change(stored["infos"]) or stored["infos"]
        path.write_bytes(pickle.dumps(stored))

    return damage


def camera(key: str, value: Any) -> Damage:
    """Sets one entry of a camera in record 2."""
    return infos(lambda records: records[2]["cams"]["CAM_BACK"].update({key: value}))


def pickled(content: Callable[[Path], Any]) -> Damage:
    return lambda folder: (folder / "set" / "infos.pkl").write_bytes(pickle.dumps(content(folder)))


def table(name: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "set" / VERSION / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def words(*more: str) -> Damage:
    """More of the command line instead of damage to a file."""
    return lambda folder: list(more)


def config_file(text: str, name: str = "other.py") -> Damage:
    def damage(folder: Path) -> List[str]:
        (folder / name).write_text(text)
        return ["--py-config", str(folder / name)]

    return damage


def resumed(content: Callable[[Path], Any]) -> Damage:
    def damage(folder: Path) -> List[str]:
        made = content(folder)
        path = folder / "given.pth"
        if isinstance(made, bytes):
            path.write_bytes(made)
        else:
            torch.save(made, path)
        return ["--resume-from", str(path)]

    return damage


def jpeg(shape: Tuple[int, ...]) -> bytes:
    return cv2.imencode(".jpg", np.full(shape, 128, np.uint8))[1].tobytes()


def whole_weights() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": tiny_model().state_dict()}, file)
    return file.getvalue()


EYE = np.eye(3)
KINDS: Dict[str, Tuple[Damage, str]] = {
    # images
    "JPEG cut short": (everywhere(IMAGE, lambda data: data[: len(data) // 2]), "is no whole image"),
    "JPEG of no bytes": (everywhere(IMAGE, lambda _: b""), r"is no whole image \(0 bytes\)"),
    "text in place of a JPEG": (everywhere(IMAGE, lambda _: b"<html>not found</html>"), "is no whole image"),
    "video in place of a JPEG": (everywhere(IMAGE, lambda _: b"\0\0\0\x18ftypmp42" + bytes(99)), "an MP4 .* video"),
    "JPEG of another size": (everywhere(IMAGE, lambda _: jpeg((44, 77, 3))), r"different sizes|stated size"),
    "missing JPEG": (removed("samples/CAM_BACK/*"), "is missing; looked for"),
    # scans and labels
    "scan cut short": (everywhere(SCAN, lambda data: data[:-7]), "expected a multiple of 20"),
    "scan with NaN": (everywhere(SCAN, lambda data: b"\xff" * len(data)), "not finite numbers"),
    "missing scan": (removed("samples/LIDAR_TOP/*"), "is missing; looked for"),
    "labels of another length": (everywhere(LABEL, lambda data: data + b"\1"), r"holds \d+ labels for the \d+ points"),
    "label 200": (everywhere(LABEL, lambda data: b"\xc8" + data[1:]), "holds label 200; expected 0 to 31"),
    "missing labels": (removed("lidarseg/*/*"), "label file .* is missing"),
    # tables
    "missing table": (removed(f"{VERSION}/lidarseg.json"), "lidarseg.json: no such file"),
    "table cut short": (table("sample_data.json", lambda data: data[: len(data) // 2]), "in the middle of a record"),
    "table that is no JSON": (table("lidarseg.json", lambda _: b"[{sample_data_token}]"), "not JSON at"),
    "table without a column": (
        table("lidarseg.json", lambda data: data.replace(b"filename", b"name")),
        "a record has no 'filename'",
    ),
    "table of another data set": (
        table("lidarseg.json", lambda data: data.replace(b"scan", b"other")),
        "lidarseg.json has no labels for it",
    ),
    # infos
    "NaN in the calibration": (camera("sensor2lidar_translation", np.array([0, np.nan, 0])), "unusable calibration"),
    "singular intrinsics": (camera("cam_intrinsic", np.diag([60.0, 0, 1])), "cannot be inverted"),
    "intrinsics of another shape": (camera("cam_intrinsic", np.eye(5)), r"of shape \(5, 5\)"),
    "text for numbers": (camera("sensor2lidar_rotation", EYE.astype(str)), "where numbers of shape"),
    "complex numbers": (camera("sensor2lidar_rotation", EYE.astype(complex)), "where numbers of shape"),
    "no cameras": (infos(lambda records: [r.pop("cams") and None for r in records] and None), "has no 'cams'"),
    "duplicate token": (infos(lambda records: records[3].update(token="sample1")), "has the token sample1 of record 1"),
    "empty split": (pickled(lambda _: {"infos": []}), "holds no frames"),
    "pickle of something else": (pickled(lambda _: [1, 2]), "holds list; expected a list of samples"),
    "pickle cut short": (
        lambda folder: os.truncate(folder / "set" / "infos.pkl", 400),
        "not a readable pickle",
    ),
    "pickle naming os.system": (
        pickled(lambda folder: {"infos": [Bomb(os.system, f"touch {folder / 'ran'}")]}),
        r"refused, the pickle calls for (posix|nt)\.system",
    ),
    "pickle naming eval": (
        pickled(lambda folder: {"infos": [Bomb(eval, f"open({str(folder / 'ran')!r}, 'w')")]}),
        r"refused, the pickle calls for builtins\.eval",
    ),
    "missing infos": (removed("infos.pkl"), "infos.pkl: no such file"),
    # configuration
    "unknown key": (words("--set", "train.epoch=3"), "did you mean 'epochs'"),
    "unknown section": (words("--set", "trian.epochs=3"), "did you mean 'train'"),
    "wrong type": (words("--set", "optim.lr=fast"), "expected float, got 'fast'"),
    "impossible value": (words("--set", "data.batch_size=0"), "data.batch_size is 0; expected 1 or more"),
    "batch larger than the set": (words("--set", "data.batch_size=50"), "do not fill one batch of 50"),
    "missing file": (words("--py-config", "/nowhere/c.py"), "/nowhere/c.py"),
    "syntax error": (config_file("config = (\n"), r"other\.py"),
    "file without a configuration": (config_file("answer = 42\n"), r"other\.py"),
    "cyclic _base_": (config_file("_base_ = ['other.py']\nmodel = dict(type='TPVFormer')\n"), "_base_"),
    "unknown key of the reference": (
        config_file("model = dict(type='TPVFormer', tpv_heads=3)\n"),
        r"other\.py",
    ),
    # checkpoints
    "checkpoint cut short": (resumed(lambda _: whole_weights()[:-3000]), "given.pth"),
    "checkpoint of no bytes": (resumed(lambda _: b""), "given.pth"),
    "text in place of a checkpoint": (resumed(lambda _: b"<html>not found</html>"), "given.pth"),
    "checkpoint that runs a command": (
        resumed(lambda folder: {"state_dict": Bomb(os.system, f"touch {folder / 'ran'}")}),
        "given.pth",
    ),
    "weights without a run": (resumed(lambda _: whole_weights()), "was not written by this trainer"),
    "missing checkpoint": (words("--resume-from", "/nowhere/latest.pth"), "/nowhere/latest.pth"),
    "weights of another model": (
        lambda folder: ["--set", f"train.load_from={other_weights(folder)}"],
        "other.pth",
    ),
}


def other_weights(folder: Path) -> Path:
    torch.save({"neck.fpn_convs.0.conv.weight": torch.zeros(3)}, folder / "other.pth")
    return folder / "other.pth"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_tiny(folder / "set", POINTS, cameras=("CAM_FRONT", "CAM_BACK"))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "set", tmp_path / "set")
    path = str(tmp_path / "set" / "infos.pkl")
    data = DataConfig(root=str(tmp_path / "set"), version=VERSION, train_infos=path, val_infos=path, workers=0)
    write_config(tmp_path / "tiny.py", tiny_config(data))
    return tmp_path


def run(folder: Path, more: List[str]) -> int:
    given = [] if "--py-config" in more else ["--py-config", str(folder / "tiny.py")]
    return main(["train", *given, "--device", "cpu", "--work-dir", str(folder / "run"), *more])


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_one_sentence(folder: Path, kind: str, capsys) -> None:
    damage, text = KINDS[kind]
    more = damage(folder)
    assert run(folder, more if isinstance(more, list) else []) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("tpvformer train: "), err
    assert re.search(text, lines[0]), lines[0]
    assert not (folder / "ran").exists()
    left = {path.name for path in (folder / "run").rglob("*")} if (folder / "run").exists() else set()
    assert not {name for name in left if name.endswith((".pth", ".tmp", ".partial"))} and "summary.json" not in left


def test_a_worker_says_the_same(folder: Path, capsys) -> None:
    KINDS["JPEG cut short"][0](folder)
    assert run(folder, ["--set", "data.workers=1"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and "is no whole image" in lines[0]


def test_the_undamaged_set_trains(folder: Path) -> None:
    assert run(folder, ["--max-epochs", "1"]) == 0
    assert json.loads((folder / "run" / "summary.json").read_text())["epochs"] == 1
