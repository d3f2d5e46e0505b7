"""The configuration: overrides by name, and the round trip through YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from tpvformer.cli import main
from tpvformer.compat import load_config
from tpvformer.config import Config, from_dict, override
from tpvformer.errors import ConfigError


def test_dump_and_back() -> None:
    config = Config("run")
    assert from_dict(yaml.safe_load(config.dump())) == config


def test_override_changes_what_it_names() -> None:
    wanted = ["optim.lr=1e-4", "model.grid.z=8", "model.layers=[self]", "train.load_from=null"]
    changed = override(Config("run"), wanted)
    assert changed.optim.lr == 1e-4
    assert changed.model.grid.z == 8
    assert changed.model.layers == ("self",)
    assert changed.train.load_from is None
    assert dataclasses.replace(changed, optim=Config("run").optim).optim == Config("run").optim


def test_overrides_are_judged_together() -> None:
    """Each of the two alone would not fit the other's old value."""
    changed = override(Config("run"), ["model.pillar_anchors=[5,5,5]", "model.image_points=[5,10,15]"])
    assert changed.model.image_points == (5, 10, 15)


@pytest.mark.parametrize(
    "text,message",
    [
        ("optim.lrr=1", "OptimConfig has no field 'lrr'; did you mean 'lr'"),
        ("optim.lr=fast", "override optim.lr: expected float, got 'fast'"),
        ("optim.lr.x=1", "'lr' of OptimConfig is a value"),
        ("data.workers=true", "expected int, got True"),
        ("model=3", "'model' is a section"),
        ("model.layers=self", "expected a list"),
        ("model.grid.w", "expected section.field=value"),
        ("model.dim=30", "add up to dim 30"),
        ("train.precision=fp8", "expected 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("train.recompute=all", "train.recompute is 'all'; expected 'none', 'cheap', 'blocks' or null"),
        ("train.writers=[wandb,x]", "train.writers is 'x'; expected 'tensorboard' or 'wandb'"),
        ("data.occupancy_mask=sonar", "data.occupancy_mask is 'sonar'; expected 'camera', 'lidar' or nothing"),
        ("model.view_attn=bev", "model: view_attn is 'bev'; expected 'cross_view' or 'hw'"),
        ("model.layers=[cross]", r"model: layers \('cross',\) may hold 'self_cross' and 'self' only"),
        ("model.planes=[hw,zh]", "expected all of hw, zh, wz in this order, or hw alone"),
        ("model.grid.frame=map", "model.grid.frame is 'map'; expected 'lidar' or 'ego'"),
        ("loss.lovasz_input=all", "expected 'points' or 'voxel' or 'none'"),
        ("model.pillar_anchors=[0]", r"pillar_anchors is \(0,\); expected numbers above 0"),  # found by fuzzing
        ("model.image_heads=0", "image_heads is 0; expected 1 or more"),
        ("loss.render=10", "loss.render is 10, and only dense labels say what a ray meets; set data.occupancy"),
        ("loss.render_rays=0", "loss.render_rays is 0; expected 1 or more"),
        ("loss.render_samples=2000", "loss.render_samples is 2000; expected 1024 at most"),
        ("loss.image=0.5", "image is 0.5 and model.image_head is False; expected a weight above 0 with true"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(Config("run"), [text])


def test_single_cameras_are_taught_in_even_cells() -> None:
    together = ["loss.image=0.5", "model.image_head=true"]
    with pytest.raises(ConfigError, match=r"set data\.even_cells=true"):
        override(Config("run"), together)
    assert override(Config("run"), [*together, "data.even_cells=true"]).loss.image == 0.5


def test_rendering_reads_dense_labels() -> None:
    dense = load_config("tpv_occ3d")
    assert override(dense, ["loss.render=10"]).loss == dataclasses.replace(dense.loss, render=10.0)
    detection = ["model.detection.scale=2", "loss.detection=1", "loss.segmentation=0"]
    with pytest.raises(ConfigError, match=r"leave loss\.segmentation above 0, or set loss\.render=0"):
        override(dense, [*detection, "loss.render=1"])


def test_unknown_stored_field() -> None:
    tree = dataclasses.asdict(Config("run"))
    tree["optim"]["momentum"] = 0.9
    with pytest.raises(ConfigError, match=r"optim has unknown fields \['momentum'\]"):
        from_dict(tree)


@pytest.mark.parametrize("classes", [2, 5, 16, 19, 25, 30, 255])
@pytest.mark.parametrize("label_map", ["nuscenes", "nuscenes-noIgnore", "occ3d"])
def test_as_many_classes_as_the_label_map_has(label_map: str, classes: int) -> None:
    """Fewer would end in the first step's counts, more would train classes that nothing has."""
    wanted = [f"model.num_classes={classes}", f"data.label_map={label_map}"]
    with pytest.raises(ConfigError) as caught:
        override(Config("run"), wanted)
    said = str(caught.value)
    assert said.startswith(f"model.num_classes is {classes}, but data.label_map {label_map} has 17 to 18; set one")
    assert "\n" not in said


@pytest.mark.parametrize("classes", [5, 25])
def test_the_command_says_so_before_it_makes_anything(tmp_path: Path, classes: int, capsys) -> None:
    command = ["train", "--py-config", "debug", "--work-dir", str(tmp_path / "run"), "--set"]
    assert main([*command, f"model.num_classes={classes}"]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and f"model.num_classes is {classes}" in said and "data.label_map nuscenes" in said
    assert not (tmp_path / "run").exists()
