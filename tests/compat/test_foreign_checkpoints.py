"""Checkpoints of other programs, with their real names and shapes: what is read, what is refused, what is said."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping

import pytest
import torch
from api_tools import CONFIG, lively
from engine_tools import tiny_config, tiny_model, write_config
from foreign_tools import FOREIGN, port_names, recorded
from tiny_nuscenes import write_tiny
from torch import Tensor

from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.compat import CheckpointError, export_reference, load_config
from tpvformer.compat.backbone import Backbone, backbone_of
from tpvformer.compat.checkpoints import load_content
from tpvformer.compat.keys import is_derived, is_port, key_table, reference_names
from tpvformer.compat.tensors import read_archive
from tpvformer.compat.wrappers import find_tensors
from tpvformer.config import BackboneConfig, ModelConfig
from tpvformer.model import TPVFormer as Network

pytestmark = pytest.mark.usefixtures("quick")
RESNET50 = dataclasses.replace(load_config("tpv_small").model)


@functools.lru_cache(maxsize=None)
def model_of(config: ModelConfig) -> Network:
    with torch.device("meta"):
        return Network(config)


def backbone(tensors: Mapping[str, Tensor], config: ModelConfig, notes: Any = None) -> Backbone:
    ours = {theirs: mine for mine, theirs in key_table(config).items()}
    return backbone_of(tensors, ours, model_of(config).state_dict(), notes or {}, "w.pth")


def resnet(config: ModelConfig = RESNET50, prefix: str = "", mean: float = 0.0, var: float = 1.0) -> Dict[str, Tensor]:
    """A plain ResNet's names and shapes; torchvision's ResNet-50 has these 318 and fc's two."""
    table = {mine: theirs for mine, theirs in key_table(config).items() if mine.startswith("backbone.")}
    state = model_of(config).state_dict()
    fill = {"running_mean": mean, "running_var": var}
    return {
        prefix + theirs[len("img_backbone.") :]: torch.tensor(fill.get(theirs.split(".")[-1], 0.0)).expand(
            state[mine].shape
        )
        for mine, theirs in table.items()
        if "conv_offset" not in theirs
    }


# ---- mmdetection3d


def test_the_port_s_real_names_are_the_reference_s_behind_its_prefixes() -> None:
    """All 922, with their shapes, onto the state dict of the published configuration that they belong to."""
    config = load_config("tpv_lidarseg").model
    tensors = recorded("mmdet3d_keys")
    assert len(tensors) == 922 and is_port(tensors)
    names = reference_names(tensors)
    table, state = key_table(config), model_of(config).state_dict()
    weights = {known: tensors[name] for name, known in names.items() if not is_derived(known)}
    assert set(weights) == set(table.values())
    assert all(weights[theirs].shape == state[mine].shape for mine, theirs in table.items())
    assert len(names) - len(weights) == 4  # geometry, which the model computes


def test_fcos3d_gives_its_backbone_and_nothing_is_said_of_its_style() -> None:
    tensors, config = recorded("fcos3d_keys"), load_config("tpv_lidarseg_dim64").model
    found = backbone(tensors, config)
    assert len(found.mapped) == sum(name.startswith("backbone.") for name in tensors)
    assert len(found.dropped) == 16 and all(name.startswith("neck.") for name in found.dropped)
    assert found.ignored and all(name.startswith("bbox_head.") for name in found.ignored)
    assert not found.zeroed and not found.warnings
    wide = backbone(tensors, load_config("tpv04_occupancy").model)  # 256 wide, as its neck
    assert wide.dropped == ["neck.fpn_convs.4.conv.weight", "neck.fpn_convs.4.conv.bias"]


def test_a_real_checkpoint_of_mmengine_is_read_past_its_curves() -> None:
    """Its history buffers store their own methods as calls of getattr, and NumPy's arrays."""
    content = read_archive(FOREIGN / "mmengine_0.10.7_toy_epoch_2.pth")
    assert content["meta"]["mmengine_version"] == "0.10.7" and content["meta"]["epoch"] == 2
    assert {name: tuple(t.shape) for name, t in content["state_dict"].items()} == {
        "backbone.weight": (2, 2), "backbone.bias": (2,), "decode_head.weight": (2, 2), "decode_head.bias": (2,),
    }  # fmt: skip
    torch.testing.assert_close(
        content["state_dict"]["decode_head.bias"], torch.tensor([-0.5581, 0.5875]), rtol=0, atol=5e-5
    )
    curves = content["message_hub"]["log_scalars"]
    assert repr(curves["train/loss"]) == "an object of mmengine.logging.history_buffer.HistoryBuffer"
    with pytest.raises(CheckpointError, match="2 entries have no place in this model: backbone.weight"):
        load_content(tiny_model(), content, "toy.pth")


