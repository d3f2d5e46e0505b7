"""The model of three lines as people use models elsewhere: to, eval, names, train, val, export; what can be opened."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from api_tools import CONFIG, assert_same, images_of, lively
from engine_tools import POINTS, tiny_config, write_config
from rig_tools import THREE, write_rig
from tiny_nuscenes import write_tiny

import tpvformer
from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.compat import CheckpointError, load_config
from tpvformer.config import Config
from tpvformer.engine.evaluation.evaluate import Evaluation
from tpvformer.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture()
def config(tmp_path: Path) -> Config:
    return tiny_config(write_tiny(tmp_path / "set", POINTS))


def same_weights(a: TPVFormer, b: TPVFormer) -> bool:
    ours, theirs = a.network.state_dict(), b.network.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_can_be_opened_is_listed() -> None:
    names = tpvformer.list_models()
    assert {"demo", "tpv_lidarseg_dim64", "mini"} <= set(names) and names == sorted(names)
    for name in names:
        assert load_config(name).name == name
    assert tpvformer.list_models(pretrained=True) == ["demo", "demo_dense"]
    assert TPVFormer.from_pretrained("demo", device="cpu").config.name == "demo"
    assert "list_models" in tpvformer.__all__


@pytest.mark.parametrize("command", [False, True])
def test_a_name_without_weights_says_what_there_is(command: bool, capsys: pytest.CaptureFixture) -> None:
    for name, text in (
        ("tpv_lidarseg", "is the name of a configuration, of which this package has no weights; docs/configs.md says"),
        ("tpv_lidarseg.py", "is the name of a configuration"),
        ("nonsense", "is neither a file nor a folder here, nor the name of weights in this package (demo, demo_dense)"),
    ):
        if command:
            assert main(["predict", "--ckpt-path", name, "--rig", "rig.json"]) == 2
            said = capsys.readouterr().err
        else:
            with pytest.raises(CheckpointError) as caught:
                TPVFormer.from_pretrained(name, device="cpu")
            said = str(caught.value)
        assert f"{name}: {text}" in said and said.count("\n") <= 1


def test_names_and_modes(model: TPVFormer, tmp_path: Path) -> None:
    rig = write_rig(tmp_path, THREE)
    expected = model.predict(images_of(rig), rig)
    assert model.names[4] == "car" == expected.names[4] and len(model.names) == 17
    model.network.train()
    assert model.eval() is model and not model.network.training
    assert model.to("cpu") is model.to(torch.device("cpu")) is model and model.device == torch.device("cpu")
    assert_same(model(images_of(rig), rig), expected)
    with pytest.raises(ConfigError, match="device"):
        model.to("toaster")
    assert model.device == torch.device("cpu")


def test_moving_chooses_the_precision_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``from_pretrained(device=...)`` would have."""
    auto = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, precision="auto"))
    moved = TPVFormer(auto, device="cpu")
    monkeypatch.setattr("tpvformer.engine.device.precision.fast_bf16", lambda device: (True, "it is said to be"))
    assert moved.to("cpu").precision.name == "bf16" and moved.network.image_autocast == torch.bfloat16
    monkeypatch.setattr("tpvformer.engine.device.precision.fast_bf16", lambda device: (False, "it is not"))
    assert moved.to("cpu").precision.name == "fp32" and moved.network.image_autocast is None


def test_every_repr_fits_a_line(model: TPVFormer, tmp_path: Path, config: Config) -> None:
    rig = write_rig(tmp_path, THREE)
    result = model.predict(images_of(rig), rig)
    assert repr(result.voxels) == (
        "Voxels(6x5x4, 17 classes, lidar frame, metres: x -51.2 to 51.2, y -51.2 to 51.2, z -5 to 3)"
    )
    batch = model([images_of(rig)] * 9, rig)
    assert repr(batch).startswith("Results(9 frames: Result(6x5x4 voxels, ") and repr(batch).endswith(", ...)")
    score = TPVFormer(config, device="cpu").val()
    assert f"over {len(POINTS)} samples)" in repr(score) and "miou_points" in repr(score)
    assert all(len(repr(one)) < 250 and "\n" not in repr(one) for one in (result.voxels, batch, score, model))


