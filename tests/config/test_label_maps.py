"""Label maps of one's own: what a file may say, what it becomes, and what is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict

import pytest
import yaml
from own_classes import SIX, write_six

from tpvformer.compat import load_config
from tpvformer.config import Config, ConfigError, DataConfig, ModelConfig, from_dict, override
from tpvformer.config.label_maps import LabelMapConfig, read_label_map
from tpvformer.labels import CLASS_NAMES, KITTI_RAW, LABEL_MAPS, RAW_NAMES, RAW_TO_CLASS, raw_to_class

FIVE: Dict[str, Any] = {  # another data set's raw labels, 0 to 4
    "classes": [
        {"name": "road", "color": "#ff00FF", "raw": [1, 2]},
        {"name": "car", "color": [0, 0, 255], "raw": 3, "voxels": [0]},
        {"name": "sky", "color": [1, 2, 3], "raw": [], "voxels": [1]},
    ],
    "empty": "sky",
    "unlabelled": [0, 4],
}


def written(folder: Path, tree: Any, name: str = "own.yaml") -> str:
    path = folder / name
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return str(path)


def test_a_file_becomes_names_colours_and_tables(tmp_path: Path) -> None:
    own = read_label_map(written(tmp_path, FIVE), "nuscenes")
    assert own == LabelMapConfig(
        ("road", "car", "sky"), ("#ff00ff", "#0000ff", "#010203"), None, 2, (255, 0, 0, 1, 255), (1, 2)
    )
    known = own.known
    assert known.evaluated == (0, 1) and known.empty == 2 and known.ignored == ()
    assert known.colors == ((255, 0, 255), (0, 0, 255), (1, 2, 3))


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    rows = "name, color, raw, role\nroad,#ff00ff,1 2,\ncar,#0000ff,3,\nother,#010203,0 4,ignore\n"
    by_csv = read_label_map(written(tmp_path, rows, "own.csv"), "nuscenes")
    tree = {
        "classes": [
            {"name": "road", "color": "#ff00ff", "raw": [1, 2]},
            {"name": "car", "color": "#0000ff", "raw": [3]},
            {"name": "other", "color": "#010203", "raw": [0, 4]},
        ],
        "ignore": 2,
    }
    assert by_csv == read_label_map(written(tmp_path, json.dumps(tree), "own.json"), "nuscenes")
    assert by_csv.ignored == 2 and by_csv.raw == (2, 0, 0, 1, 2) and by_csv.known.ignored == (2,)


def test_nuscenes_categories_may_be_named_and_all_are_needed(tmp_path: Path) -> None:
    """The built-in map, written as one of one's own by its categories' names, gives the same table."""
    rows = [
        {"name": name, "color": "#000000", "raw": [r for r, c in zip(RAW_NAMES, RAW_TO_CLASS) if c == number]}
        for number, name in enumerate(CLASS_NAMES)
    ]
    own = read_label_map(written(tmp_path, {"classes": rows, "ignore": "noise"}), "nuscenes")
    assert own.raw == raw_to_class("nuscenes") and own.known.evaluated == LABEL_MAPS["nuscenes"].evaluated
    rows[4]["raw"] = []
    expected = r"own.yaml: raw label 17 \(vehicle.car\) has no class; list it under one, under unlabelled, or set rest"
    with pytest.raises(ConfigError, match=expected):
        read_label_map(written(tmp_path, {"classes": rows}), "nuscenes")
    rest = read_label_map(written(tmp_path, {"classes": rows, "ignore": "noise", "rest": "noise"}), "nuscenes")
    assert rest.raw[17] == 0 and len(rest.raw) == 256 and rest.raw[255] == 0


def test_semantickitti_needs_the_labels_that_it_defines(tmp_path: Path) -> None:
    tree = {
        "classes": [
            {"name": "free", "color": "#ffffff", "raw": 0},
            {"name": "moving", "color": "#ff0000", "raw": [raw for raw in KITTI_RAW if raw >= 252]},
            {"name": "still", "color": "#00ff00", "raw": [raw for raw in KITTI_RAW if 1 < raw < 252 and raw != 52]},
        ],
        "empty": "free",
        "unlabelled": [1, 52],
    }
    own = read_label_map(written(tmp_path, tree), "semantickitti")
    assert len(own.raw) == 260 and own.raw[0] == 0 and own.raw[252] == 1 and own.raw[40] == 2
    assert own.raw[1] == own.raw[2] == 255
    tree["unlabelled"] = [1]
    with pytest.raises(ConfigError, match="raw label 52 has no class"):
        read_label_map(written(tmp_path, tree), "semantickitti")
    with pytest.raises(ConfigError, match="has the key 'ignore', but SemanticKITTI's unknown voxels are 255"):
        read_label_map(written(tmp_path, {**tree, "ignore": "still"}), "semantickitti")


REFUSED: Dict[str, Any] = {
    "class": ([{"name": "a", "color": "#000000"}] * 2, "two classes are called 'a'"),
    "raw": ([{"name": "a", "color": "#000000", "raw": [1, 1]}, {"name": "b", "color": "#000000"}], "label 1 is listed"),
    "both": (
        [{"name": "a", "color": "#000000", "raw": [0]}, {"name": "b", "color": "#000000", "raw": [0]}],
        "raw label 0 is listed twice",
    ),
    "gap": ([{"name": "a", "color": "#000000", "raw": [0, 2]}, {"name": "b", "color": "#0a0a0a"}], "label 1 has no"),
    "color": ([{"name": "a", "color": "red"}, {"name": "b", "color": "#000000"}], "class 'a' has the color 'red'"),
    "color of": ([{"name": "a", "color": [0, 0, 256]}, {"name": "b"}], r"has the color \[0, 0, 256\]"),
    "no color": ([{"name": "a"}, {"name": "b"}], "has the color None; expected '#rrggbb'"),
    "one": ([{"name": "a", "color": "#000000"}], "has 1 classes; expected 2 to 254"),
    "key": ([{"name": "a", "colour": "#000000"}], "class 0: has the key 'colour'; expected name, color, raw, voxels"),
    "far": ([{"name": "a", "color": "#000000", "raw": [70000]}, {"name": "b"}], "a lists 70000; expected raw labels"),
    "word": ([{"name": "a", "color": "#000000", "raw": ["vehicle.plane"]}, {"name": "b"}], "a lists 'vehicle.plane'"),
    "list": ("a", "has no list 'classes'"),
    "named": (
        [{"name": "a\x1b", "color": "#000000"}, {"name": "b", "color": "#000000"}],
        r"own.json: data.classes.names is",
    ),
    "empty name": ([{"color": "#000000"}, {"name": "b", "color": "#000000"}], "a class is called ''"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    rows, expected = REFUSED[case]
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"classes": rows}))
    with pytest.raises(ConfigError, match=expected) as caught:
        read_label_map(str(path), "nuscenes")
    assert "\n" not in str(caught.value) and "own.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("classes: [", "own.yaml", "is no YAML"),
        ("a: !!python/object/apply:os.getcwd []", "own.yaml", "is no YAML"),
        ("- 1", "own.yaml", r"holds \[1\]; expected a label map"),
        ("classes: []\nignor: a", "own.yaml", "has the key 'ignor'; expected classes, ignore, empty"),
        ("name,colour\na,b", "own.csv", "has the columns"),
        ("name,color,role\na,#000000,ignore\nb,#000000,ignore", "own.csv", "line 3 has the role 'ignore'"),
        ("x" * 300_000, "own.yaml", "has 300000 bytes"),
    ],
)
def test_damaged_files_are_refused(text: str, name: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        read_label_map(written(tmp_path, text, name), "nuscenes")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_built_in_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml: cannot be read"):
        DataConfig(label_map=str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="'nuscenes' is the name of a built-in map; write data.label_map=nuscenes"):
        DataConfig(label_map=written(tmp_path, FIVE, "nuscenes.yaml"))
    with pytest.raises(ConfigError, match="expected 'nuscenes', .* or a .yaml, .json or .csv file"):
        DataConfig(label_map="own")


def configured(folder: Path, **data: Any) -> Config:
    return Config("x", ModelConfig(num_classes=6), DataConfig(label_map=write_six(folder), **data))


def test_the_classes_are_stored_with_the_configuration(tmp_path: Path) -> None:
    """A stored configuration needs no file, and opens none."""
    config = configured(tmp_path)
    assert config.data.label_map == "six" and config.data.label_classes.names == tuple(SIX)
    (tmp_path / "six.yaml").unlink()
    assert from_dict(yaml.safe_load(config.dump())) == config
    assert from_dict(dataclasses.asdict(config)) == config
    tree = dataclasses.asdict(config)
    tree["data"].update(label_map=str(tmp_path / "secret.yaml"), classes=None)
    with pytest.raises(ConfigError, match="stored configuration: data.label_map names the file"):
        from_dict(tree)
    tree["data"].update(label_map="six", classes={"names": ["a", "b"], "colors": ["#000000"]})
    with pytest.raises(ConfigError, match="data.classes of 'six': colors are"):
        from_dict(tree)


def test_the_map_is_set_by_a_setting_and_replaced_by_a_built_in_one(tmp_path: Path) -> None:
    config = override(Config("x"), [f"data.label_map={write_six(tmp_path)}", "model.num_classes=6"])
    assert config.data.label_map == "six" and config.data.classes is not None
    back = override(config, ["data.label_map=nuscenes", "model.num_classes=17"])
    assert back == Config("x")


def test_the_configuration_must_fit_the_map(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with pytest.raises(ConfigError, match="model.num_classes is 17, but the label map six has 6 classes; set model"):
        dataclasses.replace(config, model=ModelConfig())
    with pytest.raises(ConfigError, match="data.ignore_label is 255, but the label map six ignores class other; set"):
        override(config, ["data.ignore_label=255"])
    with pytest.raises(ConfigError, match="data.fill_label, the label of voxels without points, is 3, but the label"):
        override(config, ["data.fill_label=3"])
    occ3d, words = load_config("tpv_occ3d"), ["data.ignore_label=0", "model.num_classes=6", "data.fill_label=0"]
    with pytest.raises(
        ConfigError, match="data.occupancy=occ3d needs the class of free space .* label map six, or set"
    ):
        override(occ3d, [*words, f"data.label_map={tmp_path}/six.yaml"])
    own = written(tmp_path, FIVE)
    with pytest.raises(ConfigError, match="data.ignore_label is 0, but the label map own has no ignored class; set da"):
        override(Config("x"), [f"data.label_map={own}", "model.num_classes=3"])
