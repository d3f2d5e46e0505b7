"""Configuration files: the project's own, the reference's with ``_base_``, and what both refuse."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
from golden import model_config

from tpvformer.compat import load_config
from tpvformer.compat.mmcv_config import from_reference
from tpvformer.config import Config
from tpvformer.errors import ConfigError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden_data/config"
PUBLISHED = ("tpv_lidarseg", "tpv_lidarseg_dim64", "tpv_lidarseg_dim96", "tpv04_occupancy")
TINY = ("tiny10", "tiny04")


def tree(name: str) -> Dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.mmcv.json").read_text())


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def as_python(values: Dict[str, Any]) -> str:
    return "\n".join(f"{name} = {value!r}" for name, value in values.items())


def assert_numbers(config: Config, numbers: Dict[str, Any]) -> None:
    """The stored numbers say what the configuration says, field by field."""
    assert asdict(config.model) == asdict(model_config(numbers))
    assert config.loss.lovasz_input == numbers["lovasz_input"] and config.loss.ce_input == numbers["ce_input"]
    assert config.data.ignore_label == numbers["ignore_label"] and config.data.fill_label == numbers["fill_label"]
    assert f"{config.data.label_map}.yaml" == numbers["label_mapping"]
    assert config.optim.lr == numbers["lr"] and config.optim.weight_decay == numbers["weight_decay"]
    assert config.optim.backbone_lr_mult == numbers["backbone_lr_mult"]
    assert config.optim.clip_norm == numbers["grad_max_norm"] and config.train.epochs == numbers["max_epochs"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_published_numbers(name: str) -> None:
    config = load_config(ROOT / f"config/{name}.py")
    assert config.name == name
    assert_numbers(config, json.loads((GOLDEN / f"{name}.json").read_text()))


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.py")), ids=lambda file: file.stem)
def test_every_config_loads_and_says_how_it_was_run(file: Path) -> None:
    assert load_config(file).name == file.stem
    header = file.read_text().split('"""')[1]
    assert all(f"\n{word}" in header for word in ("command", "hardware", "time", "number"))


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.py")), ids=lambda file: file.stem)
def test_every_config_has_the_recorded_values(file: Path) -> None:
    """shipped.json holds ``asdict`` of each, written when every published configuration was spelled out."""
    recorded = json.loads((GOLDEN / "shipped.json").read_text())[file.stem]
    values = json.loads(json.dumps(asdict(load_config(file))))
    assert values["loss"].pop("class_weights") == pytest.approx(recorded["loss"].pop("class_weights"), rel=1e-12)
    assert values == recorded


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("tpv*.py")), ids=lambda file: file.stem)
def test_a_copy_alone_is_the_same(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published configurations are made from shipped ones, not from what the working directory holds by their names."""
    write(tmp_path, "config/tpv_lidarseg_dim64.py", "max_epochs = 1\n")
    write(tmp_path, "config/tpv04_occupancy.py", "max_epochs = 1\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(write(tmp_path, f"mine/{file.name}", file.read_text())) == load_config(file)


@pytest.mark.parametrize("name", TINY)
def test_the_reference_s_structure_becomes_the_same_numbers(name: str) -> None:
    assert_numbers(from_reference(tree(name), name, "x.py"), json.loads((GOLDEN / f"{name}.json").read_text()))


def test_reference_file_with_bases(tmp_path: Path) -> None:
    whole = tree("tiny10")
    write(tmp_path, "_base_/dataset.py", as_python({"dataset_params": whole.pop("dataset_params")}))
    loaders = {name: whole.pop(name) for name in ("train_data_loader", "val_data_loader", "unique_label")}
    write(tmp_path, "_base_/nested/loaders.py", as_python(loaders))
    names = ("optimizer", "grad_max_norm", "print_freq", "max_epochs", "load_from")
    schedule = {name: whole.pop(name) for name in names}
    write(tmp_path, "_base_/schedule.py", "_base_ = 'nested/loaders.py'\n" + as_python(schedule))
    text = (
        "_base_ = ['./_base_/dataset.py', './_base_/schedule.py']\n"
        "optimizer = dict(lr=3e-4)\n"
        "train_data_loader = dict(_delete_=True, data_path='d/', imageset='./a.pkl', shuffle=True)\n"
        "val_data_loader = dict(data_path='d', batch_size=1)\n"
        "max_epochs = 3\n"
    )
    config = load_config(write(tmp_path, "mine.py", text + as_python(whole)))
    assert config.name == "mine" and config.train.epochs == 3
    assert config.optim.lr == 3e-4 and config.optim.weight_decay == 0.01 and config.optim.backbone_lr_mult == 0.1
    assert config.data.root == "d" and config.data.train_infos == "a.pkl"
    assert config.data.val_infos == "data/nuscenes_infos_val.pkl"


def at(values: Any, path: str) -> Any:
    for part in path.split("."):
        values = values[int(part) if part.isdigit() else part]
    return values


LAYER = "model.tpv_head.encoder.transformerlayers.0"


@pytest.mark.parametrize(
    ("path", "key", "value", "expected"),
    [
        ("model.tpv_head.encoder", "num_point_in_pillar", [1, 2, 2], "num_point_in_pillar is not a key.*did you mean"),
        ("model.img_backbone", "with_cp", True, "model.img_backbone.with_cp is not a key"),
        ("model", "img_rpn", {}, "model.img_rpn is not a key"),
        ("optimizer", "amsgrad", True, "optimizer.amsgrad is not a key"),
        ("dataset_params", "fixed_volume_space", False, "dataset_params.fixed_volume_space is False"),
        ("dataset_params", "label_mapping", "config/kitti.yaml", "label_mapping is 'kitti'"),
        ("model.img_neck", "add_extra_convs", "on_input", "add_extra_convs is 'on_input'; expected 'on_output'"),
        ("model.img_backbone", "style", "pytorch", "style is 'pytorch'"),
        ("model.img_backbone", "frozen_stages", 0, "frozen_stages is 0"),
        ("model.img_backbone", "norm_eval", False, "norm_eval is False"),
        ("model.tpv_aggregator", "tpv_h", 30, "tpv_h is"),
        (LAYER + ".attn_cfgs.1.deformable_attention", "floor_sampling_offset", True, "floor_sampling_offset is True"),
        (LAYER + ".attn_cfgs.0", "num_points", 16, "transformerlayers.1..attn_cfgs.0..num_points is 8 but .* is 16"),
        (LAYER, "operation_order", ["ffn", "norm"], "operation_order"),
        (LAYER, "ffn_dropout", 0.2, "ffn_dropout is 0.2; expected 0.1"),
        ("model.tpv_head", "pc_range", 51.2, "pc_range is"),
        ("model.tpv_head.positional_encoding", "num_feats", [12, 12, 12], "add up to dim"),
        ("model.tpv_head.encoder", "num_layers", 3, "num_layers is 3; expected 4"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(path: str, key: str, value: Any, expected: str) -> None:
    values = copy.deepcopy(tree("tiny10"))
    at(values, path)[key] = value
    with pytest.raises(ConfigError, match=expected) as caught:
        from_reference(values, "x", "some/x.py")
    assert str(caught.value).startswith("some/x.py: ") and "\n" not in str(caught.value)


def test_vendor_variant_means_the_same() -> None:
    values = tree("tiny10")
    values["optimizer"]["type"] = "NpuFusedAdamW"
    for layer in values["model"]["tpv_head"]["encoder"]["transformerlayers"]:
        layer.update(tpv_h=20, tpv_w=20, tpv_z=4)
    assert from_reference(values, "x", "x.py") == from_reference(tree("tiny10"), "x", "x.py")


def test_learning_backbone_and_up_sampled_planes() -> None:
    values = tree("tiny10")
    learns = {"type": "BN2d", "requires_grad": True}
    values["model"]["img_backbone"].update(norm_cfg=learns, norm_eval=False, frozen_stages=-1)
    values["model"]["tpv_aggregator"].update(scale_h=2, scale_w=2, scale_z=3)
    values.update(scale_h=2, scale_w=2, scale_z=3, grid_size=[40, 40, 12], load_from=None)
    del values["optimizer"]["paramwise_cfg"]
    config = from_reference(values, "x", "x.py")
    assert config.model.backbone.norm == "batch" and config.model.backbone.frozen_stages == 0
    assert config.model.grid.shape == (40, 40, 12)
    assert config.optim.backbone_lr_mult == 1.0 and config.train.load_from is None


def _missing(folder: Path) -> Path:
    return folder / "none.py"


def _with(text: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder, "c.py", text)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_missing, "none.py: no such configuration file"),
        (_with("x = 1\ny = (\n"), r"c.py:2: .*y = \("),
        (_with("x = 1\ny = 1 / 0\n"), "c.py:2: ZeroDivisionError"),
        (_with("from tpvformer.config import *\nconfig = Config(name='x', modell=1)\n"), "c.py:2: TypeError.*modell"),
        (_with("from tpvformer.config import *\n\nconfig = Config('x', ModelConfig(dim=60))"), "c.py:3: model: .*60"),
        (_with("x = 1\n_y = x\n"), "c.py: no configuration found"),
        (_with("config = 3\n"), "'config' is a int"),
        (_with("grad_max_nrom = 35\n"), "'grad_max_nrom' is not a key.*'grad_max_norm'"),
        (_with("_base_ = 'c.py'\n"), "leads back"),
        (_with("_base_ = 'd.py'\n"), "d.py: no such configuration file"),
    ],
)
def test_unusable_files_are_one_sentence(make: Callable[[Path], Path], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_mistyped_name_is_told() -> None:
    with pytest.raises(ConfigError, match="known by name are .*; did you mean debug\\?$"):
        load_config("debgu")


def test_bases_may_not_contradict_each_other(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "max_epochs = 1\n")
    write(tmp_path, "b.py", "max_epochs = 2\n")
    with pytest.raises(ConfigError, match="max_epochs set by more than one"):
        load_config(write(tmp_path, "c.py", "_base_ = ['a.py', 'b.py']\n"))
    with pytest.raises(ConfigError, match="optimizer is a dictionary over a int"):
        write(tmp_path, "a.py", "optimizer = 1\n")
        load_config(write(tmp_path, "c.py", "_base_ = 'a.py'\noptimizer = dict(lr=1)\n"))
