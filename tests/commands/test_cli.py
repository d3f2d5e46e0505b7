"""The command line: quick help, one-line errors, and each command end to end on a tiny set."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import List

import cv2
import numpy as np
import programs
import pytest
import torch
from engine_tools import POINTS, environment, tiny_config, tiny_model, write_config
from tiny_nuscenes import write_tiny

from tpvformer import ops
from tpvformer.cli import main
from tpvformer.data.dataset import FrameDataset
from tpvformer.predict import encoded_frame as predict

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with tiny.py, its data, and random weights."""
    folder = tmp_path_factory.mktemp("cli")
    write_config(folder / "tiny.py", tiny_config(write_tiny(folder / "set", POINTS)))
    torch.save(tiny_model().state_dict(), folder / "weights.pth")
    return folder


def arguments(place: Path, command: str, *more: str) -> List[str]:
    return [command, "--py-config", str(place / "tiny.py"), "--device", "cpu", *more]


def test_help_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['tpvformer', '--help']; import runpy\n"
    code += "try: runpy.run_module('tpvformer', run_name='__main__')\n"
    code += "except SystemExit as end: print('STATUS', end.code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    done = programs.run([sys.executable, "-c", code], env=environment())
    assert "STATUS 0 False False" in done.stdout
    for command in ("train", "eval", "bench", "synth", "check-geometry", "results", "picture"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("train.epoch=3", "did you mean 'epochs'?"),
        ("train.epochs=0", "train.epochs is 0; expected 1 or more"),
        ("data.batch_size=two", "expected int, got 'two'"),
        ("data.root=/nowhere", "/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(place: Path, assignment: str, text: str, capsys) -> None:
    more = ("--set", assignment, "--work-dir", str(place / "w"))
    assert main(arguments(place, "train", *more)) == 2
    err = capsys.readouterr().err
    assert err.startswith("tpvformer train: ")
    assert err.count("\n") == 1
    assert text in err


def test_a_set_without_frames_is_called_that(place: Path, tmp_path: Path, capsys) -> None:
    empty = tmp_path / "none.pkl"
    empty.write_bytes(pickle.dumps({"infos": [], "metadata": {"version": "v1.0-mini"}}))
    more = ("--set", f"data.train_infos={empty}", "--work-dir", str(tmp_path / "w"))
    assert main(arguments(place, "train", *more)) == 2
    assert capsys.readouterr().err.startswith(f"tpvformer train: {empty}: holds no frames; expected one at least")


def test_files_that_are_not_there(place: Path, capsys) -> None:
    assert main(arguments(place, "eval", "--ckpt-path", "no.pth")) == 2
    assert main(["train", "--py-config", "no.py"]) == 2
    assert main(["results", "--work-dir", str(place)]) == 2
    assert main(arguments(place, "picture", "--ckpt-path", str(place / "weights.pth"), "--index", "7")) == 2
    assert "frames 0 to 6" in capsys.readouterr().err


def test_a_defect_of_ours_keeps_its_traceback(place: Path, monkeypatch) -> None:
    def broken(*_):
        raise ValueError("unforeseen")

    monkeypatch.setattr("tpvformer.engine.evaluation.checkpoint_scores.evaluate_checkpoint", broken)
    with pytest.raises(ValueError, match="unforeseen"):
        main(arguments(place, "eval", "--ckpt-path", str(place / "weights.pth")))


@pytest.mark.parametrize("words", [[], ["doctor", "--device", "cpu"]])
def test_a_reader_may_leave(words: List[str]) -> None:
    """As in ``tpvformer doctor | head -1``: no traceback, and the status that a shell gives to such an end."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "tpvformer", *words]
    done = programs.run(command, stdout=writes, env=environment())
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("word", ["", " "])
def test_an_empty_backend_variable_is_unset(place: Path, word: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TPVFORMER_OPS", word)
    assert ops.asked() is None
    more = ("--ckpt-path", str(place / "weights.pth"), "--split", "test")
    assert main(arguments(place, "eval", *more)) == 2
    assert "--submission FILE.zip" in capsys.readouterr().err  # the command's own sentence: it was started


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("cpu", "TPVFORMER_OPS is 'cpu'; expected one of reference, numba, triton, mx_driving, or unset"),
        ("Numba", "did you mean 'numba'?"),
    ],
)
@pytest.mark.parametrize("command", ["results --work-dir w", "predict --ckpt-path demo --rig r.json", "doctor"])
def test_a_misspelt_backend_is_one_sentence(word: str, text: str, command: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TPVFORMER_OPS", word)
    assert main(command.split()) == (1 if command == "doctor" else 2)
    said = capsys.readouterr()
    if command == "doctor":
        assert f"fix first: TPVFORMER_OPS is '{word}'" in said.out and text in said.out
    else:
        assert said.err.startswith("tpvformer ") and text in said.err and said.err.count("\n") == 1


def test_a_backend_of_another_device_is_one_sentence(place: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TPVFORMER_OPS", "triton")
    more = ("--ckpt-path", str(place / "weights.pth"), "--index", "0", "--out", str(tmp_path))
    assert main(arguments(place, "predict", *more)) == 2
    err = capsys.readouterr().err
    assert "TPVFORMER_OPS=triton is for cuda, but the tensors are on cpu; unset it" in err and err.count("\n") == 1
    assert main(["doctor", "--device", "cpu"]) == 1
    assert "fix first: TPVFORMER_OPS=triton is for cuda" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_name_that_the_terminal_does_not_know_loses_no_frame(place: Path, tmp_path: Path, encoding: str) -> None:
    out = tmp_path / "\u0434\u043e\u0440\u043e\u0433\u0430 \u8def"
    words = arguments(place, "predict", "--ckpt-path", str(place / "weights.pth"), "--out", str(out))
    command = [sys.executable, "-m", "tpvformer", *words]
    env = environment(PYTHONIOENCODING=encoding, PYTHONUTF8="1")  # files by any name, a terminal that has few
    done = programs.run(command, env=env)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*.npz"))) == len(POINTS)
    assert done.stdout.count("\\u0434\\u043e") == len(POINTS)


def test_logs_hold_every_name_whatever_the_locale(place: Path, tmp_path: Path) -> None:
    config = tmp_path / "\u8def.py"
    config.write_text((place / "tiny.py").read_text().replace("'tiny'", "'\u8def'"), encoding="utf-8")
    words = ["train", "--py-config", str(config), "--device", "cpu", "--max-steps", "1"]
    command = [sys.executable, "-m", "tpvformer", *words, "--work-dir", str(tmp_path / "w")]
    env = environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C", PYTHONCOERCECLOCALE="0")
    done = programs.run(command, env=env)
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "w").glob("*.log")
    assert "\u8def on 1 x cpu" in log.read_text(encoding="utf-8")


def test_overrides_reach_the_run(place: Path, tmp_path: Path) -> None:
    more = ("--work-dir", str(tmp_path), "--max-epochs", "3", "--set", "train.seed=5", "--max-steps", "1")
    assert main(arguments(place, "train", *more)) == 0
    dumped = (tmp_path / "config.yaml").read_text()
    assert "epochs: 3" in dumped
    assert "seed: 5" in dumped


def test_eval_with_controls(place: Path, tmp_path: Path, capsys) -> None:
    scores = tmp_path / "deep" / "scores.json"
    more = ("--permute-cameras", "--json", str(scores))
    assert main(arguments(place, "eval", "--ckpt-path", str(place / "weights.pth"), *more)) == 0
    stored = json.loads(scores.read_text())
    assert stored["pts"]["miou"] == pytest.approx(stored["metrics"]["miou_points"]["value"])
    out = capsys.readouterr().out
    assert "miou_reference" in out
    assert "the colour of the point alone, no network" in out


def test_picture(place: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "deep" / "frame.png"
    assert main(arguments(place, "picture", "--ckpt-path", str(place / "weights.pth"), "--out", str(out))) == 0
    assert cv2.imread(str(out)).shape[2] == 3
    assert "tiny, validation frame 0" in capsys.readouterr().out


def test_frame_classes_agree_with_each_other(place: Path) -> None:
    config = tiny_config(write_tiny(place / "set", POINTS))
    dataset = FrameDataset(config.data, config.model.grid, "val", 0)
    classes = predict.predict_frame(tiny_model(), dataset, 1, config, torch.device("cpu"))
    sample = dataset[1]
    assert classes.point_labels.shape == (POINTS[1],)
    assert classes.voxel_labels.shape == classes.true_voxels.shape == config.model.grid.shape
    free = np.ones(config.model.grid.shape, bool)
    free[tuple(sample.voxel_coords.numpy().T)] = False
    assert not classes.voxel_labels[free].any()
    rows = {int(r): c for r, c in zip(sample.point2voxel, classes.point_labels)}
    assert all(classes.point_labels[i] == rows[int(r)] for i, r in enumerate(sample.point2voxel))
