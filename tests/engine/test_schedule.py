"""Learning rate and optimiser groups against the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine_tools import CPU, tiny_model

from tpvformer.config import OptimConfig
from tpvformer.engine.optim import build_optimizer, clip_gradients
from tpvformer.engine.optim.schedule import learning_rate, set_learning_rates

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
