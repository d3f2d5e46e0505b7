"""Learning rate and optimiser groups against the reference's."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from engine_tools import CPU, MODEL, tiny_model

from tpvformer.config import Config, ConfigError, OptimConfig, override
from tpvformer.engine.optim import build_optimizer, clip_gradients, load_portable_state, portable_state
from tpvformer.engine.optim.schedule import learning_rate, set_learning_rates
from tpvformer.model import TPVFormer

NUMBERS = json.loads((Path(__file__).parents[1] / "golden_data" / "data_side.json").read_text())
PUBLISHED = OptimConfig()


@pytest.mark.parametrize("total", [2000, 84384, 675120])
def test_recorded_curve(total: int) -> None:
    for t, head, backbone in NUMBERS[f"lr/total_{total}"]["samples"]:
        if t == "constructed" or t >= total:  # the reference restarts there; no run reaches it
            continue
        assert learning_rate(t, 2e-4, total, PUBLISHED) == pytest.approx(head, rel=1e-12)
        assert learning_rate(t, 2e-5, total, PUBLISHED) == pytest.approx(backbone, rel=1e-12)


def test_step_k_runs_at_the_curve_of_k_minus_1() -> None:
    optimizer = build_optimizer(tiny_model(), PUBLISHED, CPU)

    def rates(step: int):
        set_learning_rates(optimizer, step, 84384, PUBLISHED)
        return [group["lr"] for group in optimizer.param_groups]

    assert rates(0) == rates(1) == pytest.approx([1e-5, 1e-5])
    assert rates(2) == pytest.approx([1.038e-5, 1.002e-5])
    assert rates(500) == pytest.approx([1.9962e-4, 1.998e-5])
    assert rates(501) == pytest.approx([1.9998276e-4, 1.9998354e-5], rel=1e-7)


def test_no_warm_up_and_after_the_end() -> None:
    cfg = OptimConfig(warmup_steps=0)
    assert learning_rate(0, 2e-4, 10, cfg) == 2e-4
    assert learning_rate(10, 2e-4, 10, cfg) == learning_rate(99, 2e-4, 10, cfg) == cfg.min_lr


def test_two_groups_hold_every_trainable_parameter_once() -> None:
    model = tiny_model()
    for parameter in model.neck.parameters():
        parameter.requires_grad_(False)
    rest, backbone = (group["params"] for group in build_optimizer(model, PUBLISHED, CPU).param_groups)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in rest + backbone} == {id(p) for p in trainable}
    assert len(rest) + len(backbone) == len(trainable)
    assert {id(p) for p in backbone} == {id(p) for p in model.backbone.parameters() if p.requires_grad}


def test_two_groups_update_as_one_group_a_tensor_does() -> None:
    ours, theirs = tiny_model(), tiny_model()
    cfg = OptimConfig(lr=1e-2, backbone_lr_mult=0.1, weight_decay=0.01, clip_norm=0.5)
    groups = [
        {"params": [p], "lr": cfg.lr * (cfg.backbone_lr_mult if name.startswith("backbone.") else 1)}
        for name, p in theirs.named_parameters()
        if p.requires_grad
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    optimizer = build_optimizer(ours, cfg, CPU)
    for step in range(3):
        for model in (ours, theirs):
            torch.manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn_like(p) if p.requires_grad else None
        norm = clip_gradients(optimizer, cfg.clip_norm)
        expected = torch.nn.utils.clip_grad_norm_([p for p in theirs.parameters() if p.requires_grad], cfg.clip_norm)
        assert norm == pytest.approx(expected.item())
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_parts_and_layers_have_their_own_rates() -> None:
    model = TPVFormer(dataclasses.replace(MODEL, layers=("self_cross", "self", "self")))
    cfg = OptimConfig(lr=1e-3, backbone_lr_mult=0.1, lr_mults="aggregator:2, neck:0.5", layer_decay=0.5)
    optimizer = build_optimizer(model, cfg, CPU)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {
        "encoder.level_embed": 1e-3 / 8,
        "encoder.layers.0.": 1e-3 / 4,
        "encoder.layers.1.": 1e-3 / 2,
        "encoder.layers.2.": 1e-3,
        "encoder.": 1e-3 / 8,
        "neck.": 5e-4,
        "aggregator.": 2e-3,
        "backbone.layer4.": 1e-4,
        "backbone.layer3.": 1e-4 / 2,
        "backbone.layer2.": 1e-4 / 4,
        "backbone.layer1.": 1e-4 / 8,
        "backbone.": 1e-4 / 16,
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next(value for start, value in expected.items() if name.startswith(start))
            assert rates.pop(id(parameter)) == pytest.approx(rate, rel=1e-12), name
    assert not rates
    own = build_optimizer(model, dataclasses.replace(cfg, lr_mults="backbone:0.3", layer_decay=1.0), CPU)
    assert [group["lr"] for group in own.param_groups] == pytest.approx([1e-3, 3e-4])
    set_learning_rates(own, 501, 84384, cfg)
    rates = [learning_rate(500, base, 84384, cfg) for base in (1e-3, 3e-4)]
    assert [group["lr"] for group in own.param_groups] == pytest.approx(rates, rel=1e-12)


def test_a_run_goes_on_with_other_rates_of_its_parts(tmp_path: Path) -> None:
    """Every moment comes back to its parameter, however the groups were divided."""
    settings = ("", "encoder:0.5,aggregator:2,neck:0.1", "backbone:1")
    for before in settings:
        model = tiny_model()
        cfg = OptimConfig(lr_mults=before, layer_decay=0.9 if before else 1.0)
        optimizer = build_optimizer(model, cfg, CPU)
        for i, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.grad = torch.full_like(p, i + 1.0)
        optimizer.step()
        for after in settings:
            other = tiny_model()
            back = build_optimizer(other, OptimConfig(lr_mults=after), CPU)
            rates = [group["lr"] for group in back.param_groups]
            load_portable_state(back, portable_state(optimizer))
            for i, p in enumerate(p for p in other.parameters() if p.requires_grad):
                torch.testing.assert_close(back.state[p]["exp_avg"], torch.full_like(p, 0.1 * (i + 1)))
            assert [group["lr"] for group in back.param_groups] == rates


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr_mults=encodr:2", "has 'encodr', which is no part of the model; did you mean encoder?"),
        ("lr_mults=encoder:1,encoder:2", "has encoder twice"),
        ("lr_mults=encoder", "gives encoder ''; expected a number above 0"),
        ("lr_mults=neck:0", "gives neck '0'; expected a number above 0 .* (train.freeze stops a part)"),
        ("lr_mults=neck:nan", "gives neck 'nan'; expected a number above 0"),
        ("layer_decay=0", "optim.layer_decay is 0.0; expected"),
        ("layer_decay=1.5", "optim.layer_decay is 1.5; expected"),
    ],
)
def test_wrong_rates_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message).replace(r"\.\*", ".*")):
        override(Config(name="x"), [f"optim.{setting}"])


def test_a_part_that_does_not_learn_has_no_rate() -> None:
    model = tiny_model()
    assert all(group["params"] for group in build_optimizer(model, OptimConfig(), CPU).param_groups)
    model.freeze(["neck", "backbone"])
    for part in ("detection", "neck", "backbone"):
        with pytest.raises(ConfigError, match=f"gives {part} a learning rate, but no weight of that part learns"):
            build_optimizer(model, OptimConfig(lr_mults=f"{part}:2"), CPU)
    rest, backbone = build_optimizer(model, OptimConfig(), CPU).param_groups  # both stay, as in files of older runs
    assert rest["params"] and not backbone["params"]