def test_what_mmengine_keeps_beside_weights_does_no_harm(tmp_path: Path) -> None:
    """The real file's other content, around the weights of a model that fits."""
    model = lively(CONFIG)
    around = read_archive(FOREIGN / "mmengine_0.10.7_toy_epoch_2.pth")
    opened = tiny_model(seed=3) if CONFIG.model == tiny_config(CONFIG.data).model else Network(CONFIG.model)
    report = load_content(opened, {**around, "state_dict": export_reference(model.network)}, "epoch_2.pth")
    assert report.kind == "reference" and not report.missing
    assert_equal(opened, model.network)


# ---- wrappers


def prefixed(prefix: str) -> Callable[[Dict[str, Tensor]], Dict[str, Any]]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def wrapped_backbone(state: Dict[str, Tensor]) -> Dict[str, Any]:
    """torch.compile and checkpointing of a part of the model."""
    return {
        name.replace("img_backbone.", "img_backbone._orig_mod.").replace(
            "encoder.layers.", "encoder._checkpoint_wrapped_module.layers."
        ): tensor
        for name, tensor in state.items()
    }


def moved(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


FORMS: Dict[str, Callable[[Dict[str, Tensor]], Any]] = {
    "flat": lambda s: s,
    "DDP": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "DDP of torch.compile": prefixed("module._orig_mod."),
    "torch.compile of DDP": prefixed("_orig_mod.module."),
    "FSDP": prefixed("_fsdp_wrapped_module."),
    "parts wrapped": wrapped_backbone,
    "Lightning": lambda s: {
        "state_dict": {**prefixed("model.")(s), "criterion.weight": torch.ones(17)},
        "epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.1.0", "callbacks": {}, "loops": {},
        "hyper_parameters": argparse.Namespace(lr=1e-4),
    },
    "Lightning, another attribute, compiled": lambda s: {"state_dict": prefixed("tpv.net._orig_mod.")(s)},
    "Lightning with an average": lambda s: {
        "state_dict": {**prefixed("model.")(s), **prefixed("ema_model.")(moved(s))},
    },
    "AveragedModel": lambda s: {"n_averaged": torch.tensor(5), **prefixed("module.")(s)},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}, "epoch": 1},
    "model_state": lambda s: {"model_state": s, "epoch": 1},
    "model": lambda s: {"model": s, "optimizer": {}, "args": argparse.Namespace(lr=1e-4)},
    "DeepSpeed": lambda s: {"module": s, "ds_version": "0.14.0", "optimizer": None},
    "one key of one's own": lambda s: {"tpv": s, "step": 3},
    "nested": lambda s: {"checkpoint": {"model": {"state_dict": s}}},
    "timm": lambda s: {"state_dict": s, "state_dict_ema": moved(s), "arch": "tpv", "args": argparse.Namespace()},
    "mmengine's EMAHook": lambda s: {
        "state_dict": s, "ema_state_dict": {"steps": torch.tensor(4), **prefixed("module.")(moved(s))}, "meta": {},
    },
    "mmcv's EMAHook": lambda s: {
        "state_dict": {**s, **{"ema_" + name.replace(".", "_"): tensor for name, tensor in moved(s).items()}},
    },
    "flat with options": lambda s: {**s, "epoch": 3, "args": argparse.Namespace(lr=1e-4), "optimizer": {"state": {}}},
}  # fmt: skip


@pytest.mark.parametrize("names", ["reference", "ours", "port"])
@pytest.mark.parametrize("form", FORMS)
def test_wrappers_are_taken_away(form: str, names: str, tmp_path: Path) -> None:
    source = lively(CONFIG).network
    state: Dict[str, Tensor] = {"reference": export_reference, "ours": Network.state_dict, "port": port_of}[names](
        source
    )
    torch.save(FORMS[form](dict(state)), tmp_path / "w.pth")
    opened = TPVFormer.from_pretrained(tmp_path / "w.pth", config=CONFIG, device="cpu")
    assert opened.report is not None and not opened.report.missing
    assert opened.report.kind == {"reference": "reference", "ours": "tpvformer", "port": "mmdetection3d"}[names]
    assert_equal(opened.network, source)


