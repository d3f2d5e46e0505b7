"""Exported models say what the model says: ONNX, torch.export, AOTInductor, and the static operations in them.

TPVFORMER_SLOW=1 compiles packages of AOTInductor too: a minute and more of a core's time each, also for the tiniest.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import cv2
import numpy as np
import pytest
import torch
from docs_tools import FENCE, text_of
from engine_tools import MODEL, ROOT, tiny_config, write_config
from rig_tools import camera

from tpvformer import TPVFormer, decode_boxes, ops
from tpvformer.cli import main
from tpvformer.config import Config, DataConfig, DetectionConfig, HistoryConfig, ModelConfig
from tpvformer.data.voxels.voxelize import grid_index
from tpvformer.engine.forward import point_places
from tpvformer.errors import ConfigError
from tpvformer.export import WRITERS, aoti, export_aoti, export_onnx, export_program, format_of, traced
from tpvformer.export.onnx import OPSET
from tpvformer.export.traced import Rig
from tpvformer.labels import class_names
from tpvformer.model import detection_history
from tpvformer.model.history import remember

pytestmark = pytest.mark.usefixtures("quick")

DOCUMENT = ROOT / "docs" / "export.md"
SIZE = (77, 45)
ROW = (camera("CAM_FRONT", 0), camera("CAM_FRONT_RIGHT", 50))
HEAD = DetectionConfig(scale=2, channels=8, group_channels=4, blocks=1)
# the less, the sooner it is traced
HW = dataclasses.replace(MODEL, view_attn="hw", position_dims=(8, 8), num_levels=3, detection=HEAD)
BEV = dataclasses.replace(MODEL, planes=("hw",), view_attn="hw", position_dims=(8, 8), layers=("self_cross", "self"))
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
RELEASE = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
exporting = pytest.mark.skipif(RELEASE < (2, 6), reason="exporting needs PyTorch 2.6")
running = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in PACKAGES), reason="needs pip install 'tpvformer[onnx]'"
)
compiling = pytest.mark.skipif(
    os.environ.get("TPVFORMER_SLOW") != "1" or shutil.which("g++") is None, reason="TPVFORMER_SLOW=1 and g++ compile"
)
FAMILIES = pytest.mark.parametrize("model", [MODEL, HW], ids=["cross_view", "hw"])


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """All forms of one model are written from one program: tracing takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced, "trace", functools.lru_cache(maxsize=None)(traced.trace))
        yield


@functools.lru_cache(maxsize=None)
def lively(model: ModelConfig) -> TPVFormer:
    """None of its weights is left at a constant."""
    config = tiny_config(DataConfig())
    loss = dataclasses.replace(config.loss, detection=0.0 if model.detection is None else 1.0)
    made = TPVFormer(dataclasses.replace(config, model=model, loss=loss), device="cpu")
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


def plain(made: TPVFormer, given: Tuple[np.ndarray, ...]) -> Tuple[np.ndarray, ...]:
    """What the model says, by the oracle's operations."""
    with torch.no_grad():
        outputs = Rig(made.network, made.config)(*(torch.from_numpy(array) for array in given))
    return tuple(output.numpy() for output in outputs)


def test_what_is_exported_is_what_predict_says() -> None:
    """Pixels, padding, calibration and points go the same way as in ``TPVFormer.predict``."""
    made, (images, lidar2img, points) = lively(MODEL), inputs(60)
    voxels, point_logits = plain(made, (images, lidar2img, points))
    result = made.predict(list(images), list(lidar2img), points)
    assert np.abs(torch.from_numpy(voxels).softmax(0).numpy() - result.voxels.probabilities).max() < 1e-5
    assert np.array_equal(point_logits.argmax(0), result.point_labels) and voxels.std() > 0.1
    whole = dataclasses.replace(made.config.data, occupancy_root="x")
    places = Rig(made.network, Config("c", MODEL, whole))._places(torch.from_numpy(points))
    assert np.array_equal(places.numpy(), grid_index(points, MODEL.grid.shape, MODEL.grid.pc_range))


