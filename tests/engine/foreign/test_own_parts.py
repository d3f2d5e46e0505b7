"""The parts of ``--own-model`` without a checkout: the adapter, weights, configurations, refusals."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional

import own_tools as own
import pytest
import torch
from engine_tools import write_config
from torch import Tensor, nn

from tpvformer import cli, upstream
from tpvformer.compat import checkout
from tpvformer.compat.checkpoints import load_content
from tpvformer.compat.own_model import OwnSource, asked, hinted, load_own
from tpvformer.config import Config, GridConfig, ModelConfig, OptimConfig
from tpvformer.engine.checkpoint.resume import ResumePoint, refuse_mixed
from tpvformer.engine.checkpoint.schema import check_content
from tpvformer.engine.device.preflight import check_order
from tpvformer.engine.faults.explain_crash import explain_crash
from tpvformer.engine.foreign import checkout_model, remarks
from tpvformer.engine.foreign.own_model import OwnModel, load_own_weights
from tpvformer.engine.optim.groups import groups_of
from tpvformer.errors import CheckpointError, ConfigError, RunEnded
from tpvformer.model import TPVFormer
from tpvformer.untrusted.schema import SchemaError

GRID = GridConfig(w=2, h=3, z=4)
SOURCE = OwnSource(Path("checkout"), "config/own.py", {"type": "Theirs"}, False)


class Theirs(nn.Module):
    """Logits that tell the voxel; keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.img_backbone = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 17)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("cells", torch.arange(24.0).view(2, 3, 4))
        self.modes: List[bool] = []
        self.called: Dict[str, Any] = {}
        self.loses = ""

    def train(self, mode: bool = True) -> "Theirs":
        super().train(mode)
        self.img_backbone[1].eval()  # as norm_eval does
        return self

    def forward(self, points: Optional[Tensor] = None, img_metas: Any = None, img: Any = None) -> Any:
        self.called = {"points": points, "img_metas": img_metas, "img": img}
        batch = len(img)
        voxels = self.scale * (self.cells + 100 * torch.arange(17.0).view(17, 1, 1, 1)).expand(batch, -1, -1, -1, -1)
        if self.loses == "a cell":
            voxels = voxels[..., :-1]
        if points is None:
            return voxels
        logits = points.sum(-1)[:, None, :, None, None].expand(-1, 17, -1, 1, 1).clone()
        points.zero_()
        return voxels if self.loses == "points" else (voxels, logits)


@pytest.fixture
def model() -> OwnModel:
    return OwnModel(Theirs(), SOURCE, ModelConfig(grid=GRID))


def inputs(batch: int = 2) -> Dict[str, Any]:
    cameras = torch.arange(batch * 3 * 16.0).view(batch, 3, 4, 4)
    return {"images": torch.zeros(batch, 3, 3, 32, 64), "lidar2img": cameras, "camera_slots": None, "lengths": None}


def test_what_their_forward_is_given(model: OwnModel) -> None:
    points = torch.rand(2, 5, 3)
    kept, given = points.clone(), inputs()
    prediction = model(**given, points=points)
    called = model.called.called
    assert called["img"] is given["images"] and points.equal(kept)
    for sample, meta in enumerate(called["img_metas"]):
        assert [matrix.tolist() for matrix in meta["lidar2img"]] == given["lidar2img"][sample].tolist()
        assert meta["img_shape"] == [(32, 64, 3)] * 3
    assert prediction.voxel_logits.shape == (2, 17, 2, 3, 4)
    assert prediction.point_logits.shape == (2, 17, 5) and prediction.point_logits[:, 3].equal(kept.sum(-1))


def test_chosen_voxels_and_no_points(model: OwnModel) -> None:
    voxels = torch.tensor([[[1, 2, 3], [0, 0, 1]], [[1, 0, 0], [0, 2, 0]]])
    prediction = model(**inputs(), voxels=voxels)
    assert prediction.point_logits is None
    assert prediction.voxel_logits[:, 2].tolist() == [[223.0, 201.0], [212.0, 208.0]]  # 100 k + 12 x + 4 y + z
    prediction = model(**inputs(), points=torch.zeros(2, 0, 3), voxels=voxels[:, :0])
    assert model.called.called["points"] is None
    assert prediction.point_logits.shape == prediction.voxel_logits.shape == (2, 17, 0)


