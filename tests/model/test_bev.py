"""The plane hw alone: voxels are hw plus a height's vector, and the rest is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Tuple

import pytest
import torch
from engine_tools import MODEL, tiny_config, write_config
from model_cases import BEV, build, inputs
from rig_tools import THREE, write_rig
from tiny_nuscenes import write_tiny
from torch import Tensor

from tpvformer import TPVFormer as Interface
from tpvformer.cli import main
from tpvformer.compat import CheckpointError, export_reference, load_config
from tpvformer.compat.checkpoints import load_content
from tpvformer.config import Config, override
from tpvformer.errors import ConfigError
from tpvformer.model import TPVFormer

pytestmark = pytest.mark.usefixtures("quick")

TINY = dataclasses.replace(MODEL, planes=("hw",), view_attn="hw", position_dims=(8, 8), layers=("self_cross", "self"))


def test_only_the_other_planes_weights_go() -> None:
    """Of both models the same names in the same order, but for what zh and wz have and for the table of heights."""
    three = list(TPVFormer(dataclasses.replace(BEV, planes=("hw", "zh", "wz"))).state_dict())
    others = (".plane_queries.zh", ".plane_queries.wz", "s.1.weight", "s.1.bias", "s.2.weight", "s.2.bias")
    kept = [name for name in three if not ("encoder" in name and "norms" not in name and name.endswith(others))]
    model = TPVFormer(BEV)
    names = list(model.state_dict())
    assert names.pop(names.index("aggregator.height")) and names == kept
    assert model.planes(*inputs(1)[:2]).shape == (1, 14 * 18, 16)


def test_every_parameter_learns() -> None:
    model = build(BEV).train()
    out = model(*inputs(2))
    (out.voxel_logits.square().mean() + out.point_logits.square().mean()).backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert "aggregator.height" in dict(trained)
    assert not [name for name, p in trained if p.grad is None or not p.grad.abs().max() > 0]


def naive(model: TPVFormer, planes: Tensor, points: Tensor) -> Tuple[Tensor, Tensor]:
    """Logits of every voxel and of points, cell by cell from the plane's features (HW,C)."""
    grid, head = model.config.grid, model.aggregator

    def cell(x: int, y: int, z: int) -> Tensor:
        return planes[y * grid.w + x] + head.height[z]

    features = [cell(x, y, z) for x in range(grid.w) for y in range(grid.h) for z in range(grid.z)]
    voxels = head.classifier(head.decoder(torch.stack(features))).view(*grid.shape, -1).permute(3, 0, 1, 2)
    sampled = []
    for point in points.tolist():  # whole numbers above 0: in the middle of eight cells
        x, y, z = map(int, point)
        near = [cell(x - i, y - j, z - k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        sampled.append(torch.stack(near).mean(0))
    return voxels, head.classifier(head.decoder(torch.stack(sampled))).T


def test_a_voxel_is_the_plane_plus_its_height() -> None:
    model = build(BEV)
    torch.manual_seed(1)
    planes, points = torch.randn(2, 14 * 18, 16), torch.tensor([[3.0, 2, 1], [17, 13, 4], [1, 1, 1]])
    with torch.no_grad():
        voxel_logits, point_logits = model.aggregator(planes, points.expand(2, -1, -1), None)
        for sample in range(2):
            voxels, at_points = naive(model, planes[sample], points)
            torch.testing.assert_close(voxel_logits[sample], voxels, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(point_logits[sample], at_points, atol=1e-5, rtol=1e-5)
        spread = voxel_logits.std(-1).min()
        model.aggregator.height.zero_()
        column = model.aggregator(planes, None, None)[0]
    assert spread > 0, "heights differ everywhere"
    assert torch.allclose(column, column[..., :1], atol=1e-6), "and are one without their vectors"


def test_planes_are_enlarged_with_it() -> None:
    grid = dataclasses.replace(BEV.grid, scale_w=2, scale_h=3, scale_z=2)
    aggregator = TPVFormer(dataclasses.replace(BEV, grid=grid)).aggregator
    maps = aggregator.plane_maps(torch.randn(1, 14 * 18, 16))
    assert [tuple(m.shape[2:]) for m in maps] == [(42, 36), (10, 42), (36, 10)]
    assert torch.allclose(maps[1], maps[1][..., :1]) and not maps[2].any()


@pytest.mark.parametrize(
    "planes,more,message",
    [
        ("[zh]", (), r"planes is \('zh',\); expected all of hw, zh, wz in this order, or hw alone"),
        ("[hw, wz, zh]", (), "in this order, or hw alone"),
        ("[]", (), r"planes is \(\); expected"),
        ("[hw]", (), r"view_attn 'cross_view' lets planes read each other.*set view_attn to 'hw'"),
        ("[hw]", ("model.view_attn=hw",), r"position_dims \(24, 24, 16\) must be 2 numbers"),
    ],
)
def test_other_planes_are_refused(planes: str, more: Tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(Config("run"), [f"model.planes={planes}", *more])


def test_weights_of_other_models_are_refused() -> None:
    three = TPVFormer(dataclasses.replace(TINY, planes=("hw", "zh", "wz")))
    bev = TPVFormer(TINY)
    before = {name: tensor.clone() for name, tensor in bev.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"file: aggregator.height; was it made with another configuration\?"):
        load_content(bev, export_reference(three), "reference.pth")
    with pytest.raises(CheckpointError, match=r"have no place in this model: encoder.layers.0.image_attn.offsets.1"):
        load_content(bev, three.state_dict(), "three.pth")
    with pytest.raises(CheckpointError, match="1 entries have no place in this model: aggregator.height"):
        load_content(three, bev.state_dict(), "bev.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in bev.state_dict().items())
    network = {f"img_{name}": t for name, t in three.state_dict().items() if name.startswith("backbone.")}
    assert load_content(bev, network, "r101.pth").kind == "backbone"
    assert torch.equal(bev.backbone.conv1.weight, three.backbone.conv1.weight)


def test_the_commands_take_it(tmp_path: Path, capsys: Any) -> None:
    """Train, evaluate, predict, save a folder and open it again; the reference's names are refused in one line."""
    data = write_tiny(tmp_path / "set")
    config = dataclasses.replace(tiny_config(data, epochs=1), model=TINY)
    words = ["--py-config", str(write_config(tmp_path / "bev.py", config)), "--device", "cpu"]
    run, folder, file = tmp_path / "run", tmp_path / "folder", tmp_path / "w.pth"
    assert main(["train", *words, "--work-dir", str(run)]) == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    weights = ["--ckpt-path", str(run / "latest.pth")]
    assert main(["eval", *words, *weights]) == 0
    rig = write_rig(tmp_path, THREE, (40,), labelled=False)
    assert main(["predict", *words, *weights, "--rig", str(rig), "--out", str(tmp_path / "out")]) == 0
    assert "frame0.npz: 6x5x4 voxels, 40 points" in capsys.readouterr().out

    assert main(["convert", str(run), str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["config"]["model"]["planes"] == ["hw"]
    assert "| planes | hw |" in (folder / "README.md").read_text()
    opened, trained = Interface.from_pretrained(folder, device="cpu"), Interface.from_pretrained(run, device="cpu")
    assert opened.config.model == TINY
    state = trained.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in opened.network.state_dict().items())

    capsys.readouterr()
    for command in (["convert", str(run), str(file)], ["export", *words[:2], *weights, "--out", str(file)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "the reference has no model with the plane hw alone" in said and said.count("\n") == 1
    assert not file.exists()


@pytest.mark.parametrize("baseline,original", [("bev_baseline", "tpv_lidarseg_dim64"), ("demo_bev", "demo")])
def test_the_baselines_differ_in_their_planes_alone(baseline: str, original: str) -> None:
    bev, tpv = load_config(baseline), load_config(original)
    assert bev.model.planes == ("hw",) and bev.name == baseline
    same = dataclasses.replace(
        bev.model, planes=tpv.model.planes, view_attn=tpv.model.view_attn, position_dims=tpv.model.position_dims
    )
    assert dataclasses.replace(bev, name=tpv.name, model=same) == tpv
    assert override(load_config("tpv_occ3d"), ["model.planes=[hw]"]).model.planes == ("hw",), "as docs/configs.md says"
