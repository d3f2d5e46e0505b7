"""Classes of one's own from the label file to the picture: training, evaluation, prediction, without the file later."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import List

import cv2
import numpy as np
import pytest
from engine_tools import tiny_config, write_config
from own_classes import SIX, class_of, write_six
from rig_tools import THREE, write_rig
from tiny_nuscenes import write_tiny

from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.compat.pretrained import read_run_config
from tpvformer.config import Config, override
from tpvformer.data.dataset import FrameDataset
from tpvformer.engine.evaluation.submission_file import evaluation_set
from tpvformer.errors import ConfigError, DataError
from tpvformer.labels import RAW_NAMES
from tpvformer.predict.archive import frame_prediction
from tpvformer.predict.checked_arrays import load_arrays
from tpvformer.viz.frame_prediction import shown
from tpvformer.viz.paint import palette_bgr

pytestmark = pytest.mark.usefixtures("quick")
NAMES = list(SIX)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    data = write_tiny(folder / "set", points=(50, 70))
    tiny = tiny_config(data, epochs=1)
    return override(tiny, [f"data.label_map={write_six(folder)}", "model.num_classes=6"])


@pytest.fixture(scope="module")
def work_dir(folder: Path, config: Config) -> Path:
    """The work dir of two steps on a configuration file that names the label map; the map is then removed."""
    plain = override(config, ["data.label_map=nuscenes", "model.num_classes=17"])
    file = write_config(folder / "tiny.py", plain)
    words = ["--set", f"data.label_map={folder}/six.yaml", "--set", "model.num_classes=6", "--device", "cpu"]
    assert main(["train", "--py-config", str(file), "--work-dir", str(folder / "run"), *words]) == 0
    (folder / "six.yaml").unlink()
    return folder / "run"


@pytest.fixture(scope="module")
def own_file(folder: Path, work_dir: Path, config: Config) -> Path:
    """A configuration file that holds the classes; the file that they came from is gone."""
    return write_config(folder / "own.py", config)


def test_points_have_the_class_that_the_file_gives_their_raw_label(config: Config) -> None:
    data = FrameDataset(config.data, config.model.grid, "val", 0)
    raw = np.fromfile(next(Path(config.data.root).glob("lidarseg/*/scan0_*")), np.uint8)
    assert data.load_frame(0).labels.tolist() == [NAMES.index(class_of(RAW_NAMES[label])) for label in raw]


def test_a_run_stores_the_classes_and_scores_them(work_dir: Path) -> None:
    scores = json.loads((work_dir / "summary.json").read_text())["evaluation"]
    assert list(scores["metrics"]["miou_points"]["iou"]) == NAMES[1:] and scores["confusion"]["classes"] == NAMES
    assert "miou_small" not in scores["metrics"]  # none of nuScenes' three names
    stored = read_run_config(work_dir / "config.yaml").data
    assert stored.classes is not None and list(stored.classes.names) == NAMES and stored.label_map == "six"


def test_evaluation_names_the_classes(work_dir: Path, own_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--py-config", str(own_file), "--ckpt-path", str(work_dir), "--device", "cpu", "--permute-cameras"]
    assert main(["eval", *words]) == 0
    said = "".join(capsys.readouterr())
    assert all(f"{name}  " in said for name in NAMES[1:]) and "barrier" not in said
    constant = re.search(r"miou pts of always (.*), the best constant", said)
    assert constant is not None and constant[1] in NAMES[1:]


def test_archives_hold_names_and_colours_and_the_viewer_shows_them(work_dir: Path, tmp_path: Path) -> None:
    model = TPVFormer.from_pretrained(work_dir, device="cpu")
    assert list(model.names.values()) == NAMES
    rig = write_rig(tmp_path, THREE, (40,), labelled=False)
    words = ["--rig", str(rig), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", "--ckpt-path", str(work_dir), *words]) == 0
    path = tmp_path / "out/frame0.npz"
    stored = frame_prediction(load_arrays(path), path)
    kinds = shown(stored.class_names, stored.frame, stored.classes)
    assert kinds.classes == model.config.data.label_classes and kinds.free == -1
    assert kinds.drawn == (1, 2, 3, 4, 5)
    assert palette_bgr(kinds.classes)[1].tolist() == [0x10, 0x20, 0xFF]
    assert main(["view", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert "two wheels" in (tmp_path / "page.html").read_text()


def test_the_picture_s_legend_has_their_colours(work_dir: Path, own_file: Path, config: Config, tmp_path: Path) -> None:
    words = ["--ckpt-path", str(work_dir), "--index", "0", "--device", "cpu", "--out", str(tmp_path / "frame.png")]
    assert main(["picture", "--py-config", str(own_file), *words]) == 0
    picture = cv2.imread(str(tmp_path / "frame.png"))
    panel = picture[:, -300:].reshape(-1, 3)
    colors: List[np.ndarray] = [palette_bgr(config.data.label_classes)[i] for i in range(1, 6)]
    swatches = [int((panel == color).all(1).sum()) for color in colors]
    dimmed = sum(count < 300 for count in swatches)  # of classes that are neither predicted nor true in this frame
    assert dimmed <= 1 and max(swatches) > 500


def test_weights_and_their_card_need_no_file(work_dir: Path, tmp_path: Path) -> None:
    model = TPVFormer.from_pretrained(work_dir, device="cpu")
    model.save_pretrained(tmp_path / "saved")
    again = TPVFormer.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.config.data.classes == model.config.data.classes and again.names == model.names
    assert "other, person, two wheels" in (tmp_path / "saved/README.md").read_text()


def test_what_is_defined_for_nuscenes_alone_is_refused(config: Config) -> None:
    with pytest.raises(ConfigError, match="data.label_map is six; a submission needs nuScenes' classes"):
        evaluation_set(config.data, "val")


def test_damaged_classes_in_an_archive_are_refused(work_dir: Path, tmp_path: Path) -> None:
    rig = write_rig(tmp_path, THREE, (40,), labelled=False)
    result = TPVFormer.from_pretrained(work_dir, device="cpu").predict(rig=str(rig))[0]
    result.save(tmp_path / "a.npz")
    good = load_arrays(tmp_path / "a.npz")
    for name, value in (
        ("class_colors", np.zeros((5, 3), np.uint8)),
        ("class_evaluated", np.zeros(6, np.uint8)),
        ("class_empty", np.array(7)),
    ):
        with pytest.raises(DataError, match="class_"):
            frame_prediction({**good, name: value}, tmp_path / "a.npz")