def test_train_is_the_command(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights bit by bit, the same files, its page; afterwards the model has the best of them."""
    file = write_config(tmp_path / "tiny.py", config)
    words = ["--py-config", str(file), "--device", "cpu", "--work-dir"]
    assert main(["train", *words, str(tmp_path / "command"), "--deterministic"]) == 0
    model = TPVFormer(config, device="cpu")
    outcome = model.train(file, tmp_path / "python", deterministic=True)
    torch.use_deterministic_algorithms(False)
    stored = json.loads((tmp_path / "python" / "summary.json").read_text())
    assert outcome["config"] == "tiny" == stored["config"] and (tmp_path / "python" / "report.html").is_file()
    theirs = TPVFormer.from_pretrained(tmp_path / "command", device="cpu")
    assert same_weights(model, theirs) and not same_weights(TPVFormer(config, device="cpu"), theirs)
    assert not model.network.training and model.config == config
    start = json.loads((tmp_path / "python" / "starts.jsonl").read_text().splitlines()[0])
    assert start["command"].startswith("TPVFormer.train('tiny', ")
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "--ckpt-path", str(tmp_path / "command"), "--device", "cpu", "--json", "s.json"]) == 0
    score, printed = model.val(), json.loads(Path("s.json").read_text())
    assert isinstance(score, Evaluation) and score.loss == printed["loss"] and printed["samples"] == score.samples
    assert {name: metric.value for name, metric in score.metrics.items()} == {
        name: metric["value"] for name, metric in printed["metrics"].items()
    }


def test_training_starts_from_the_weights_that_were_opened(config: Config, tmp_path: Path) -> None:
    """At a learning rate of nothing they stay what they are."""
    still = dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, lr=1e-30, warmup_lr=1e-30, min_lr=1e-30, weight_decay=0.0),
        train=dataclasses.replace(config.train, epochs=1),
        model=dataclasses.replace(
            config.model, backbone=dataclasses.replace(config.model.backbone, norm="frozen", bn3_init=1.0)
        ),
    )
    opened = lively(still)
    opened.save_pretrained(tmp_path / "saved")
    model = TPVFormer.from_pretrained(tmp_path / "saved", device="cpu")
    model.train(still, tmp_path / "run")
    assert same_weights(model, opened)
    fresh = TPVFormer(still, device="cpu")
    fresh.train(still, tmp_path / "fresh")
    assert not same_weights(fresh, opened)


def test_the_mode_of_a_module_is_another_thing(model: TPVFormer) -> None:
    for given in ((), (True,), (False,)):
        with pytest.raises(ConfigError, match=r"needs a configuration, .*model\.network\.train\(\)"):
            model.train(*given)
    assert not model.network.training


def test_val_scores_the_weights_in_memory(config: Config, tmp_path: Path) -> None:
    model = TPVFormer(config, device="cpu")
    before = model.val()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter += 0.3
    assert model.val(config).loss != before.loss and not model.network.training
    with pytest.raises(ConfigError, match="describes another model than this one, tiny"):
        model.val("demo")


def test_export_by_suffix(tmp_path: Path) -> None:
    model = lively(CONFIG)
    assert model.export(tmp_path / "w.pth") == tmp_path / "w.pth"
    back = TPVFormer.from_pretrained(tmp_path / "w.pth", config=CONFIG, device="cpu")
    assert same_weights(back, model)
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.onnx, \.pt2, \.pth or \.safetensors"):
        model.export(tmp_path / "w.engine")
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        pytest.skip("programs need PyTorch 2.6")
    out = model.export(tmp_path / "m.pt2", cameras=2, size=(64, 32))
    program = torch.export.load(str(out)).module()
    images, matrices = torch.zeros(2, 32, 64, 3, dtype=torch.uint8), torch.eye(4).repeat(2, 1, 1)
    voxels, points = program(images, matrices, torch.zeros(5, 3))
    assert voxels.shape == (17, 6, 5, 4) and points.shape == (17, 5) and np.isfinite(points.detach().numpy()).all()