def port_of(model: Network) -> Dict[str, Tensor]:
    return port_names(export_reference(model))


def assert_equal(a: Network, b: Network) -> None:
    theirs = b.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lambda s: {"student": s, "teacher": moved(s)}, "has tensors under student, teacher; keep the weights alone"),
        (lambda s: {**prefixed("a.")(s), **prefixed("b.")(s)}, "has weights under a, b; keep those of one model"),
        (lambda s: {**s, **prefixed("module.")(s)}, "which are one name without wrappers; keep one of them"),
        (lambda s: {"model": torch.nn.Linear(2, 2)}, "its 'model' is a whole object of torch.nn.modules.linear.Linear"),
        (lambda s: {"epoch": 3}, "expected named tensors, flat or under 'state_dict'; it holds epoch"),
        (lambda s: {"state_dict": {**s, "tpv_head.x": "text"}}, "tpv_head.x is no named tensor"),
        (lambda s: {"state_dict": {"a.b": argparse.Namespace()}}, "a.b is no named tensor"),
    ],
)
def test_what_is_not_clear_is_refused(content: Callable[..., Any], expected: str, tmp_path: Path) -> None:
    torch.save(content(export_reference(tiny_model())), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=expected) as caught:
        TPVFormer.from_pretrained(tmp_path / "w.pth", config=CONFIG, device="cpu")
    assert "\n" not in str(caught.value)


def test_what_lies_beside_a_lightning_model_is_reported() -> None:
    found = find_tensors({"state_dict": {"model.backbone.conv1.weight": torch.ones(1), "loss.w": torch.ones(1)}}, "w")
    assert list(found.tensors) == ["backbone.conv1.weight"] and found.beside == ["loss.w"]


# ---- ResNets alone, and their style

FC = {"fc.weight": torch.zeros(1).expand(1000, 2048), "fc.bias": torch.zeros(1000)}
RUNNING = {"mean": -0.4, "var": 2.5}


def test_torchvision_s_names_are_a_backbone_and_fc_is_ignored() -> None:
    names = resnet()
    assert len(names) == 318 and names["layer4.2.bn3.running_var"].shape == (2048,)
    found = backbone({**names, **FC}, RESNET50)
    assert found.ignored == list(FC) and len(found.mapped) == 318 and not found.warnings
    old = {name: tensor for name, tensor in names.items() if "num_batches" not in name}  # resnet50-19c8e357.pth
    assert len(old) + 2 == 267 and len(backbone({**old, **FC}, RESNET50).mapped) == 265


LATERAL = {"neck.lateral_convs.0.conv.bias": torch.ones(256)}
KINDS: Dict[str, Any] = {  # prefix, and some of what lies beside the backbone
    "torchvision": ("", FC),
    "RetinaNet": ("backbone.", {**LATERAL, "bbox_head.retina_cls.bias": torch.ones(720)}),
    "BEVFormer-tiny": (
        "img_backbone.",
        {"img_neck.fpn_convs.0.conv.bias": torch.ones(256), "pts_bbox_head.w": torch.ones(1)},
    ),
    "classifier": ("backbone.", {"head.fc.weight": FC["fc.weight"]}),
    "segmentor": ("backbone.", {"decode_head.conv_seg.bias": FC["fc.bias"], "auxiliary_head.x": FC["fc.bias"]}),
    "two stages": ("backbone.", {**LATERAL, "rpn_head.rpn_cls.bias": torch.ones(3), "roi_head.x": torch.ones(81)}),
}


WITHIN = {"model.backbone.img_backbone.": "model.backbone.depth_net.conv.weight"}  # BEVDepth
WITHIN.update({"backbone.body.": "backbone.fpn.inner_blocks.0.0.weight"})  # torchvision's detectors
WITHIN.update({"backbone.0.body.": "transformer.encoder.layers.0.linear1.weight"})  # DETR


