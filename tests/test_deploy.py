"""Exported models say what the model says: ONNX where onnxruntime is installed, torch.export, static operations."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any, Tuple

import numpy as np
import pytest
import torch
from engine_tools import MODEL, tiny_config, write_config
from rig_tools import camera

from tpvformer import TPVFormer, ops
from tpvformer.cli import main
from tpvformer.config import Config, DataConfig, ModelConfig
from tpvformer.data.voxelize import grid_index
from tpvformer.deploy import OPSET, Rig, export_onnx, export_program

pytestmark = pytest.mark.usefixtures("quick")

SIZE = (77, 45)
ROW = (camera("CAM_FRONT", 0), camera("CAM_FRONT_RIGHT", 50))
HW = dataclasses.replace(MODEL, view_attn="hw", position_dims=(8, 8), layers=("self_cross", "self"))
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# a quarter of a minute each, most of it PyTorch's exporter loading: where exporting is what an environment is for
exporting = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in PACKAGES), reason="needs pip install 'tpvformer[onnx]'"
)


def lively(model: ModelConfig) -> TPVFormer:
    """None of its weights is left at a constant."""
    made = TPVFormer(dataclasses.replace(tiny_config(DataConfig()), model=model), device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


def inputs(points: int, seed: int = 0) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.RandomState(seed)
    images = rng.randint(0, 256, (len(ROW), SIZE[1], SIZE[0], 3)).astype(np.uint8)
    matrices = []
    for one in ROW:
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = one["intrinsics"]
        matrices.append(intrinsics @ np.linalg.inv(one["camera2lidar"]))
    return images, np.stack(matrices).astype(np.float32), rng.uniform(-60, 60, (points, 3)).astype(np.float32)


def plain(made: TPVFormer, given: Tuple[np.ndarray, ...]) -> Tuple[np.ndarray, np.ndarray]:
    """What the model says, by the oracle's operations."""
    with torch.no_grad():
        voxels, points = Rig(made.network, made.config)(*(torch.from_numpy(array) for array in given))
    return voxels.numpy(), points.numpy()


def test_what_is_exported_is_what_predict_says() -> None:
    """Pixels, padding, calibration and points go the same way as in ``TPVFormer.predict``."""
    made, (images, lidar2img, points) = lively(MODEL), inputs(60)
    voxels, point_logits = plain(made, (images, lidar2img, points))
    result = made.predict(list(images), list(lidar2img), points)
    assert np.abs(torch.from_numpy(voxels).softmax(0).numpy() - result.voxels.probabilities).max() < 1e-5
    assert np.array_equal(point_logits.argmax(0), result.point_labels) and voxels.std() > 0.1
    whole = dataclasses.replace(made.config.data, occupancy_root="x")
    places = Rig(made.network, Config("c", MODEL, whole))._places(torch.from_numpy(points))
    assert np.array_equal(places.numpy(), grid_index(points, MODEL.grid.voxels, MODEL.grid.pc_range))


@pytest.mark.parametrize("model", [MODEL, HW], ids=["cross_view", "hw"])
def test_static_operations_are_the_oracle_s(model: ModelConfig) -> None:
    made, given = lively(model), inputs(20)
    expected = plain(made, given)
    with ops.static_shapes():
        static = plain(made, given)
    for ours, oracle in zip(static, expected):
        assert np.abs(ours - oracle).max() < 1e-5


@exporting
def test_a_program_of_torch_export(tmp_path: Path, capsys: Any) -> None:
    made, file = lively(MODEL), tmp_path / "folder" / "m.pt2"
    assert f"{file}: 2 images of 77x45, torch.export, " in export_program(made.network, made.config, file, 2, SIZE)
    program = torch.export.load(str(file)).module()
    for number in (1, 33):
        given = inputs(number, seed=number)
        with torch.no_grad():
            out = program(*(torch.from_numpy(array) for array in given))
        for ours, expected in zip(out, plain(made, given)):
            assert ours.shape == expected.shape and np.abs(ours.numpy() - expected).max() < 1e-5
    assert [path.name for path in file.parent.iterdir()] == ["m.pt2"]


@exporting
@pytest.mark.parametrize("model", [MODEL, HW], ids=["cross_view", "hw"])
def test_onnxruntime_says_the_same(model: ModelConfig, tmp_path: Path) -> None:
    """Within 1e-4 on the CPU, for any number of points, by operators of the standard alone."""
    import onnx  # ty: ignore[import-not-found]
    import onnxruntime  # ty: ignore[import-not-found]

    made, file = lively(model), tmp_path / "m.onnx"
    export_onnx(made.network, made.config, file, 2, SIZE)
    graph = onnx.load(str(file))
    onnx.checker.check_model(graph)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", OPSET)]
    assert not graph.functions and {node.domain for node in graph.graph.node} == {""}
    facts = {entry.key: json.loads(entry.value) for entry in graph.metadata_props if entry.key != "producer"}
    assert facts["class_names"][4] == "car" and facts["frame"] == "lidar" and facts["pc_range"][0] == -51.2
    assert facts["cameras"] == ["CAM_FRONT", "CAM_FRONT_RIGHT"]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for number in (1, 33):
        images, lidar2img, points = given = inputs(number, seed=number)
        out = session.run(None, {"images": images, "lidar2img": lidar2img, "points": points})
        for ours, expected in zip(out, plain(made, given)):
            assert ours.shape == expected.shape and np.abs(ours - expected).max() < 1e-4


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    made = lively(MODEL)
    torch.save(made.network.state_dict(), tmp_path / "w.pth")
    words = ["export", "--py-config", str(write_config(tmp_path / "c.py", made.config))]
    words += ["--ckpt-path", str(tmp_path / "w.pth"), "--size", "77x45"]
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else known(name))
    for more, text in (
        (["--onnx", str(tmp_path / "m.pb")], "expected a file that ends with .onnx"),
        (["--pt2", str(tmp_path / "m.pt2"), "--cameras", "7"], "--cameras is 7; this model has embeddings for 1 to 6"),
        (["--pt2", str(tmp_path / "m.pt2"), "--set", "data.image_scale=0.5"], "data.image_scale is 0.5"),
        (["--onnx", str(tmp_path / "m.onnx")], "--onnx needs onnx; pip install 'tpvformer[onnx]'"),
    ):
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1
    with pytest.raises(SystemExit):
        main(words)


def test_convert_goes_round(tmp_path: Path, capsys: Any) -> None:
    """A folder, the reference's file, and a folder again: the same weights, and the same answers."""
    made = lively(dataclasses.replace(MODEL, image_heads=4))
    first, file, last = made.save_pretrained(tmp_path / "a"), tmp_path / "ref.pth", tmp_path / "b"
    assert main(["convert", str(first), str(file)]) == 0
    assert "tpv_head.level_embeds" in torch.load(file, weights_only=True)
    config = write_config(tmp_path / "c.py", made.config)
    assert main(["convert", str(file), str(last), "--py-config", str(config)]) == 0
    assert "tensors loaded" in capsys.readouterr().out
    opened = TPVFormer.from_pretrained(last, device="cpu").network.state_dict()
    assert all(torch.equal(opened[name], value) for name, value in made.network.state_dict().items())
    assert main(["convert", str(tmp_path / "none"), str(last)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
