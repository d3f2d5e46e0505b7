"""Weights that hold NaN or infinite numbers: named by every command that uses them, which ends with status 2."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest
import torch
from engine_tools import tiny_config, tiny_model, write_config
from tiny_nuscenes import write_tiny

from tpvformer import TPVFormer
from tpvformer.cli import main
from tpvformer.compat import CheckpointError, load_weights
from tpvformer.compat.tensors import read_archive
from tpvformer.engine.checkpoint import files as store

pytestmark = pytest.mark.usefixtures("quick")
BAD = ("neck.lateral.0.bias", "encoder.layers.0.ffn.linear1.weight")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    """A tiny set, its configuration and weights of which two tensors are bad."""
    place = tmp_path_factory.mktemp("bad")
    write_config(place / "tiny.py", tiny_config(write_tiny(place / "set", (40, 90))))
    state = tiny_model().state_dict()
    state[BAD[0]][0], state[BAD[1]][0, 0] = float("nan"), float("-inf")
    torch.save(state, place / "bad.pth")
    return place


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["eval"], ""), (["predict", "--out", "made"], "made"), (["picture", "--out", "made.png"], "made.png"),
        (["export", "--out", "made.pth"], "made.pth"), (["export", "--pt2", "made.pt2"], "made.pt2"),
    ],
)  # fmt: skip
def test_commands_name_the_tensors(
    folder: Path, words: List[str], file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    device = [] if words[0] == "export" else ["--device", "cpu"]
    assert main([*words, "--py-config", "tiny.py", "--ckpt-path", "bad.pth", *device]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and all(name in lines[0] for name in BAD) and "2 tensors hold NaN" in lines[0], lines
    assert not file or not (folder / file).exists()


def test_convert_goes_on_where_it_is_told_to(folder: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["convert", str(folder / "bad.pth"), str(folder / "out.pth"), "--py-config", str(folder / "tiny.py")]
    assert main(command) == 2
    assert "2 tensors hold NaN" in capsys.readouterr().err and not (folder / "out.pth").exists()
    with pytest.warns(UserWarning, match="2 tensors hold NaN"):
        assert main([*command, "--allow-nonfinite"]) == 0
    assert (folder / "out.pth").exists() and "2 tensors hold NaN" in capsys.readouterr().out


def test_a_run_of_one_s_own_does_not_go_on_with_them(folder: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(folder)
    command = ["train", "--py-config", "tiny.py", "--work-dir", "run", "--device", "cpu", "--set"]
    assert main([*command, "train.epochs=1"]) == 0
    content = read_archive(folder / "run/epoch_1.pth")
    for name in BAD:
        content["state_dict"][name].view(-1)[0] = float("nan")
    store.write(folder / "run", "epoch_1.pth", content)
    before = {file.name for file in (folder / "run").glob("*.pth")}
    capsys.readouterr()
    assert main([*command, "train.epochs=2"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 tensors hold NaN" in said and all(name in said for name in BAD) and "--resume-from" in said
    assert {file.name for file in (folder / "run").glob("*.pth")} == before


def test_python(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="neck.lateral.0.bias"):
        TPVFormer.from_pretrained(
            folder / "bad.pth", config=tiny_config(write_tiny(folder / "other", (9,))), device="cpu"
        )
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_weights(model, folder / "bad.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
