"""``tpvformer demo`` and the weights inside the package. How good they are is not asked here: they may be exchanged."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List

import cv2
import numpy as np
import pytest
import torch
from engine_tools import ROOT
from safetensors.torch import load_file

from tpvformer import TPVFormer
from tpvformer.cli import _parser, main
from tpvformer.compat import CheckpointError, load_config
from tpvformer.compat.pretrained import find_weights
from tpvformer.predict import demo
from tpvformer.predict.read_results import read_result
from tpvformer.runtime.compiling import can_keep

pytestmark = pytest.mark.usefixtures("quick")
EMBEDDED = ROOT / "tpvformer" / "weights" / "demo.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    """A folder in which the demo has run."""
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(folder / "first look"), "--device", "cpu"]) == 0
    return folder / "first look"


def files_of(folder: Path) -> Dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_file_inside_is_small_and_fits_its_configuration() -> None:
    assert EMBEDDED.stat().st_size < 8e6
    tensors = load_file(str(EMBEDDED))
    model = TPVFormer.from_pretrained("demo", device="cpu")
    assert model.config.model == load_config(ROOT / "config" / "demo.py").model
    named = dict(model.network.named_parameters())
    assert {tensors[name].dtype for name in named} == {torch.float16}
    assert all(tensors[name].dtype != torch.float16 for name in set(tensors) - set(named))
    assert {value.dtype for value in named.values()} == {torch.float32}
    assert all(torch.equal(value, tensors[name].float()) for name, value in named.items())
    assert set(tensors) == set(model.network.state_dict())


def test_the_name_and_paths_of_that_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_weights("demo") == EMBEDDED
    assert find_weights(Path("demo")) == Path("demo") and find_weights("./demo") == Path("demo")
    (tmp_path / "demo").mkdir()
    assert find_weights("demo") == EMBEDDED  # a folder without weights is in nobody's way
    (tmp_path / "demo" / "latest.pth").touch()
    both = "demo: is the name of the weights inside this package, and there are weights called so here; write ./demo"
    with pytest.raises(CheckpointError, match=re.escape(both)):
        TPVFormer.from_pretrained("demo")
    assert find_weights("./demo") == find_weights(Path("demo")) == Path("demo", "latest.pth")
    shutil.rmtree(tmp_path / "demo")
    (tmp_path / "demo").touch()
    with pytest.raises(CheckpointError, match=re.escape(both)):
        find_weights("demo")
    assert find_weights("./demo") == Path("demo")


def test_what_it_says_and_writes(place: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").touch()  # its weights are the package's, whatever is called so here
    before = files_of(place)
    assert main(["demo", "--out", str(place), "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:5]] == ["street", "page", "picture", "score", "next"]
    score = r"this one frame: \d+\.\d % of \d{5} points right, \d+\.\d % mIoU over the \d+ classes in it"
    assert re.fullmatch(f"score +{score}", said[3])
    for line, name in zip(said, ("street", "page.html", "picture.png")):
        assert f" {place / name}: " in line
    assert "seed 8001; the model learned in another" in said[0]
    assert sorted(file.name for file in place.iterdir()) == ["page.html", "picture.png", "prediction", "street"]
    (archive,) = (place / "prediction").glob("*.npz")
    result = read_result(archive)
    assert result.true_point_labels is not None and result.true_voxels is not None and len(result.cameras) == 6
    assert result.cameras[0].size == demo.SIZE
    page = (place / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "TPVFormer: a drawn street, seed 8001" in page
    assert 'id="f0-true-voxels"' in page and 'id="f1-voxels"' not in page
    assert cv2.imread(str(place / "picture.png")).shape[1] > 1900
    assert files_of(place) == before  # the same again, byte by byte


def test_what_it_proposes_next_can_be_typed(place: Path, capsys: Any) -> None:
    """The folder of these tests has a blank in its name."""
    assert main(["demo", "--out", str(place), "--device", "cpu"]) == 0
    typed = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith(" " * 11)]
    assert [words[:2] for words in typed] == [["tpvformer", "predict"], ["make", "demo"]]
    assert main([*typed[0][1:], "--device", "cpu"]) == 0
    (again,), (first,) = ((place / name).glob("*.npz") for name in ("again", "prediction"))
    assert np.array_equal(read_result(again).voxels, read_result(first).voxels)
    assert np.array_equal(read_result(again).point_labels, read_result(first).point_labels)
    shutil.rmtree(place / "again")


@pytest.mark.parametrize(
    "more",
    [
        ["eval"],
        ["picture", "--out", "frame.png"],
        ["predict", "--index", "0", "--out", "classes"],
        ["export", "--out", "w.pth"],
    ],
    ids=lambda more: more[0],
)
def test_commands_take_the_name(place: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, more: List[str]) -> None:
    monkeypatch.chdir(tmp_path)
    infos = place / "street" / "nuscenes_infos_val.pkl"
    settings = [f"data.root={place / 'street'}", f"data.val_infos={infos}", "data.workers=0", "train.precision=fp32"]
    words = [word for setting in settings for word in ("--set", setting)]
    device = [] if more[0] == "export" else ["--device", "cpu"]
    assert main([*more, "--ckpt-path", "demo", *device, *words]) == 0
    said = capsys.readouterr().out
    if more[0] == "eval":
        assert "miou over the" in said
    else:
        assert (tmp_path / more[-1]).exists()


@pytest.mark.parametrize("name", ["page.html", "picture.png", "prediction", "street"])
def test_nothing_of_anybody_else_s_is_overwritten(tmp_path: Path, capsys: Any, name: str) -> None:
    (tmp_path / name).write_text("mine")
    assert main(["demo", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert capsys.readouterr().err == (
        f"tpvformer demo: {tmp_path / name} exists and is not from a demo; choose another --out, or move it away\n"
    )
    assert files_of(tmp_path) == {name: b"mine"}


def test_refusals_are_one_sentence(place: Path, tmp_path: Path, capsys: Any) -> None:
    before = files_of(place)
    (tmp_path / "file").touch()
    for words, text in (
        (["--out", str(place), "--seed", "77"], "holds another synthetic set"),
        (["--out", str(tmp_path / "new"), "--seed", "1"], "--seed 1 is the city that the model was trained in"),
        (["--out", str(tmp_path / "new"), "--seed", "-1"], "seed is -1; expected a whole number from 0"),
        (["--out", str(tmp_path / "file")], "cannot write"),
        (["--out", str(tmp_path / "new"), "--device", "toaster"], "toaster"),
    ):
        assert main(["demo", "--device", "cpu", *words]) == 2, words
        said = capsys.readouterr().err
        assert text in said and said.count("\n") == 1
    assert files_of(place) == before


def test_its_street_is_of_the_size_that_was_trained_on_and_of_another_city() -> None:
    """As the Makefile makes the training's."""
    (line,) = re.findall(r"tpvformer synth .*", (ROOT / "Makefile").read_text())
    made = _parser(["synth"]).parse_args([re.sub(r"\$\(\w+\)", "x", word) for word in line.split()[1:]])
    assert made.size == demo.SIZE and made.seed == demo.TRAINING_SEED != demo.SEED


def test_help_shows_an_example(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    said = capsys.readouterr().out
    (example,) = re.findall(r"Example: tpvformer (.*)", said)
    assert _parser(["demo"]).parse_args(example.split()).seed == 77 and "out/demo-8001" in said


def test_a_machine_without_a_folder_for_kernels(capsys: Any, monkeypatch: Any) -> None:
    """A package that may not be written, and no home either."""
    for name in [name for name in sys.modules if name.startswith(("tpvformer.data.street", "tpvformer.data.synth"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    can_keep.cache_clear()
    try:
        assert main(["demo", "--device", "cpu"]) == 2
    finally:
        can_keep.cache_clear()
    said = capsys.readouterr().err
    assert said.startswith("tpvformer demo: ") and "set NUMBA_CACHE_DIR to a folder" in said and said.count("\n") == 1
