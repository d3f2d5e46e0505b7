"""Weights at the start of a training whose classes or heads are not the file's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_tools import MODEL

from tpvformer.compat import CheckpointError, export_reference, load_weights
from tpvformer.config import ModelConfig
from tpvformer.engine.start import HEADS
from tpvformer.model import TPVFormer

HW = replace(MODEL, view_attn="hw", position_dims=(8, 8), num_classes=18)


def built(config: ModelConfig, seed: int) -> TPVFormer:
    torch.manual_seed(seed)
    return TPVFormer(config)


@pytest.mark.parametrize("config", [MODEL, HW], ids=["cross_view", "hw"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "reference"])
def test_another_number_of_classes_starts_a_fresh_head(config: ModelConfig, ours: bool, tmp_path: Path) -> None:
    known, model = built(config, 0), built(replace(config, num_classes=21), 1)
    file = tmp_path / "known.pth"
    torch.save(known.state_dict() if ours else export_reference(known), file)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    words = rf"classifier.weight is \({config.num_classes}, 16\) in the file and \(21, 16\) in the model"
    with pytest.raises(CheckpointError, match=words):
        load_weights(model, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    report = load_weights(model, file, fresh=HEADS)
    head = ["aggregator.classifier.weight", "aggregator.classifier.bias"]
    assert report.renewed == head and not set(head) & set(report.missing)
    assert f"  2 start afresh, the file has another number of classes: {', '.join(head)}" in report.lines()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name in head else known.state_dict()[name]), name
    same = load_weights(built(config, 2), file, fresh=HEADS)
    assert same.renewed == [] and f"{len(same.mapped)} tensors loaded" in same.lines()[0]
    assert f"{len(same.mapped) - 2} tensors loaded" in report.lines()[0]


def test_another_width_is_still_refused(tmp_path: Path) -> None:
    torch.save(built(replace(MODEL, dim=32, position_dims=(12, 12, 8)), 0).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match=r"in the file and .* in the model .and \d+ more.; use the configuration"):
        load_weights(built(replace(MODEL, num_classes=21), 0), tmp_path / "wide.pth", fresh=HEADS)


def test_a_head_of_the_file_alone_is_left_out(tmp_path: Path) -> None:
    headed, plain = built(replace(MODEL, image_head=True), 0), built(MODEL, 1)
    torch.save(headed.state_dict(), tmp_path / "headed.pth")
    with pytest.raises(CheckpointError, match="2 entries have no place in this model: image_head"):
        load_weights(plain, tmp_path / "headed.pth")
    report = load_weights(plain, tmp_path / "headed.pth", fresh=HEADS)
    assert [name.split(".")[0] for name in report.ignored] == ["image_head"] * 2 and not report.missing
    assert all(torch.equal(tensor, headed.state_dict()[name]) for name, tensor in plain.state_dict().items())
    wider = built(replace(MODEL, image_head=True, num_classes=20), 2)
    renewed = load_weights(wider, tmp_path / "headed.pth", fresh=HEADS).renewed
    assert {name.split(".")[0] for name in renewed} == {"aggregator", "image_head"} and len(renewed) == 4
    torch.save({**headed.state_dict(), "other.weight": torch.ones(1)}, tmp_path / "strange.pth")
    with pytest.raises(CheckpointError, match="1 entries have no place in this model: other.weight"):
        load_weights(plain, tmp_path / "strange.pth", fresh=HEADS)
