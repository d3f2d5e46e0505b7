"""The remark on a checkout of the reference whose model code was changed, and where it is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Tuple

import pytest
import stand_in

from tpvformer import cli, upstream
from tpvformer.compat import checkout
from tpvformer.engine.distributed import launch
from tpvformer.engine.train import enter


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tuple[Path, str]:
    """A stand-in checkout and its first commit. A slow machine's git gets more time than users wait for it."""
    monkeypatch.setattr(checkout, "_SECONDS", 300.0)
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder, stand_in.make(folder)


def test_model_code_as_published_needs_no_word(tree: Tuple[Path, str], tmp_path: Path) -> None:
    folder, first = tree
    stand_in.git(folder, "apply", str(stand_in.PATCH))
    (folder / "tpvformer10/__pycache__").mkdir()
    (folder / "tpvformer10/__pycache__/x.pyc").write_bytes(b"0")
    os.utime(folder / "tpvformer10/modules/encoder.py", (1, 1))  # the index no longer knows that it is unchanged
    index = (folder / ".git/index").read_bytes()
    assert checkout.remarks(folder, first) == []
    assert (folder / ".git/index").read_bytes() == index
    assert checkout.remarks(tmp_path, first) == []  # no checkout of the reference


def test_changed_model_code_is_one_line(tree: Tuple[Path, str], monkeypatch) -> None:
    folder, first = tree
    (folder / "tpvformer10/modules/encoder.py").write_text("y = 3\n")
    (line,) = checkout.remarks(folder, first)
    assert line.startswith(f"1 file differs from {first[:7]} under tpvformer04/, tpvformer10/ (tpvformer10/modules/enc")
    assert "these changes have no effect; train.py and eval.py take --own-model" in line and "--no-own-model" in line
    stand_in.commit(folder, "mine")  # committed or not
    (folder / "tpvformer04/__init__.py").unlink()
    (folder / "tpvformer10/new file.py").write_text("\n")
    (folder / "tpvformer10/other.py").write_text("\n")
    (folder / "train.py").write_text("\nsomething else\n")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    (line,) = checkout.remarks(folder, first)
    assert line.startswith("4 files differ") and "(tpvformer04/__init__.py, tpvformer10/modules/encoder.py, " in line
    assert "new file.py, ...)" in line


def test_a_change_of_the_same_size_in_the_same_second(tree: Tuple[Path, str]) -> None:
    """Git compares whole seconds; the index's own time says that a file as young as it has to be read."""
    folder, _ = tree
    stand_in.git(folder, "config", "core.trustctime", "false")  # a test cannot set that time
    changed = folder / "tpvformer10/modules/encoder.py"
    changed.write_text("y = 5\n")
    os.utime(changed, (1_700_000_000, 1_700_000_000))
    first = stand_in.commit(folder, "five")
    assert checkout.remarks(folder, first) == []
    changed.write_text("y = 6\n")
    for file in (changed, folder / ".git/index"):
        os.utime(file, (1_700_000_000, 1_700_000_000))
    assert checkout.remarks(folder, first)[0].startswith("1 file differs")


def public_clone(tree: Tuple[Path, str], to: Path, address: str) -> str:
    """A clone without history of the stand-in's newest commit, which is returned; it says it came from ``address``."""
    folder, _ = tree
    (folder / "README.md").write_text("later\n")
    newest = stand_in.commit(folder, "later")
    stand_in.git(folder, "clone", "--quiet", "--depth", "1", folder.as_uri(), str(to))
    stand_in.git(to, "remote", "set-url", "origin", address)
    return newest


def test_a_clone_whose_history_begins_later(tree: Tuple[Path, str], tmp_path: Path, monkeypatch) -> None:
    """Its files are those of a commit with the same code; the first one is not there."""
    folder, first = tree
    to = tmp_path / "clone"
    newest = public_clone(tree, to, "https://example.org/somebody/TPVFormer.git")
    assert "cannot be told (git says: fatal: bad object" in checkout.remarks(to, first)[0]
    monkeypatch.setattr(checkout, "SAME_CODE", ("0" * 15, newest[:15]))
    assert checkout.remarks(to, first) == []
    (to / "tpvformer04/__init__.py").write_text("x = 5\n")
    stand_in.commit(to, "mine")
    assert checkout.remarks(to, first)[0].startswith(f"1 file differs from {newest[:7]} under")


@pytest.mark.parametrize("address", ["https://github.com/wzzheng/TPVFormer", "git@github.com:wzzheng/tpvformer.git"])
def test_a_clone_of_a_later_public_commit(address: str, tree: Tuple[Path, str], tmp_path: Path, monkeypatch) -> None:
    """Compared with the branch that was cloned; the clone's own commits do not move that."""
    to = tmp_path / "clone"
    public_clone(tree, to, address)
    assert checkout.remarks(to) == []
    (to / "tpvformer10/modules/encoder.py").write_text("y = 7\n")
    stand_in.commit(to, "mine")
    (line,) = checkout.remarks(to)
    assert line.startswith("1 file differs from origin/HEAD under"), line


def test_what_git_cannot_tell_is_one_line(tree: Tuple[Path, str], tmp_path: Path, monkeypatch) -> None:
    folder, first = tree
    (unknown,) = checkout.remarks(folder)
    assert "since 459bc06 cannot be told (git says: fatal: bad object 459bc06" in unknown and "\n" not in unknown
    (folder / ".git").rename(tmp_path / "gone")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert "cannot be told (git says: fatal: not a git repository" in checkout.remarks(folder, first)[0]
    monkeypatch.setattr(checkout, "_SECONDS", 0.2)
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 5\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert "(git took more than 0 s)" in checkout.remarks(folder, first)[0]
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "(there is no git)" in checkout.remarks(folder, first)[0]


def test_the_line_stands_in_the_log_of_training_and_evaluation(tree: Tuple[Path, str], monkeypatch) -> None:
    folder, first = tree
    monkeypatch.setattr(checkout, "COMMIT", first)
    monkeypatch.chdir(folder)
    assert enter("cpu")[2] == []
    (folder / "tpvformer04/modules/encoder.py").write_text("y = 3\n")
    _, _, (line,) = enter("cpu")
    assert line.startswith("1 file differs")


def test_elsewhere_the_script_says_the_line_once(tree: Tuple[Path, str], monkeypatch, tmp_path: Path, capsys) -> None:
    folder, first = tree
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "launch", lambda processes, argv: 0)
    monkeypatch.setattr(cli, "main", lambda argv: 0)
    monkeypatch.setattr(checkout, "COMMIT", first)
    (folder / "tpvformer04/modules/encoder.py").write_text("y = 3\n")
    assert upstream.main(str(folder / "train.py"), []) == 0
    assert capsys.readouterr().err.startswith("train.py: 1 file differs")
    monkeypatch.chdir(folder)
    assert upstream.main("train.py", []) == 0  # its log says it
    assert "differs" not in capsys.readouterr().err
    assert upstream.main("visualization/vis_frame.py", ["--ckpt-path", "x", "--py-config", "no.py"]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith("vis_frame.py: 1 file differs")