def test_even_cells_are_the_same_everywhere() -> None:
    """data.even_cells: cells of range / n, decoded in their middle, in the data set, in predictions and in exports."""
    odd, (images, lidar2img, points) = lively(MODEL), inputs(400)
    config = dataclasses.replace(odd.config, data=dataclasses.replace(odd.config.data, even_cells=True))
    made = TPVFormer(config, device="cpu")
    made.network.load_state_dict(odd.network.state_dict())
    cells = grid_index(points, MODEL.grid.shape, MODEL.grid.pc_range, divide_by_n=True)
    assert (cells != grid_index(points, MODEL.grid.shape, MODEL.grid.pc_range)).any()
    places = Rig(made.network, config)._places(torch.from_numpy(points))
    assert np.array_equal(places.numpy(), cells + np.float32(0.5))
    assert np.array_equal(point_places(torch.from_numpy(cells), config).numpy(), places.numpy())
    _, point_logits = plain(made, (images, lidar2img, points))
    result = made.predict(list(images), list(lidar2img), points)
    assert np.array_equal(point_logits.argmax(0), result.point_labels)
    assert np.array_equal(result.label(points), result.point_labels)
    assert (odd.predict(list(images), list(lidar2img), points).point_labels != result.point_labels).any()


@pytest.mark.parametrize("model", [MODEL, HW, BEV], ids=["cross_view", "hw", "bev"])
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


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: Any) -> Callable[[ModelConfig], Path]:
    """Exports a model once."""

    @functools.lru_cache(maxsize=None)
    def write(model: ModelConfig) -> Path:
        made, file = lively(model), tmp_path_factory.mktemp("onnx") / "m.onnx"
        made.network.image_autocast = torch.bfloat16  # what it answers in itself does not matter
        export_onnx(made.network, made.config, file, 2, SIZE)
        assert made.network.image_autocast == torch.bfloat16
        made.network.image_autocast = None
        return file

    return write


@exporting
@running
@FAMILIES
def test_onnxruntime_says_the_same(model: ModelConfig, onnx_file: Callable[[ModelConfig], Path]) -> None:
    """Within 1e-4 on the CPU, for any number of points, by operators of the standard alone."""
    import onnx  # ty: ignore[import-not-found]
    import onnxruntime  # ty: ignore[import-not-found]

    made, file = lively(model), onnx_file(model)
    graph = onnx.load(str(file))
    onnx.checker.check_model(graph)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", OPSET)]
    assert (graph.ir_version, OPSET) == (8, 18)  # as published together: runtimes of that opset read the file
    assert not graph.functions and {node.domain for node in graph.graph.node} == {""}
    facts = {entry.key: json.loads(entry.value) for entry in graph.metadata_props if entry.key != "producer"}
    assert facts["class_names"][4] == "car" and facts["frame"] == "lidar" and facts["pc_range"][0] == -51.2
    assert facts["cameras"] == ["CAM_FRONT", "CAM_FRONT_RIGHT"]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for number in (1, 33):
        images, lidar2img, points = given = inputs(number, seed=number)
        out = session.run(None, {"images": images, "lidar2img": lidar2img, "points": points})
        wanted = plain(made, given)
        assert [output.name for output in session.get_outputs()] == list(traced.output_names(made.config))
        assert len(out) == len(wanted) == (2 if model.detection is None else 4)
        for ours, expected in zip(out, wanted):
            assert ours.shape == expected.shape and np.abs(ours - expected).max() < 1e-4
    if model.detection is not None:
        assert facts["box_class_names"][0] == "car"
        found, expected = (decode_boxes(*both[2:], facts["pc_range"]) for both in (out, wanted))
        assert len(found) == len(expected) > 0 and np.abs(found.centres - expected.centres).max() < 1e-2