@pytest.mark.parametrize("prefix", WITHIN)
def test_a_resnet_within_a_backbone_is_found(prefix: str) -> None:
    content = {"state_dict": {**resnet(prefix=prefix), WITHIN[prefix]: torch.ones(2)}}
    found = backbone(find_tensors(content, "w.pth").tensors, RESNET50)
    assert set(found.values) == {name for name in model_of(RESNET50).state_dict() if name.startswith("backbone.")}
    assert [WITHIN[prefix].endswith(name) for name in found.ignored] == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_pytorch_s_style_is_named_and_what_fits_instead(kind: str) -> None:
    prefix, more = KINDS[kind]
    found = backbone({**resnet(prefix=prefix, **RUNNING), **more}, RESNET50)
    (warning,) = found.warnings
    assert "PyTorch's style" in warning and "mean -0.4 to -0.4, variance 2.5 to 2.5" in warning
    assert "r101_dcn_fcos3d_pretrain.pth" in warning and "resnet50_msra-5891d200.pth" in warning and "\n" not in warning
    assert not backbone({**resnet(prefix=prefix), **more}, RESNET50).warnings  # a converter's mark: 0 and 1
    almost = resnet(prefix=prefix, var=1 - 1e-5)
    assert not backbone({**almost, **more}, RESNET50).warnings


@pytest.mark.parametrize(
    ("text", "mean", "warned"),
    [
        ("backbone=dict(type='ResNet', depth=50, style='pytorch')", 0.0, "names style='pytorch'"),
        ("model = {'backbone': {'style': 'pytorch'}}", 0.0, "names style='pytorch'"),
        ("backbone=dict(type='ResNet', depth=50, style='caffe')", -0.4, None),
        ("teacher=dict(style='caffe'), student=dict(style='pytorch')", -0.4, "statistics of its own"),
        ("linestyle='pytorchy'", 0.0, None),
    ],
)
def test_the_style_that_openmmlab_notes_counts_first(text: str, mean: float, warned: Any) -> None:
    for key in ("config", "cfg"):
        found = backbone(resnet(prefix="backbone.", mean=mean), RESNET50, {"meta": {key: text}})
        assert bool(found.warnings) == (warned is not None)
        assert warned is None or warned in found.warnings[0]


