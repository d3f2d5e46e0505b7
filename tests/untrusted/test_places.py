"""Weights of a stranger choose no places: neither where something is written nor which machine is asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Dict

import pytest
from engine_tools import tiny_config, tiny_model

from tpvformer.compat.pretrained import CONFIG, FORMAT, config_of, open_pretrained, read_run_config
from tpvformer.compat.tensors import write_tensors
from tpvformer.config import Config, DataConfig
from tpvformer.engine.checkpoint import files as store
from tpvformer.errors import ConfigError

PLACES = ("root", "train_infos", "val_infos", "test_infos", "occupancy_root", "image_cache")
REMOTE: Dict[str, str] = {name: f"ftp://example.invalid/{name}" for name in PLACES}


def stranger(tmp_path: Path, **places: str) -> Config:
    config = tiny_config(DataConfig(**places))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, load_from=str(tmp_path / "x.pth")))


def checkpoint(folder: Path, config: Config) -> Path:
    content = {"format": store.FORMAT, "config": dataclasses.asdict(config), "global_iter": 3, "epoch": 1}
    return store.write(folder, "epoch_1.pth", {**content, "state_dict": tiny_model().state_dict()})


def weights(kind: str, folder: Path, config: Config) -> Path:
    tree = {"format": FORMAT, "config": dataclasses.asdict(config)}
    if kind == "checkpoint":
        return checkpoint(folder, config)
    if kind == "folder":
        (folder / CONFIG).write_text(json.dumps(tree))
        write_tensors(tiny_model().state_dict(), folder / "model.safetensors")
        return folder
    write_tensors(tiny_model().state_dict(), folder / "a.safetensors", {CONFIG: json.dumps(tree)})
    return folder / "a.safetensors"


@pytest.mark.parametrize("kind", ["checkpoint", "folder", "safetensors"])
@pytest.mark.parametrize("remote", [True, False])
def test_places_in_weights_are_dropped(tmp_path: Path, kind: str, remote: bool) -> None:
    places = REMOTE if remote else {name: str(tmp_path / "theirs" / name) for name in PLACES}
    source = weights(kind, tmp_path, stranger(tmp_path, **places))
    found = open_pretrained(source).config
    usual = DataConfig()
    assert {name: getattr(found.data, name) for name in PLACES} == {name: getattr(usual, name) for name in PLACES}
    assert found.train.load_from is None
    assert config_of(source if source.is_file() else source / "model.safetensors") == found


def test_a_work_dir_of_ones_own_keeps_what_it_reads(tmp_path: Path) -> None:
    """config.yaml beside a checkpoint says where the data lie; not where to write, and no other machine."""
    config = stranger(tmp_path, root="/sets/a", val_infos="/sets/val.pkl", image_cache="/sets/cache")
    path = checkpoint(tmp_path, config)
    (tmp_path / "config.yaml").write_text(config.dump())
    found = open_pretrained(path).config.data
    assert (found.root, found.val_infos, found.image_cache) == ("/sets/a", "/sets/val.pkl", "")
    (tmp_path / "config.yaml").write_text(stranger(tmp_path, **REMOTE).dump())
    with pytest.warns(UserWarning, match="data.root is on another machine"):
        assert "://" not in str(open_pretrained(path).config)


def alias_bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join(lines) + "\nname: *a11\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (alias_bomb(), "refers to its own part"), ("[" * 5000, "nested too deeply"), ("a: [1", "is not YAML"),
        ("- 1\n", "expected a dict"), ("null", "expected a dict"), ("name: a\nmodel: 3", "expected a dict"),
        ("x: 1", "unknown"),
        ("{}", "has no name"), ("a: 2001-99-99", "is not YAML"), ("? [1]\n: 2", "unknown|not YAML"),
        # each key is compared with all before it, because all have one hash
        pytest.param("".join(f"{i * (2**61 - 1)}: 1\n" for i in range(1, 12000)), "more than 262144", id="one hash"),
    ],
)  # fmt: skip
def test_a_run_configuration_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_run_config(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)