@exporting
@running
def test_a_history_goes_in_and_comes_out(onnx_file: Callable[[ModelConfig], Path], monkeypatch: Any) -> None:
    """Five frames of a drive in onnxruntime, each with the planes of the one before: the model's stream."""
    import onnxruntime  # ty: ignore[import-not-found]

    monkeypatch.setattr(detection_history, "REACH", 2)  # of 7: each displacement is four nodes for onnx's optimizer
    model = dataclasses.replace(MODEL, history=HistoryConfig(), num_levels=3, detection=HEAD)
    made, file = lively(model), onnx_file(model)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == list(traced.input_names(made.config))
    queries, step = model.grid.num_queries, np.eye(4, dtype=np.float32)[None]
    step[0, 1, 3] = 1.5
    planes, seconds, history = np.zeros((1, queries, model.dim), np.float32), np.full(1, np.inf, np.float32), None
    for number in range(5):
        images, lidar2img, points = inputs(20, seed=number)
        fed = {"images": images, "lidar2img": lidar2img, "points": points, "past_planes": planes, "to_past": step}
        out = dict(zip(traced.output_names(made.config), session.run(None, {**fed, "seconds": seconds})))
        given = [torch.from_numpy(array) for array in (images, lidar2img, points)]
        if history is not None:
            history = history.moved(torch.from_numpy(step), torch.tensor([0.5]))
        with torch.no_grad():
            rig = Rig(made.network, made.config)
            pasts = () if history is None else tuple(part[0] for part in history)
            wanted = dict(zip(traced.output_names(made.config), rig(*given, *pasts)))
        for name, expected in wanted.items():  # with such weights velocities are hundreds of m/s
            largest = max(1.0, float(expected.abs().max()))
            assert np.abs(out[name] - expected.numpy()).max() < 1e-4 * largest, (number, name)
        history = remember(wanted["planes"][None], None, 1)
        planes, seconds = out["planes"][None], np.full(1, 0.5, np.float32)
    assert np.abs(out["voxel_logits"] - plain(made, (images, lidar2img, points))[0]).max() > 1e-3


@exporting
@running
def test_the_documented_example(onnx_file: Callable[[ModelConfig], Path], tmp_path: Path, monkeypatch: Any) -> None:
    """docs/export.md's Python runs as it stands, and says what the model says."""
    made, (images, lidar2img, points) = lively(MODEL), inputs(25)
    shutil.copy(onnx_file(MODEL), tmp_path / "demo.onnx")
    for one, image in zip(ROW, images):
        assert cv2.imwrite(str(tmp_path / f"{one['name']}.jpg"), image[..., ::-1])
    np.save(tmp_path / "lidar2img.npy", lidar2img)
    np.save(tmp_path / "points.npy", points)
    read = np.stack([cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in sorted(tmp_path.glob("*.jpg"))])
    python = [body for language, body in FENCE.findall(text_of(DOCUMENT)) if language == "python"]
    (example,) = (body for body in python if "import onnxruntime" in body)
    monkeypatch.chdir(tmp_path)
    said: List[str] = []
    told = {"print": lambda *words: said.append(" ".join(map(str, words)))}
    exec(example, told)
    voxels, point_logits = plain(made, (read, lidar2img, points))
    for name, expected in (("voxel_logits", voxels), ("point_logits", point_logits)):
        assert np.abs(told[name] - expected).max() < 1e-4
    counts = np.bincount(point_logits.argmax(0), minlength=17)
    expected = [f"{name}: {n} points" for name, n in zip(class_names("nuscenes"), counts) if n]
    assert said == expected and len(said) > 1


@exporting
@compiling
@FAMILIES
def test_a_package_of_aotinductor(model: ModelConfig, tmp_path: Path) -> None:
    """Within 1e-4, for any number of points; and nothing but the package is left beside it."""
    made, file = lively(model), tmp_path / "m.pt2"
    assert f"{file}: 2 images of 77x45, AOTInductor, " in export_aoti(made.network, made.config, file, 2, SIZE)
    program = torch._inductor.aoti_load_package(str(file))
    for number in (1, 33):
        given = inputs(number, seed=number)
        for ours, expected in zip(program(*(torch.from_numpy(array) for array in given)), plain(made, given)):
            assert ours.shape == expected.shape and np.abs(ours.numpy() - expected).max() < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]