def test_a_plain_resnet_starts_deformable_convolutions_at_zero() -> None:
    config = dataclasses.replace(RESNET50, backbone=BackboneConfig(blocks=(3, 4, 6, 3)))
    found = backbone(resnet(config), config)
    assert len(found.zeroed) == 2 * (6 + 3) and all("conv2.conv_offset." in name for name in found.zeroed)
    assert all(not found.values[name].any() for name in found.zeroed)
    with pytest.raises(CheckpointError, match="entries have no place in this model: .*conv_offset"):
        backbone({**resnet(config), "layer3.0.conv2.conv_offset.bias": torch.zeros(27)}, RESNET50)
    small = dataclasses.replace(CONFIG.model, backbone=dataclasses.replace(CONFIG.model.backbone, dcn_stages=(3, 4)))
    plain, model = lively(CONFIG).network, Network(small)
    for name, parameter in model.named_parameters():
        if "conv_offset" in name:
            torch.nn.init.ones_(parameter)
    bare = {k[len("backbone.") :]: t for k, t in plain.state_dict().items() if k.startswith("backbone.")}
    bare = {name: tensor for name, tensor in bare.items() if "conv_offset" not in name}
    report = load_content(model, bare, "resnet.pth")
    assert report.zeroed and not set(report.zeroed) & set(report.missing) and "start at 0" in str(report)
    assert not model.state_dict()["backbone.layer3.0.conv2.conv_offset.bias"].any()
    assert torch.equal(model.backbone.layer3[0].conv2.weight, plain.state_dict()["backbone.layer3.0.conv2.weight"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda n: {**n, "layer3.6.conv1.weight": torch.zeros(1)}, "no place in this model: layer3.6.conv1.weight"),
        (lambda n: {**n, "conv1.bias": torch.zeros(64)}, "no place in this model: conv1.bias"),
        (
            lambda n: {**{"backbone." + k: v for k, v in n.items()}, **{"img_backbone." + k: v for k, v in n.items()}},
            "has a backbone under two prefixes",
        ),
        (lambda n: {"resnet.embedder.embedder.convolution.weight": torch.zeros(1)}, "have no place in this model"),
        (lambda n: {"stem.conv1.weight": torch.zeros(1), "res2.0.conv1.weight": torch.zeros(1)}, "no place in this"),
    ],
)
def test_another_network_is_refused(change: Callable[..., Any], expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        backbone(change(resnet()), RESNET50)


def test_a_shallower_network_is_refused_by_what_it_lacks() -> None:
    bare = {k[len("backbone.") :]: t for k, t in tiny_model().state_dict().items() if k.startswith("backbone.")}
    bare = {name: tensor for name, tensor in bare.items() if not name.startswith("layer4.0.conv3")}
    with pytest.raises(CheckpointError, match="1 tensors of this model are not in the backbone file: backbone.layer4"):
        load_content(tiny_model(), bare, "resnet.pth")


def test_weights_in_half_precision_have_the_same_geometry() -> None:
    model = lively(CONFIG).network
    reference = export_reference(model)
    for kind in (torch.float16, torch.bfloat16):
        halves = {name: t.to(kind) if t.is_floating_point() else t for name, t in reference.items()}
        report = load_content(Network(CONFIG.model), halves, "half.pth")
        assert not report.warnings
        moved_by = dict(halves)
        moved_by["tpv_head.encoder.ref_3d_hw"] = (reference["tpv_head.encoder.ref_3d_hw"] + 0.1).to(kind)
        (warning,) = load_content(Network(CONFIG.model), moved_by, "half.pth").warnings
        assert "ref_3d_hw differs from this configuration's" in warning


# ---- train.load_from


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    """A tiny set with its configuration, and weights of every kind."""
    folder = tmp_path_factory.mktemp("start")
    config = tiny_config(write_tiny(folder / "set", (40, 90)), epochs=1)
    write_config(folder / "tiny.py", config)
    made = TPVFormer(config, device="cpu")
    with torch.no_grad():
        made.network.encoder.level_embed.fill_(3.5)
    made.save_pretrained(folder / "shared")
    state = made.network.state_dict()
    bare = {k[len("backbone.") :]: t for k, t in state.items() if k.startswith("backbone.") and "offset" not in k}
    torch.save({**bare, "fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}, folder / "resnet.pth")
    torch.save({**bare, "bn1.running_mean": bare["bn1.running_mean"] - 0.5}, folder / "pytorch.pth")
    (folder / "empty").mkdir()
    return folder


def train(place: Path, monkeypatch: pytest.MonkeyPatch, load_from: str, work_dir: str = "run") -> int:
    monkeypatch.chdir(place)
    command = ["train", "--py-config", "tiny.py", "--device", "cpu", "--work-dir", work_dir]
    return main([*command, "--set", f"train.load_from={load_from}"])


def test_a_shared_folder_starts_a_training(place: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    assert train(place, monkeypatch, "shared", "from_folder") == 0
    out = capsys.readouterr()
    assert "shared/model.safetensors (tpvformer weights)" in out.out + out.err
    assert train(place, monkeypatch, "from_folder", "from_run") == 0  # a run's work dir is a folder of weights too
    assert train(place, monkeypatch, "empty", "run") == 2
    assert "empty: holds none of model.safetensors, best.pth, latest.pth" in capsys.readouterr().err


def test_a_bare_resnet_starts_a_training_and_its_style_is_warned_of(place: Path, monkeypatch, capsys) -> None:
    assert train(place, monkeypatch, "resnet.pth", "from_resnet") == 0
    out = capsys.readouterr()
    assert "2 ignored, no weights of this model: fc.weight, fc.bias" in out.out + out.err
    assert "PyTorch's style" not in out.out + out.err
    assert train(place, monkeypatch, "pytorch.pth", "from_pytorch") == 0
    out = capsys.readouterr()
    assert (out.out + out.err).count("this looks like a ResNet in PyTorch's style") == 1


def test_a_missing_file_is_found_before_the_model_is_built(place: Path, monkeypatch, capsys) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the model was built")

    with monkeypatch.context() as patch:
        patch.setattr("tpvformer.engine.train.build_model", never)
        assert train(place, patch, "ckpts/none.pth", "missing") == 2
    lines: List[str] = capsys.readouterr().err.strip().splitlines()
    assert "train.load_from: ckpts/none.pth does not exist" in lines[-1] and "train.load_from=null" in lines[-1]
    assert not list((place / "missing").glob("*.pth"))
