"""``tpvformer completion``: a real bash reads the script and is asked what may follow."""

from __future__ import annotations

import argparse
import builtins
import shutil
from pathlib import Path
from typing import Any, List, Set

import programs
import pytest

from tpvformer.cli import COMMANDS, _parser, main
from tpvformer.commands.completion import script
from tpvformer.commands.parser import text

BASH = shutil.which("bash") or ""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: Any) -> Path:
    pytest.importorskip("shtab", reason="pip install tpvformer[completion]")
    file = tmp_path_factory.mktemp("completion") / "tpvformer"
    file.write_text(script(_parser([], whole=True), "bash"))
    return file


def offers(bash_script: Path, folder: Path, line: str) -> List[str]:
    """What bash offers for the last word of ``line``, typed in ``folder``."""
    words = line.split(" ")
    ask = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        "$(complete -p tpvformer | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); "
        'for reply in "${COMPREPLY[@]}"; do echo "$reply"; done'
    )
    done = programs.run([BASH, "--norc", "-c", ask, "bash", str(bash_script), *words], cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not BASH, reason="no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tpvformer tr", ["train"]),
        ("tpvformer train --pr", ["--processes"]),
        ("tpvformer predict --split ", ["val", "test"]),
        ("tpvformer predict --split te", ["test"]),
        ("tpvformer data ", ["infos", "check", "drive"]),
        ("tpvformer data infos --format p", ["pkl"]),
        ("tpvformer overlay r", ["revert"]),
        ("tpvformer completion ", ["bash", "zsh"]),
        ("tpvformer eval --device c", ["cuda", "cpu"]),
        ("tpvformer train --py", ["--py-config"]),
        ("tpvformer train --py-config mine", ["mine.py"]),
        ("tpvformer train --py-config tpv_o", ["tpv_occ3d"]),
        ("tpvformer eval --ckpt-path w", ["w.pth"]),
        ("tpvformer predict --rig r", ["rig.json"]),
        ("tpvformer results --work-dir ", ["more"]),
        ("tpvformer convert w", ["w.pth"]),
        ("tpvformer view more/a", ["more/a.npz"]),
        ("tpvformer check-geometry --sp", ["--split"]),
        ("tpvformer bench --steps ", []),
    ],
)
def test_bash_offers(bash_script: Path, tmp_path: Path, line: str, expected: List[str]) -> None:
    for name in ("mine.py", "w.pth", "rig.json", "more/a.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(offers(bash_script, tmp_path, line)) == sorted(expected)


@pytest.mark.skipif(not BASH, reason="no bash")
def test_bash_offers_every_command(bash_script: Path, tmp_path: Path) -> None:
    assert set(offers(bash_script, tmp_path, "tpvformer ")) == {command.name for command in COMMANDS}


def test_each_argument_with_a_value_is_known_for_what_it_is() -> None:
    """A new option that takes text is a path, has choices, or is named here as something else."""
    pytest.importorskip("shtab")
    parser = _parser([], whole=True)
    script(parser, "bash")
    plain: Set[str] = set()
    todo: List[argparse.ArgumentParser] = [parser]
    while todo:
        for action in todo.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                todo += action.choices.values()
            elif (
                action.nargs != 0
                and action.type in (None, text)
                and not (action.choices or hasattr(action, "complete"))
            ):
                plain.add(action.dest)
    assert plain == {"assignments", "version", "splits", "prefix", "paint", "title", "rest", "scene", "pose_of"}


def test_zsh_is_told_of_every_option(capsys: Any) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "zsh"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("#compdef tpvformer\n")
    assert "--max-processes" in said and "--submission" in said and ":(val test)" in said and "--py_config" not in said


def test_without_shtab_one_sentence_names_the_extra(capsys: Any, monkeypatch: Any) -> None:
    real = builtins.__import__

    def absent(name: str, *more: Any, **named: Any) -> Any:
        if name == "shtab":
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert main(["completion", "bash"]) == 2
    said = capsys.readouterr()
    assert said.err == "tpvformer completion: completion needs shtab; pip install 'tpvformer[completion]'\n"
    assert not said.out