@exporting
def test_inductor_is_left_as_it_was() -> None:
    from torch._inductor import decomposition

    name = torch.ops.aten.grid_sampler_2d.default
    before = [decomposition.decompositions.get(name), decomposition.select_decomp_table().get(name)]
    with aoti._sampling_whole():
        assert name not in decomposition.decompositions and name not in decomposition.select_decomp_table()
    assert before == [decomposition.decompositions.get(name), decomposition.select_decomp_table().get(name)]


@exporting
def test_without_a_compiler_nothing_is_traced(tmp_path: Path, monkeypatch: Any) -> None:
    from torch._inductor import config

    made = lively(MODEL)
    monkeypatch.setattr(traced, "trace", None)
    with (
        config.patch({"cpp.cxx": (str(tmp_path / "nothing"),)}),
        pytest.raises(ConfigError, match=r"^--aoti needs a C\+\+ compiler; install g\+\+ or name another in CXX$"),
    ):
        export_aoti(made.network, made.config, tmp_path / "m.pt2", 2, SIZE)


@exporting
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_the_compiler_says_is_passed_on(wrapped: bool, tmp_path: Path, monkeypatch: Any) -> None:
    from torch._inductor import config
    from torch._inductor.exc import CppCompileError

    error: RuntimeError = CppCompileError(
        ["g++"], "In file x.cpp:\nx.cpp:1: fatal error: algorithm: No such file\nended"
    )
    if wrapped:
        inner, error = error, RuntimeError("as newer PyTorch wraps it")
        monkeypatch.setattr(error, "inner_exception", inner, raising=False)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    made = lively(MODEL)
    monkeypatch.setattr(traced, "trace", lambda *_: None)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with (
        config.patch({"cpp.cxx": ("true",)}),
        pytest.raises(ConfigError, match="true cannot compile the model: x.cpp:1: fatal error: algorithm: No such"),
    ):
        export_aoti(made.network, made.config, tmp_path / "m.pt2", 2, SIZE)
    assert not list(tmp_path.iterdir())


@exporting
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
        (
            ["--aoti", str(tmp_path / "m.so")],
            "--aoti is " + str(tmp_path / "m.so") + "; expected a file that ends with .pt2",
        ),
        (["--onnx", str(tmp_path / "m.onnx")], "--onnx needs onnx; pip install 'tpvformer[onnx]'"),
        (["--out", str(tmp_path / "m.onnx")], f"weights alone, .pth or .safetensors; give --onnx {tmp_path}/m.onnx"),
    ):
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1
    with pytest.raises(SystemExit):
        main(words)


@exporting
@pytest.mark.parametrize("size", [(9600000, 640000), (0, 45), "77x45", 640, (77.0, 45)])
def test_a_size_that_is_none_is_refused(size: Any, tmp_path: Path) -> None:
    made = lively(MODEL)
    with pytest.raises(ConfigError, match="expected width and height of an image"):
        made.export(tmp_path / "m.onnx", 2, size)
    assert not list(tmp_path.iterdir())


def test_each_format_is_chosen_in_one_place(tmp_path: Path) -> None:
    """``TPVFormer.export`` by the suffix, ``tpvformer export`` by the option; each has one writer."""
    for suffix, form in ((".onnx", "onnx"), (".pt2", "pt2"), (".pth", "weights"), (".safetensors", "weights")):
        assert format_of(tmp_path / f"m{suffix}") == form and form in WRITERS
    with pytest.raises(ConfigError, match=r"m.ts; expected a name that ends in .onnx, .pt2, .pth or .safetensors"):
        lively(MODEL).export(tmp_path / "m.ts")
    assert not list(tmp_path.iterdir())


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
