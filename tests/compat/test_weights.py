"""Weights in and out: the key table, every accepted file, every refusal; files that hold no weights are named
as what they are."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import pytest
import safetensors.torch
import torch
from engine_tools import tiny_model
from safetensors.torch import save_file
from torch import Tensor

from tpvformer.cli import main
from tpvformer.compat import CheckpointError, export_reference, load_config, load_weights, save_reference
from tpvformer.compat.checkpoints import load_content
from tpvformer.compat.keys import derived_names, key_table, reference_order
from tpvformer.compat.pretrained import find_weights
from tpvformer.compat.tensors import read_archive
from tpvformer.compat.wrappers import find_tensors
from tpvformer.config import BackboneConfig, GridConfig, ModelConfig
from tpvformer.model import TPVFormer

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "tests/golden_data/manifest"
CROSS_VIEW = ModelConfig(
    grid=GridConfig(w=6, h=5, z=3),
    backbone=BackboneConfig(blocks=(1, 1, 2, 1), base_width=4),
    dim=16,
    ffn_dim=8,
    decoder_dim=8,
    position_dims=(6, 6, 4),
    layers=("self_cross", "self"),
    pillar_anchors=(2, 4, 4),
    image_points=(2, 4, 4),
    plane_points=4,
    plane_anchors=4,
    plane_init_anchors=4,
)
HW = replace(CROSS_VIEW, view_attn="hw", position_dims=(8, 8), plane_heads=8, layers=("self_cross",), num_classes=18)
RESNET50 = BackboneConfig(blocks=(3, 4, 6, 3))
FAMILIES = pytest.mark.parametrize("config", [CROSS_VIEW, HW], ids=["cross_view", "hw"])


def random_model(config: ModelConfig, seed: int = 0) -> TPVFormer:
    """A model none of whose tensors is left at a constant."""
    model = TPVFormer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.fill_(seed + 7)
    return model


def assert_equal(a: TPVFormer, b: TPVFormer) -> None:
    theirs = b.state_dict()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def detector(model: TPVFormer) -> Dict[str, Tensor]:
    """Backbone and neck under the names that camera detectors use."""
    return {k: v for k, v in export_reference(model).items() if k.startswith(("img_backbone.", "img_neck."))}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("tpv_lidarseg_dim64", load_config(ROOT / "config/tpv_lidarseg_dim64.py").model),
        ("tpv04_occupancy", load_config(ROOT / "config/tpv04_occupancy.py").model),
        ("tiny10", replace(CROSS_VIEW, backbone=RESNET50, layers=("self_cross",) * 2 + ("self",) * 2)),
        ("tiny04", replace(HW, backbone=RESNET50, layers=("self_cross",) * 2)),
    ],
)
def test_names_and_order_are_the_reference_s(name: str, config: ModelConfig) -> None:
    stored = json.loads((MANIFESTS / f"{name}.json").read_text())["state_dict"]
    assert reference_order(config) == list(stored)
    assert derived_names(config) == [k for k, v in stored.items() if v["kind"] == "buffer" and "img_backbone" not in k]


@FAMILIES
def test_table_is_a_bijection_in_the_order_of_the_model(config: ModelConfig) -> None:
    table = key_table(config)
    assert list(table) == list(TPVFormer(config).state_dict())
    assert len(set(table.values())) == len(table)


@FAMILIES
@pytest.mark.parametrize("form", ["flat", "state_dict", "module", "stale", "safetensors"])
def test_reference_round_trip(config: ModelConfig, form: str, tmp_path: Path) -> None:
    source, target = random_model(config), TPVFormer(config)
    tensors = export_reference(source)
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_reference(source, file)
    else:
        if form == "module":
            tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
        if form == "stale":
            tensors["tpv_head.encoder.ref_2d_zh"] = torch.zeros(1, 15, 1, 2)
            tensors["tpv_head.encoder.ref_2d_hw"] = export_reference(TPVFormer(HW))["tpv_head.encoder.ref_2d_hw"]
        wrapped = {"state_dict": tensors, "epoch": 3, "optimizer": {"state": {}}}
        torch.save(wrapped if form == "state_dict" else tensors, file)
    report = load_weights(target, file)
    assert_equal(target, source)
    assert report.kind == "reference" and not report.missing and not report.dropped
    assert len(report.mapped) == len(key_table(config))
    prefix = "module." if form == "module" else ""
    assert {f"{prefix}{name}" for name in report.mapped + report.ignored} == set(tensors)
    if form != "stale":
        assert not report.warnings


@FAMILIES
@pytest.mark.parametrize("form", ["flat", "engine", "safetensors"])
def test_own_round_trip(config: ModelConfig, form: str, tmp_path: Path) -> None:
    source, target = random_model(config), TPVFormer(config)
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(source.state_dict(), str(file))
    else:
        state = source.state_dict()
        torch.save({"format": "tpvformer", "state_dict": state, "step": 9} if form == "engine" else state, file)
    report = load_weights(target, file)
    assert_equal(target, source)
    assert report.kind == "tpvformer" and not report.missing


def test_export_is_in_order_and_detached() -> None:
    model = random_model(CROSS_VIEW)
    exported = export_reference(model)
    assert list(exported) == reference_order(CROSS_VIEW)
    exported["img_backbone.conv1.weight"].zero_()
    assert model.backbone.conv1.weight.abs().min() > 0


def test_other_geometry_warns_and_is_not_loaded(tmp_path: Path) -> None:
    tensors = export_reference(random_model(CROSS_VIEW))
    tensors["tpv_head.encoder.ref_3d_hw"] += 0.25
    torch.save(tensors, tmp_path / "w.pth")
    model = TPVFormer(CROSS_VIEW)
    before = model.encoder.reference_buffers()["ref_3d_hw"].clone()
    report = load_weights(model, tmp_path / "w.pth")
    assert len(report.warnings) == 1 and "ref_3d_hw differs" in report.warnings[0] and "0.25" in str(report)
    assert torch.equal(model.encoder.reference_buffers()["ref_3d_hw"], before)


@pytest.mark.parametrize("prefix", ["img_", "", "module.img_"])
def test_detector_backbone_with_a_neck_of_another_width(prefix: str, tmp_path: Path) -> None:
    source = random_model(replace(CROSS_VIEW, dim=32, position_dims=(12, 12, 8)))
    tensors = {prefix + name[len("img_") :]: tensor for name, tensor in detector(source).items()}
    head = ("module." if prefix.startswith("module") else "") + "bbox_head.conv_cls.weight"
    tensors[head] = torch.zeros(3)
    torch.save({"state_dict": tensors, "meta": {"epoch": 12}}, tmp_path / "fcos3d.pth")
    model = TPVFormer(CROSS_VIEW)
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items() if "backbone" not in name}
    report = load_weights(model, tmp_path / "fcos3d.pth")
    assert_equal_part(model, source, "backbone.")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in untouched.items())
    assert report.kind == "backbone" and report.ignored == ["bbox_head.conv_cls.weight"]
    assert len(report.dropped) == 14 and set(report.missing) == set(untouched)
    assert "14 dropped" in str(report) and "1 ignored" in str(report) and "bbox_head.conv_cls" in str(report)


def assert_equal_part(a: TPVFormer, b: TPVFormer, prefix: str) -> None:
    theirs = b.state_dict()
    assert all(torch.equal(t, theirs[name]) for name, t in a.state_dict().items() if name.startswith(prefix))


def test_detector_neck_is_taken_where_it_fits_and_a_further_level_is_dropped(tmp_path: Path) -> None:
    source, model = random_model(CROSS_VIEW), TPVFormer(CROSS_VIEW)
    tensors = detector(source)
    tensors["img_neck.fpn_convs.4.conv.bias"] = torch.zeros(16)
    torch.save(tensors, tmp_path / "w.pth")
    report = load_weights(model, tmp_path / "w.pth")
    assert_equal_part(model, source, "neck.")
    assert report.dropped == ["img_neck.fpn_convs.4.conv.bias"]


def test_legacy_offset_names_and_absent_counters(tmp_path: Path) -> None:
    source, model = random_model(CROSS_VIEW), TPVFormer(CROSS_VIEW)
    tensors = {
        name.replace("img_backbone.", "backbone.").replace(".conv2.conv_offset.", ".conv2_offset."): tensor
        for name, tensor in detector(source).items()
        if not name.endswith("num_batches_tracked") and not name.startswith("img_neck.")
    }
    assert any(".conv2_offset." in name for name in tensors)
    torch.save(tensors, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    report = load_weights(model, tmp_path / "w.pth")
    assert len(report.mapped) == len(tensors)
    name = "backbone.layer3.0.conv2.conv_offset.bias"
    assert torch.equal(model.state_dict()[name], source.state_dict()[name])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.update({"tpv_head.typo": torch.zeros(1)}), "tpv_head.typo"),
        (lambda t: t.pop("tpv_head.cams_embeds"), "encoder.camera_embed"),
        (lambda t: t.update({"tpv_head.cams_embeds": torch.zeros(5, 16)}), r"camera_embed is \(5, 16\).*\(6, 16\)"),
        (lambda t: t.update({"tpv_head.cams_embeds": "text"}), "tpv_head.cams_embeds is no named tensor"),
    ],
)
def test_what_is_not_explained_is_an_error_and_changes_nothing(change, expected: str, tmp_path: Path) -> None:
    tensors = export_reference(random_model(CROSS_VIEW))
    change(tensors)
    torch.save(tensors, tmp_path / "w.pth")
    model = TPVFormer(CROSS_VIEW)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_weights(model, tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_backbone_file_must_hold_the_backbone(tmp_path: Path) -> None:
    torch.save({"img_backbone.conv1.weight": torch.zeros(4, 3, 7, 7)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="backbone.bn1.weight"):
        load_weights(TPVFormer(CROSS_VIEW), tmp_path / "w.pth")
    torch.save({"decode_head.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="decode_head.weight"):
        load_weights(TPVFormer(CROSS_VIEW), tmp_path / "w.pth")


class Malicious:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(new_format: bool, tmp_path: Path) -> None:
    file, folder = tmp_path / "w.pth", tmp_path / "made"
    content = {**export_reference(random_model(CROSS_VIEW)), "extra": Malicious(folder)}
    torch.save(content, file, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="refused.*mkdir") as caught:
        load_weights(TPVFormer(CROSS_VIEW), file)
    assert not folder.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"])
def test_damaged_files_are_one_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        CheckpointError, match="not a readable|cut short|is empty|is text and no|the ending .pth"
    ) as caught:
        load_weights(TPVFormer(CROSS_VIEW), tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_and_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(TPVFormer(CROSS_VIEW), tmp_path / "w.pth")
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_weights(TPVFormer(CROSS_VIEW), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        save_reference(TPVFormer(CROSS_VIEW), tmp_path / "nowhere" / "w.pth")


def test_export_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = ROOT / "config/debug.py"
    source = random_model(load_config(config).model)
    torch.save({"format": "tpvformer", "state_dict": source.state_dict()}, tmp_path / "run.pth")
    out = tmp_path / "published.pth"
    command = ["export", "--py-config", str(config), "--out", str(out), "--ckpt-path"]
    assert main([*command, str(tmp_path / "run.pth")]) == 0
    stored = torch.load(out, weights_only=True)
    assert list(stored) == reference_order(source.config)
    assert torch.equal(stored["tpv_head.level_embeds"], source.state_dict()["encoder.level_embed"])
    assert main([*command, str(tmp_path / "none.pth")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_trainer_s_numpy_scores_do_no_harm(tmp_path: Path) -> None:
    import numpy as np

    source, model = random_model(CROSS_VIEW), TPVFormer(CROSS_VIEW)
    torch.save({"state_dict": export_reference(source), "best_val_miou_pts": np.float64(3.5)}, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    assert_equal(model, source)


# ---- files that hold no weights


def zipped(name: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(name, b"any")
    return held.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("w.pth", b"", "empty (0 bytes)"),
        ("w.safetensors", b"", "empty (0 bytes)"),
        ("w.pth", b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Sign in</title>", "web page"),
        ("w.safetensors", b"<html><body>404", "web page"),
        ("w.pth", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "server's answer"),
        ("w.pth", b'{"message": "Not Found"}', "server's answer"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        ("w.pth", b"some notes\n", "text and no weights"),
        ("w.pth", b"\x1f\x8b\x08" + bytes(50), "gzip; unpack it first"),
        ("w.tar", bytes(257) + b"ustar" + bytes(300), "tar archive; unpack it first"),
        ("w.zip", zipped("run/epoch_24.pth"), "holds 'run/epoch_24.pth'; unpack it first"),
        ("w.npz", zipped("a.npy"), "NumPy arrays"),
        ("w.pth", safetensors.torch.save({"a.b": torch.ones(2)}), "give it the ending .safetensors"),
        ("w.safetensors", zipped("archive/data.pkl"), "give it the ending .pth"),
    ],
)
def test_a_file_without_weights_is_named_as_what_it_is(
    name: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        read_archive(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "it is empty"),
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "an optimizer's state"),
        ({"optimizer": {"state": {}}, "epoch": 3}, "an optimizer's state"),
        ({"model": [1], "epoch": 3}, "it holds model, epoch and no tensors"),
    ],
)
def test_a_file_without_tensors_says_what_it_holds(content: Any, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        find_tensors(content, "w.pth")


def test_whole_numbers_are_no_weights() -> None:
    model = tiny_model()
    content = export_reference(model)
    content["tpv_head.level_embeds"] = content["tpv_head.level_embeds"].mul(100).to(torch.int8)
    before = model.encoder.level_embed.clone()
    with pytest.raises(CheckpointError, match=r"encoder\.level_embed \(torch.int8\)"):
        load_content(model, content, "w.pth")
    assert torch.equal(model.encoder.level_embed, before)


def test_a_folder_of_numbered_checkpoints_is_refused_with_the_newest_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"latest\.pth; expected a saved model or the work dir of a run$"):
        find_weights(tmp_path)
    for name in ("epoch_9.pth", "epoch_24.pth", "notes.txt"):
        (tmp_path / name).write_bytes(b"any")
    with pytest.raises(CheckpointError) as refused:
        find_weights(tmp_path)
    text = "holds none of model.safetensors, best.pth, latest.pth; expected a saved model or the work dir of a run"
    file = tmp_path / "epoch_24.pth"
    assert str(refused.value) == f"{tmp_path}: {text}; it holds epoch_24.pth: name that file, {file}"
    assert find_weights(file) == file
    (tmp_path / "best.pth").write_bytes(b"any")
    assert find_weights(tmp_path) == tmp_path / "best.pth"
