"""nuscenes-devkit's own validator takes our submissions, and its scores are ours.

The devkit's interpreter is named as test_against_devkit.py says.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import programs
import pytest
import torch
from engine_tools import tiny_config, tiny_model, write_config
from needs import PYTHON, has_devkit

from tpvformer.cli import main
from tpvformer.config import Config, DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import collate
from tpvformer.data.nuscenes.splits import official
from tpvformer.data.street.write import write_dataset
from tpvformer.engine.forward import predict
from tpvformer.labels import CLASS_NAMES

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.skipif(
        not has_devkit(), reason="no nuscenes-devkit: TPVFORMER_DEVKIT_PYTHON names no interpreter with it"
    ),
]
TRUCK, TRAFFIC_CONE, CAR = 23, 12, 17  # raw classes


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("street") / "set"
    write_dataset(root, 10, (96, 54), 3, 1, workers=1)
    return root


@pytest.fixture(scope="module")
def weights(street: Path, tmp_path_factory, quick) -> Path:
    """A model that says many things, but never noise."""
    config = config_of(street)
    data = FrameDataset(config.data, config.model.grid, "val", 0)
    model = tiny_model().eval()
    with torch.no_grad():
        logits = predict(model, collate([data[0]], 0), config).point_logits
        model.aggregator.classifier.bias -= logits.mean((0, 2))
        model.aggregator.classifier.bias[0] -= 1e6
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def config_of(root: Path, **data: str) -> Config:
    infos = str(root / "nuscenes_infos_val.pkl")
    cfg = DataConfig(root=str(root), version="v1.0-mini", train_infos=infos, val_infos=infos, workers=0)
    return tiny_config(dataclasses.replace(cfg, **data))  # type: ignore[arg-type]


def evaluated(config: Config, weights: Path, folder: Path, *options: str) -> Path:
    """The zip that ``eval`` writes."""
    file, out = write_config(folder / "tiny.py", config), folder / "out.zip"
    command = ["eval", "--py-config", str(file), "--ckpt-path", str(weights), "--device", "cpu"]
    assert main([*command, "--submission", str(out), *options]) == 0
    return out


def scored(root: Path, weights: Path, folder: Path) -> Tuple[Path, Dict[str, Any]]:
    """The same with our own scores."""
    out = evaluated(config_of(root), weights, folder, "--json", str(folder / "scores.json"))
    return out, json.loads((folder / "scores.json").read_text())["metrics"]["miou_points"]


def devkit(root: Path, version: str, name: str, path: Path) -> programs.Done:
    command = [
        PYTHON,
        str(Path(__file__).parents[2] / "support" / "submission_devkit_check.py"),
        str(root),
        version,
        name,
        str(path),
    ]
    return programs.run(command)


def judged(root: Path, version: str, name: str, path: Path) -> Dict[str, Any]:
    done = devkit(root, version, name, path)
    assert done.returncode == 0, done.stderr
    found: Dict[str, Any] = json.loads(done.stdout)
    assert found["validator"].endswith("successfully validated!")
    return found


def test_the_devkit_scores_as_we_do(street: Path, weights: Path, tmp_path: Path) -> None:
    out, own = scored(street, weights, tmp_path)
    found = judged(street, "v1.0-mini", "mini_val", out)
    assert sum(value > 0 for value in found["iou"].values()) >= 4, "a score of nothing would prove nothing"
    assert found["miou"] == pytest.approx(own["value"] / 100, abs=1e-9)
    for name in CLASS_NAMES[1:]:
        assert found["iou"][name] == pytest.approx(own["iou"][name] / 100, abs=1e-9)


def test_the_devkit_counts_an_absent_class_that_was_predicted(street: Path, weights: Path, tmp_path: Path) -> None:
    """It counts 0 there and we leave the class out: the sums agree, the number of classes does not."""
    root = shutil.copytree(street, tmp_path / "set")
    for path in (root / "lidarseg" / "v1.0-mini").glob("*.bin"):
        raw = np.fromfile(path, np.uint8)
        raw[(raw == TRUCK) | (raw == TRAFFIC_CONE)] = CAR
        raw.tofile(path)
    out, own = scored(root, weights, tmp_path)
    found = judged(root, "v1.0-mini", "mini_val", out)
    with zipfile.ZipFile(out) as file:
        said = set(b"".join(file.read(name) for name in file.namelist() if name.endswith(".bin")))
    counted = 14 + len({CLASS_NAMES.index("truck"), CLASS_NAMES.index("traffic_cone")} & said)
    assert counted > 14
    assert own["iou"]["truck"] is None
    assert found["miou"] * counted == pytest.approx(own["value"] / 100 * 14, abs=1e-9)


def test_the_devkit_takes_the_test_set(street: Path, weights: Path, tmp_path: Path) -> None:
    root = shutil.copytree(street, tmp_path / "set")
    shutil.rmtree(root / "lidarseg")
    tables = (root / "v1.0-mini").rename(root / "v1.0-test")
    for name in ("lidarseg", "splits"):
        (tables / f"{name}.json").unlink()
    scenes = json.loads((tables / "scene.json").read_text())
    names = official("test")
    scenes = [{**row, "name": name} for row, name in zip(scenes, names)]
    # the devkit wants all scenes of the split; these hold no samples
    scenes += [{**scenes[0], "token": f"empty{i}", "name": name} for i, name in enumerate(names[len(scenes) :])]
    infos = root / "nuscenes_infos_test.safetensors"
    (tables / "scene.json").write_text(json.dumps(scenes[:10]))
    assert main(["data", "infos", "--root", str(root), "--version", "v1.0-test", "--out", str(root)]) == 0
    config = config_of(root, version="v1.0-trainval", test_infos=str(infos))
    out = evaluated(config, weights, tmp_path, "--split", "test")
    (tables / "scene.json").write_text(json.dumps(scenes))
    (tables / "lidarseg.json").write_text("[]")  # these two are what the devkit's class mapper looks for
    (root / "lidarseg" / "v1.0-test").mkdir(parents=True)
    judged(root, "v1.0-test", "test", out)
    with zipfile.ZipFile(out) as whole, zipfile.ZipFile(tmp_path / "short.zip", "w") as short:
        for name in whole.namelist():
            short.writestr(name, whole.read(name)[: 100 if name.endswith(".bin") else None])
    assert "but there are only" in devkit(root, "v1.0-test", "test", tmp_path / "short.zip").stderr
