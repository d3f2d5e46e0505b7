"""Every kind of weights: folders, runs, the reference's names and its port's, the hub; and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from api_tools import CONFIG, assert_same, images_of, lively
from engine_tools import ROOT
from foreign_tools import port_names, recorded
from rig_tools import THREE, write_rig
from safetensors.torch import save_file

from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.compat import CheckpointError, export_reference, load_config
from tpvformer.compat.infer_config import PUBLISHED, infer_config
from tpvformer.compat.pretrained import config_of, find_weights
from tpvformer.compat.tensors import write_tensors
from tpvformer.model import TPVFormer as Network

pytestmark = pytest.mark.usefixtures("quick")
NORM = dataclasses.replace(CONFIG.model.backbone, norm="batch")


@pytest.fixture(scope="module")
def model() -> TPVFormer:
    return lively(CONFIG)


@pytest.fixture()
def rig(tmp_path: Path) -> Path:
    return write_rig(tmp_path, THREE)


def test_a_folder_has_config_weights_and_card(model: TPVFormer, rig: Path, tmp_path: Path) -> None:
    secret = dataclasses.replace(CONFIG.data, root="/home/someone/set", image_cache="/home/someone/cache")
    named = TPVFormer(dataclasses.replace(CONFIG, data=secret), device="cpu")
    named.network.load_state_dict(model.network.state_dict())
    folder = named.save_pretrained(tmp_path / "saved" / "model")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # all may be read by whom the umask allows
    assert "someone" not in (folder / "config.json").read_text() + (folder / "README.md").read_text()
    card = (folder / "README.md").read_text()
    assert "6 x 5 x 4" in card and "driveable_surface" in card and "from_pretrained" in card
    expected = model.predict(images_of(rig), rig)
    for source in (folder, str(folder), folder / "model.safetensors"):
        opened = TPVFormer.from_pretrained(source, device="cpu")
        assert opened.config == CONFIG
        assert_same(opened.predict(images_of(rig), rig), expected)
    alone = tmp_path / "weights.safetensors"  # it carries the configuration with it
    shutil.copy(folder / "model.safetensors", alone)
    opened = TPVFormer.from_pretrained(alone, device="cpu")
    assert opened.config == CONFIG
    assert_same(opened.predict(images_of(rig), rig), expected)
    write_tensors(model.network.state_dict(), alone, {"config.json": "[]"})
    with pytest.raises(CheckpointError, match='weights.safetensors: its config.json: is not of the format "tpvformer'):
        TPVFormer.from_pretrained(alone)
    alone.write_bytes(alone.read_bytes()[:99])
    for opens in (TPVFormer.from_pretrained, config_of):
        with pytest.raises(CheckpointError, match="weights.safetensors: not a readable safetensors file"):
            opens(alone)
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match='config.json: is not of the format "tpvformer-model-1"'):
        TPVFormer.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json: cannot be read"):
        TPVFormer.from_pretrained(folder)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(CheckpointError, match="holds none of model.safetensors, best.pth, latest.pth"):
        TPVFormer.from_pretrained(tmp_path)


def test_half_precision_answers_as_full_does(rig: Path, tmp_path: Path) -> None:
    """Within the rounding of the weights. Batch norm's statistics keep what float16 has not."""
    made = lively(batch_norm := dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, backbone=NORM)))
    spread = made.network.state_dict()["backbone.bn1.running_var"]
    spread[:2] = torch.tensor([3e-9, 3e9])
    full, half = (made.save_pretrained(tmp_path / name, half) for name, half in (("full", False), ("half", True)))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (full, half)]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    opened = TPVFormer.from_pretrained(half, device="cpu")
    assert opened.config == batch_norm
    for name, value in opened.network.state_dict().items():
        told = made.network.state_dict()[name]
        assert value.dtype == told.dtype
        exact = name not in dict(made.network.named_parameters())
        assert torch.equal(value, told if exact else told.half().float()), name
    answers = [one.predict(images_of(rig), rig).voxels.probabilities for one in (made, opened)]
    assert 0 < np.abs(answers[0] - answers[1]).max() < 2e-3
    assert main(["convert", "--half", str(full), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (half / "model.safetensors").read_bytes()


def test_half_precision_is_refused_where_it_would_lose(tmp_path: Path, capsys: Any) -> None:
    made = lively(CONFIG)
    name, parameter = next(iter(made.network.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[0] = 7e4
    with pytest.raises(CheckpointError, match=f"{name} holds numbers that are no finite float16"):
        made.save_pretrained(tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()
    folder = made.save_pretrained(tmp_path / "full")
    assert main(["convert", "--half", str(folder), str(tmp_path / "w.pth")]) == 2
    said = capsys.readouterr().err
    assert "--half is for a folder, but OUT is the file" in said and said.count("\n") == 1


def test_a_run_is_opened_by_its_work_dir(model: TPVFormer, rig: Path, tmp_path: Path) -> None:
    stored = {"format": "tpvformer", "config": dataclasses.asdict(CONFIG), "epoch": 1}
    torch.save({**stored, "state_dict": TPVFormer(CONFIG, device="cpu").network.state_dict()}, tmp_path / "latest.pth")
    latest = TPVFormer.from_pretrained(tmp_path, device="cpu")
    torch.save({**stored, "state_dict": model.network.state_dict()}, tmp_path / "best.pth")
    expected = model.predict(images_of(rig), rig)
    assert_same(TPVFormer.from_pretrained(tmp_path, device="cpu").predict(images_of(rig), rig), expected)
    assert np.abs(latest.predict(images_of(rig), rig).voxels.probabilities - expected.voxels.probabilities).max() > 1e-6


def test_every_naming_of_the_same_weights_says_the_same(model: TPVFormer, rig: Path, tmp_path: Path) -> None:
    """Bit by bit; the configuration of the reference's files is given, or told by their shapes."""
    expected, reference = model.predict(images_of(rig), rig), export_reference(model.network)
    stale = {**reference, "tpv_head.encoder.ref_2d_hw": torch.zeros(1, 30, 1, 2)}
    for name, content in {
        "ours.pth": dict(model.network.state_dict()),
        "reference.pth": reference,
        "stale.pth": stale,
        "module.pth": {f"module.{key}": value for key, value in reference.items()},
        "wrapped.pth": {"state_dict": {f"module.{key}": value for key, value in reference.items()}, "epoch": 3},
        "mmdet3d.pth": {"state_dict": port_names(reference), "message_hub": {}, "meta": {"epoch": 24}},
        "bare.pth": {key: value for key, value in port_names(reference).items() if "ref_" not in key},
    }.items():
        torch.save(content, tmp_path / name)
        opened = TPVFormer.from_pretrained(tmp_path / name, config=CONFIG, device="cpu")
        assert_same(opened.predict(images_of(rig), rig), expected)
        if name not in ("ours.pth", "bare.pth"):  # where geometry is left out, the published anchors are assumed
            assert opened.report is not None
            assert opened.report.kind == ("mmdetection3d" if name == "mmdet3d.pth" else "reference")
            with pytest.warns(UserWarning, match="image attention with 4 heads and a grid over"):
                told = TPVFormer.from_pretrained(tmp_path / name, device="cpu")
                assert config_of(tmp_path / name) == told.config  # as the commands do
            assert told.config.name == "inferred" and told.config.data.label_map == "nuscenes"
            told.network.image_autocast = None  # the other model is fp32; "auto" may be bf16
            assert_same(told.predict(images_of(rig), rig), expected)
    save_file({key: value.contiguous() for key, value in reference.items()}, str(tmp_path / "reference.safetensors"))
    with pytest.warns(UserWarning, match="of no published size"):
        told = TPVFormer.from_pretrained(tmp_path / "reference.safetensors", device="cpu")
    told.network.image_autocast = None
    assert_same(told.predict(images_of(rig), rig), expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_are_recognised_by_their_shapes(name: str) -> None:
    """Shapes that the reference's own models have, where they are recorded; of our model under its names else."""
    config, manifest = load_config(name), ROOT / "tests" / "golden_data" / "manifest" / f"{name}.json"
    if manifest.is_file():
        recorded = json.loads(manifest.read_text())["state_dict"]
        shapes = {key: torch.empty(entry["shape"], device="meta") for key, entry in recorded.items()}
    else:
        shapes = export_reference(Network(config.model))
    assert infer_config(shapes, "w.pth") == config
    if config.model.view_attn == "cross_view":  # the port has no other
        assert infer_config(port_names(shapes), "w.pth") == config
    without = {key: value for key, value in shapes.items() if "ref_" not in key}
    assert infer_config(without, "w.pth") == config


def test_the_port_s_published_weights_are_recognised_by_their_shapes() -> None:
    assert infer_config(recorded("mmdet3d_keys"), "w.pth") == load_config("tpv_lidarseg")


def test_weights_that_are_not_whole_are_refused(model: TPVFormer, tmp_path: Path) -> None:
    reference = export_reference(model.network)
    file = tmp_path / "w.pth"

    def refused(content: Dict[str, Any], text: str, **more: Any) -> None:
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=text):
            TPVFormer.from_pretrained(file, device="cpu", **more)

    lost = {k: v for k, v in reference.items() if k != "tpv_head.level_embeds"}
    refused(lost, "encoder.level_embed", config=CONFIG)
    refused(lost, "has no tpv_head.level_embeds, by which its configuration could be told")
    lost = {k: v for k, v in reference.items() if "classifier.bias" not in k}
    refused(lost, "aggregator.classifier.bias", config=CONFIG)
    refused({**reference, "tpv_head.extra": torch.zeros(1)}, "tpv_head.extra", config=CONFIG)
    backbone = {k: v for k, v in reference.items() if k.startswith("img_backbone.")}
    refused(backbone, "a detector's image backbone alone", config=CONFIG)
    nineteen = {**reference, "tpv_aggregator.classifier.weight": torch.zeros(19, 16)}
    refused(nineteen, "has 19 classes, whose names are not known")
    # under a port's prefixes: what is not in the table of names is not guessed at
    port = port_names(reference)
    refused(
        {**port, "encoder.level_scale": torch.zeros(1)}, "no place in this model: encoder.level_scale", config=CONFIG
    )
    lost = {k: v for k, v in port.items() if k != "decode_head.classifier.bias"}
    refused(lost, "not in the mmdetection3d file: aggregator.classifier.bias", config=CONFIG)
    with pytest.warns(UserWarning, match="ref_3d_hw differs from this configuration's"):
        moved = dataclasses.replace(
            CONFIG.model, grid=dataclasses.replace(CONFIG.model.grid, pc_range=(-9, -9, -9, 9, 9, 9))
        )
        torch.save(reference, file)
        TPVFormer.from_pretrained(file, config=dataclasses.replace(CONFIG, model=moved), device="cpu")


@pytest.mark.parametrize(
    ("source", "expected"),
    [("https://example.com/w.pth", "is an address; download the file"), ("", "name is empty"), (" ", "name is empty")],
)
def test_a_word_that_can_be_no_file_is_refused(source: str, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        find_weights(source)


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["TPVFORMER_BOMB"],))


def test_a_malicious_file_is_refused_and_not_run(model: TPVFormer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TPVFORMER_BOMB", str(tmp_path / "went off"))
    torch.save({"state_dict": model.network.state_dict(), "more": Bomb()}, tmp_path / "w.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("w.pth", "raw.pth"):
        with pytest.raises(CheckpointError, match="refused, opening it would run|not a readable PyTorch checkpoint"):
            TPVFormer.from_pretrained(tmp_path / name, config=CONFIG)
    assert not (tmp_path / "went off").exists()


def test_the_hub_is_asked_where_no_path_is(model: TPVFormer, tmp_path: Path, monkeypatch) -> None:
    """With a stand-in of huggingface_hub, and without the library."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        TPVFormer.from_pretrained("owner/model")
    with pytest.raises(CheckpointError, match="no such file"):
        TPVFormer.from_pretrained("folder/model.pth")
    hub: Any = ModuleType("huggingface_hub")
    calls, shelf = [], tmp_path / "shelf"

    def create_repo(repo_id: str, private: bool, exist_ok: bool) -> None:
        calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(repo_id: str, folder_path: str, commit_message: str) -> str:
        TPVFormer.from_pretrained(folder_path, device="cpu").save_pretrained(shelf)
        return f"https://hub/{repo_id}"

    def snapshot_download(repo_id: str, revision: Any, allow_patterns: List[str]) -> str:
        calls.append(("download", repo_id, revision, tuple(allow_patterns)))
        if repo_id != "owner/model":
            raise RuntimeError("404: no such repository\nmore")
        return str(shelf)

    hub.create_repo, hub.upload_folder, hub.snapshot_download = create_repo, upload_folder, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert model.push_to_hub("owner/model", private=True) == "https://hub/owner/model"
    opened = TPVFormer.from_pretrained("owner/model", revision="v1", device="cpu")
    assert all(
        torch.equal(a, b) for a, b in zip(opened.network.state_dict().values(), model.network.state_dict().values())
    )
    assert calls == [
        ("create", "owner/model", True, True),
        ("download", "owner/model", "v1", ("config.json", "model.safetensors")),
    ]
    with pytest.raises(CheckpointError, match=r"the hub did not give it \(404: no such repository\)"):
        TPVFormer.from_pretrained("owner/other")