@pytest.mark.parametrize(
    ("loses", "said"),
    [
        ("a cell", r"voxel logits \(2, 17, 2, 3, 3\); expected \(2, 17, 2, 3, 4\)"),
        ("points", r"point logits a NoneType; expected \(2, 17, 5\)"),
    ],
)
def test_logits_of_another_shape(model: OwnModel, loses: str, said: str) -> None:
    model.called.loses = loses
    with pytest.raises(ConfigError, match=f"--own-model: Theirs of checkout returned {said}"):
        model(**inputs(), points=torch.rand(2, 5, 3))


def test_everything_is_theirs_under_their_names(model: OwnModel) -> None:
    theirs = model.called
    assert list(model.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    model.train()
    assert model.training and theirs.training and not theirs.img_backbone[1].training and theirs.head.training
    model.eval()
    assert not theirs.training and not model.training
    model.double()
    assert theirs.scale.dtype == theirs.cells.dtype == theirs.head.weight.dtype == torch.float64
    model.load_state_dict({**theirs.state_dict(), "scale": torch.tensor(3.0)})
    assert float(theirs.scale.detach()) == 3


def test_groups_of_their_parameters(model: OwnModel) -> None:
    first, second = groups_of(model, OptimConfig(lr=1.0, backbone_lr_mult=0.25))
    assert (first["lr"], second["lr"]) == (1.0, 0.25)
    assert [p.shape for p in second["params"]] == [p.shape for p in model.called.img_backbone.parameters()]
    assert len(first["params"]) == 3


def test_weights_of_their_own_loop(model: OwnModel, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    state = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, file)
    (line,) = load_own_weights(model, file, whole=True)
    assert line.endswith(f"{len(state)} tensors loaded")
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    part = {"head.weight": torch.zeros(17, 2), "head.bias": torch.zeros(3), "neck.weight": torch.zeros(1)}
    torch.save(part, file)
    lines = load_own_weights(model, file, whole=False)
    assert "1 tensors loaded" in lines[0] and "1 ignored, the model has none of that name: neck.weight" in lines[1]
    assert "1 dropped, of another shape: head.bias" in lines[2] and "missing, left as they were" in lines[3]
    assert not model.called.head.weight.any() and model.called.head.bias.equal(state["head.bias"])
    with pytest.raises(
        CheckpointError, match=r"does not fit the checkout's own model, Theirs: of its \d+ tensors \d+ a"
    ):
        load_own_weights(model, file, whole=True)
    older = nn.Module()
    older.block = nn.Module()
    older.block.conv2 = nn.Module()
    older.block.conv2.conv_offset = nn.Linear(2, 2)
    torch.save({"block.conv2_offset.weight": torch.zeros(2, 2)}, file)  # mmdetection's first name
    load_own_weights(OwnModel(older, SOURCE, ModelConfig(grid=GRID)), file, whole=False)
    assert not older.block.conv2.conv_offset.weight.any()
    torch.save({"other.weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_own_weights(model, file, whole=False)
    torch.save({"head.weight": torch.full((17, 2), float("nan"))}, file)
    with pytest.raises(CheckpointError, match=r"1 tensors hold NaN or infinite numbers: head\.weight"):
        load_own_weights(model, file, whole=False)
    assert not model.called.head.weight.any()


def test_checkpoints_of_the_two_kinds() -> None:
    ours, theirs = {"format": "tpvformer"}, {"format": "tpvformer", "own_model": SOURCE.text()}
    refuse_mixed(ResumePoint(Path("a.pth"), ours), None)
    refuse_mixed(ResumePoint(Path("a.pth"), theirs), SOURCE)
    for content, source, said in (
        (
            ours,
            SOURCE,
            "holds weights of this package's model, and this run trains a checkout's own model; say --no-own-",
        ),
        (
            theirs,
            None,
            "holds weights of a checkout's own model, and this run trains this package's model; add --own-mo",
        ),
        (theirs, SOURCE._replace(section={"type": "Theirs", "a": [1]}), r"model\.a is absent there and \[1\] here"),
    ):
        with pytest.raises(CheckpointError, match=said):
            refuse_mixed(ResumePoint(Path("a.pth"), content), source)
    deep = SOURCE._replace(section={"a": [{"b": 1}, {"b": 2}]})
    stored = {"own_model": SOURCE._replace(section={"a": [{"b": 1}, {"b": 3}]}).text()}
    with pytest.raises(CheckpointError, match=r"model\.a\[1\]\.b is 3 there and 2 here"):
        refuse_mixed(ResumePoint(Path("a.pth"), stored), deep)
    with pytest.raises(CheckpointError, match="w: holds weights of a checkout's own model, which its own code alone"):
        load_content(TPVFormer.__new__(TPVFormer), theirs, "w")
    whole = {"config": {}, "epoch": 0, "global_iter": 0}
    check_content({**whole, "own_model": "{}"})
    for wrong in (3, "[1]", "{"):
        with pytest.raises(SchemaError, match="own_model"):
            check_content({**whole, "own_model": wrong})


def test_sections_are_compared_by_value() -> None:
    """Keys of any kind, and functions by name: the text is the same in every process."""
    section = {"type": "Theirs", 0: (1, 2), "pick": re.sub, "inner": {"x": True}}
    source = SOURCE._replace(section=section)
    assert '"0": [1, 2]' in source.text() and '"pick": "re.sub"' in source.text()
    for equal in ({**section, 0: [1.0, 2]}, {**section, "inner": {"x": 1}}):
        stored = {"own_model": SOURCE._replace(section=equal).text()}
        refuse_mixed(ResumePoint(Path("a.pth"), stored), source)


def test_cameras_out_of_order_are_refused() -> None:
    data: Any = SimpleNamespace(infos="val.pkl", embeddings={"CAM_FRONT": 0, "CAM_FRONT_RIGHT": 1}, other_cameras=None)
    check_order(data)
    data.other_cameras = "record 1 (sample x) has 1 cameras (CAM_FRONT), the first has 2"
    with pytest.raises(ConfigError, match=r"val.pkl: record 1 .*needs the same cameras in every sample"):
        check_order(data)
    data.other_cameras = None
    data.embeddings = {"CAM_FRONT": 0, "CAM_BACK": 3}
    with pytest.raises(ConfigError, match="val.pkl: camera CAM_BACK is number 1 of its sample and has embedding 3"):
        check_order(data)


@pytest.mark.parametrize("own_model", [False, True])
def test_errors_of_their_model_in_words(own_model: bool) -> None:
    config, cpu = Config("own"), torch.device("cpu")
    unused = "Expected to have finished reduction in the prior iteration"
    kind, said = (RunEnded, "needs find_unused_parameters = True") if own_model else (RuntimeError, unused)
    with pytest.raises(kind, match=said), explain_crash(config, "fp32", cpu, lambda: "step 2", own_model):
        raise RuntimeError(unused)
    with pytest.raises(RunEnded) as caught, explain_crash(config, "fp32", cpu, lambda: "step 2", own_model):
        raise MemoryError
    assert ("train.recompute=blocks" in str(caught.value)) != own_model


def read(folder: Path, *assignments: str, **changes: Any) -> Config:
    (folder / "config").mkdir(exist_ok=True)
    return load_own(str(own.write_config(folder, **changes)), assignments, folder)[0]


def test_the_configuration_beside_their_model(tmp_path: Path) -> None:
    config = read(tmp_path, "optim.lr=0.5", "train.epochs=7")
    assert config.model.grid == GridConfig(w=10, h=12, z=4) and config.model.num_classes == 17
    assert (config.optim.lr, config.train.epochs, config.train.precision) == (0.5, 7, "fp32")
    assert not config.data.grid_mask and config.optim.backbone_lr_mult == 0.1
    config, source = load_own(str(tmp_path / own.CONFIG), [], tmp_path)
    assert source.section == own.section() and not source.occupancy and source.root == tmp_path
    names = {"tpv_w_": None, "tpv_h_": None, "tpv_z_": None}
    assert read(tmp_path, **names, model={"type": "A", "tpv_aggregator": own.GRID}).model.grid.shape == (10, 12, 4)
    assert not source.unused
    own.write_config(tmp_path, find_unused_parameters=True)
    assert load_own(str(tmp_path / own.CONFIG), [], tmp_path)[1].unused
    for wrong in (5, [1, 2], ["a"] * 6):
        with pytest.raises(ConfigError, match="point_cloud_range is .*; expected six numbers"):
            read(tmp_path, point_cloud_range=wrong)
    cubic = {**names, "grid_size": [8, 8, 4]}
    assert read(tmp_path, **cubic, model={"type": "A"}).model.grid.shape == (8, 8, 4)


@pytest.mark.parametrize(
    ("changes", "assignments", "said"),
    [
        ({}, ["model.dim=32"], r"--set model\.\.\.: with --own-model the model is that of .*own\.py; change it there"),
        ({}, ["train.precision=bf16"], r"train\.precision is bf16, which is for this package's model"),
        ({}, ["optim.layer_decay=0.9"], r"optim\.layer_decay is 0\.9, which is for this package's model"),
        ({}, ["train.freeze=[backbone]"], r"train\.freeze is \('backbone',\), which is for this package's model"),
        ({}, ["train.compile=true"], r"train\.compile is True, which is for this"),
        ({}, ["train.recompute=cheap"], r"train\.recompute is cheap, which is for this"),
        ({"grid_size": [3, 4, 5]}, [], r"grid_size is \(3, 4, 5\); expected"),
        (
            {"tpv_w_": None, "model": {"type": "A"}},
            [],
            "needs the size of the grid; expected tpv_w_, tpv_h_ and tpv_z_",
        ),
        ({"nbr_class": "many"}, [], r"nbr_class is 'many'; expected the number of classes"),
        ({"point_cloud_range": [1, 2]}, [], r"point_cloud_range is \[1, 2\]; expected six numbers"),
        ({"custom_imports": ["a"]}, [], r"custom_imports is \['a'\]; expected dict\(imports="),
        ({"model": 3}, [], "needs the checkout's own configuration"),
    ],
)
def test_settings_that_do_not_fit_their_model(
    tmp_path: Path, changes: Dict[str, Any], assignments: List[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, *assignments, **changes)


def test_a_configuration_of_ours_names_no_model_of_theirs(tmp_path: Path) -> None:
    file = write_config(tmp_path / "ours.py", Config("ours"))
    with pytest.raises(ConfigError, match=r"ours\.py: --own-model needs the checkout's own configuration"):
        load_own(str(file), [], tmp_path)


def test_which_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPVFORMER_OWN_MODEL", raising=False)
    assert [asked(flag) for flag in (None, True, False)] == [None, True, False]
    monkeypatch.setenv("TPVFORMER_OWN_MODEL", "1")
    assert [asked(flag) for flag in (None, True, False)] == [True, True, False]
    monkeypatch.setenv("TPVFORMER_OWN_MODEL", "0")
    assert asked(None) is False
    monkeypatch.setenv("TPVFORMER_OWN_MODEL", "true")
    with pytest.raises(ConfigError, match="TPVFORMER_OWN_MODEL is 'true'; expected 1"):
        asked(None)


@pytest.mark.parametrize(
    ("folder", "chosen", "message", "hint"),
    [
        ("tpvformer10", None, "c.py: model.type is 'A'", True),
        ("tpvformer10", False, "c.py: model.type is 'A'", False),
        ("tpvformer10", None, "c.py: no such file", False),
        ("elsewhere", None, "c.py: model.type is 'A'", False),
    ],
)
def test_the_flag_is_named_where_it_may_be_meant(
    tmp_path: Path, folder: str, chosen: Optional[bool], message: str, hint: bool
) -> None:
    (tmp_path / folder).mkdir()
    with pytest.raises(ConfigError) as found, hinted(tmp_path, chosen):
        raise ConfigError(message)
    assert str(found.value).endswith("; if the checkout's own model is meant, add --own-model") == hint


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
@pytest.mark.parametrize("said", [(), ("--no-own-model",), ("--own-model",), "variable"], ids=str)
def test_a_script_elsewhere_is_silent_once_it_was_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkout, "remarks", lambda folder: [f"files differ below {folder.name}"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    commands: List[List[str]] = []
    monkeypatch.setattr(cli, "main", lambda argv: commands.append(argv) or 0)
    monkeypatch.delenv("TPVFORMER_OWN_MODEL", raising=False)
    if said == "variable":
        monkeypatch.setenv("TPVFORMER_OWN_MODEL", "1")
    monkeypatch.chdir(tmp_path)
    flags = [] if said == "variable" else list(said)
    weights = ["--ckpt-path", "w.pth"] if script == "eval.py" else []
    assert upstream.main(str(tmp_path / "there" / script), [*weights, *flags, "--processes", "1"]) == 0
    assert [word for word in commands[0] if "own-model" in word] == flags
    assert capsys.readouterr().err == ("" if said else f"{script}: files differ below there\n")


@pytest.mark.parametrize(
    ("err", "said"),
    [
        (
            ModuleNotFoundError("No module named 'mmdet.models'", name="mmdet.models"),
            "own model needs mmdet, which is not",
        ),
        (ModuleNotFoundError("A: B: No module named 'mmcv'"), "needs mmcv, which is not installed in .*openmmlab_env"),
        (ModuleNotFoundError("A: B: No module named 'matplotlib.x'"), "the checkout's code needs matplotlib, which is"),
    ],
)
def test_what_a_checkout_lacks(tmp_path: Path, err: ModuleNotFoundError, said: str) -> None:
    assert re.search(said, checkout_model._missing(err))


def test_remarks_go_to_the_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    heard: List[str] = []
    monkeypatch.setattr(remarks, "_listener", None)
    remarks.tell(heard.append)
    remarks.remark("np.int is gone")
    assert heard == ["np.int is gone"] and capsys.readouterr().err == ""
