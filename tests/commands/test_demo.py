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
from tpvformer.compat.pretrained import embedded_file, find_weights
from tpvformer.predict import demo
from tpvformer.predict.read_results import read_result
from tpvformer.runtime.compiling import can_keep

pytestmark = pytest.mark.usefixtures("quick")
NAMES = ("demo", "demo_dense")


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    """A folder in which the demo has run."""
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(folder / "first look"), "--device", "cpu"]) == 0
    return folder / "first look"


def files_of(folder: Path) -> Dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_the_file_inside_is_small_and_fits_its_configuration(name: str) -> None:
    assert embedded_file(name).stat().st_size < 8e6
    tensors = load_file(str(embedded_file(name)))
    model = TPVFormer.from_pretrained(name, device="cpu")
    assert model.config.model == load_config(ROOT / "config" / f"{name}.py").model
    named = dict(model.network.named_parameters())
    assert {tensors[name].dtype for name in named} == {torch.float16}
    assert all(tensors[name].dtype != torch.float16 for name in set(tensors) - set(named))
    assert {value.dtype for value in named.values()} == {torch.float32}
    assert all(torch.equal(value, tensors[name].float()) for name, value in named.items())
    assert set(tensors) == set(model.network.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_the_name_and_paths_of_that_name(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_weights(name) == embedded_file(name)
    assert find_weights(Path(name)) == Path(name) and find_weights(f"./{name}") == Path(name)
    (tmp_path / name).mkdir()
    assert find_weights(name) == embedded_file(name)  # a folder without weights is in nobody's way
    (tmp_path / name / "latest.pth").touch()
    both = f"{name}: is the name of weights inside this package, and there are weights called so here; write ./{name}"
    with pytest.raises(CheckpointError, match=re.escape(both)):
        TPVFormer.from_pretrained(name)
    assert find_weights(f"./{name}") == find_weights(Path(name)) == Path(name, "latest.pth")
    shutil.rmtree(tmp_path / name)
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=re.escape(both)):
        find_weights(name)
    assert find_weights(f"./{name}") == Path(name)


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


def test_the_dense_weights_predict_free_space(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "dense"
    assert main(["demo", "--dense", "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "make demo" not in said and "config/demo_dense.py" in said
    (archive,) = (out / "prediction").glob("*.npz")
    result = read_result(archive)
    free = result.class_names.index("free")
    assert result.true_voxels is not None and result.scanned is not None and result.frame == "ego"
    for voxels in (result.voxels, result.true_voxels):
        assert free in voxels and (voxels != free).any()
    assert ((result.true_voxels != free) & ~result.scanned).any()  # labels where no point is: the dense ones
    (typed,) = (shlex.split(line) for line in said.splitlines() if line.strip().startswith("tpvformer"))
    assert main([*typed[1:], "--device", "cpu"]) == 0
    (again,) = (out / "again").glob("*.npz")
    assert np.array_equal(read_result(again).voxels, result.voxels)
    assert cv2.imread(str(out / "picture.png")).shape[1] > 1900
    assert main(["demo", "--out", str(out), "--device", "cpu"]) == 2  # a street without dense labels
    assert str(out / "street") in capsys.readouterr().err


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
