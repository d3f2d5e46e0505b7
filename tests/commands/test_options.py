"""Options are called the same in every command and say what holds without them; weights that carry their configuration
need no other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest
import torch
from engine_tools import CPU, POINTS, tiny_config, tiny_model, write_config
from tiny_nuscenes import write_tiny

from tpvformer.cli import _parser, main
from tpvformer.commands.parser import text
from tpvformer.engine.checkpoint.state import Progress, capture
from tpvformer.engine.optim import Stepper


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[Tuple[str, argparse.ArgumentParser]]:
    """Every command, those below ``data`` too."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for word, child in action.choices.items():
            yield from commands(child, f"{name} {word}".strip())


ALL = dict(commands(_parser([], whole=True)))
SHOWN = [
    (name, action)
    for name, parser in ALL.items()
    for action in parser._actions
    if action.help != argparse.SUPPRESS and action.dest != "help"
]


def test_every_command_and_option_says_what_it_is() -> None:
    assert len(ALL) == 21 and len(SHOWN) > 80
    assert not [name for name, parser in ALL.items() if not (parser.description or "").endswith(".")]
    assert not [(name, action.dest) for name, action in SHOWN if not action.help]
    assert not [(name, word) for name, action in SHOWN for word in action.option_strings if "_" in word]


def test_every_default_is_named() -> None:
    silent = [
        f"{name} {action.option_strings[0]}"
        for name, action in SHOWN
        if action.option_strings and action.nargs != 0 and action.default and "default" not in str(action.help)
    ]
    assert not silent


def test_the_same_word_means_the_same() -> None:
    """One name, one kind of value; --out is a file or a folder, --split what a command has."""
    kinds: Dict[str, Set[Tuple[Any, ...]]] = {}
    for _, action in SHOWN:
        for word in action.option_strings:
            kinds.setdefault(word, set()).add((action.dest, str(action.metavar), action.nargs))
    several = {word: kind for word, kind in kinds.items() if len(kind) > 1}
    assert set(several) == {"--out", "--rig"}, several  # check-geometry's --rig is another name of --infos
    assert {metavar for _, metavar, _ in several["--out"]} == {"FILE", "DIR"}


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["bench", "--py-config", "c", "--out", "f"], "json", Path("f")),
        (["data", "check", "--split", "a", "b"], "splits", ["a", "b"]),
        (["train", "--py_config=c_d.py", "--work_dir", "e_f"], "work_dir", Path("e_f")),
        (["train", "--py_config=c_d.py"], "py_config", "c_d.py"),
        (["train", "--py-config", "c", "--set", "data.root=a_b"], "assignments", ["data.root=a_b"]),
    ],
)
def test_former_and_underscored_names_are_taken(words: List[str], name: str, value: Any) -> None:
    assert getattr(_parser(words).parse_args(words), name) == value


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, action) for name, action in SHOWN if action.nargs != 0 and action.type is not text],
    ids=lambda value: value if isinstance(value, str) else value.dest,
)
def test_an_empty_value_is_one_sentence(
    name: str, option: argparse.Action, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """As from an unset shell variable. To pathlib an empty path is the current folder: nothing may be written there."""
    monkeypatch.chdir(tmp_path)
    words = [option.option_strings[0], ""] if option.option_strings else ["", ""]
    with pytest.raises(SystemExit) as end:
        main([*name.split(), *words])
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (2, "") and said.err.count("\n") == 1
    assert "but it is empty (" in said.err or "'' is not known; expected" in said.err
    assert not list(tmp_path.iterdir())


def test_the_texts_that_may_be_empty() -> None:
    may = sorted(f"{name} {action.option_strings[0]}" for name, action in SHOWN if action.type is text)
    assert may == ["data infos --prefix", "synth --prefix", "view --title"]


@pytest.fixture(scope="module")
def place(quick: None, tmp_path_factory: Any) -> Path:
    """The same weights: a run's checkpoint in its work dir, a folder to share, and alone."""
    folder = tmp_path_factory.mktemp("stored")
    config = tiny_config(write_tiny(folder / "set", POINTS))
    write_config(folder / "tiny.py", config)
    model = tiny_model()
    checkpoint = capture(model, Stepper(model, config.optim, CPU, "fp32"), config, Progress())
    (folder / "run").mkdir()
    torch.save(checkpoint, folder / "run" / "latest.pth")
    (folder / "run" / "config.yaml").write_text(config.dump())  # as a run does: weights alone name no places
    assert main(["convert", str(folder / "run"), str(folder / "shared")]) == 0
    torch.save(model.state_dict(), folder / "alone.pth")
    return folder


def data_of(place: Path) -> List[str]:
    """Where the frames are, which a shared folder does not say."""
    return ["--set", f"data.root={place / 'set'}", "--set", f"data.val_infos={place / 'set' / 'infos.pkl'}"]


@pytest.mark.parametrize("weights", ["run", "run/latest.pth", "shared", "shared/model.safetensors"])
def test_stored_configurations_are_found(place: Path, tmp_path: Path, weights: str, capsys: Any) -> None:
    more = data_of(place) if weights.startswith("shared") else []
    words = ["--ckpt-path", str(place / weights), *more]
    assert main(["predict", *words, "--device", "cpu", "--index", "0", "--out", str(tmp_path)]) == 0, (
        capsys.readouterr()
    )
    assert (tmp_path / "sample0.npz").exists()


def test_other_commands_find_them_too(place: Path, tmp_path: Path) -> None:
    words = ["--ckpt-path", str(place / "shared"), *data_of(place)]
    assert main(["picture", *words, "--device", "cpu", "--out", str(tmp_path / "p.png")]) == 0
    assert main(["eval", *words, "--device", "cpu", "--json", str(tmp_path / "s.json")]) == 0
    assert main(["export", *words, "--out", str(tmp_path / "w.pth")]) == 0
    assert main(["export", "--ckpt-path", str(tmp_path / "w.pth"), "--out", str(tmp_path / "again.pth")]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"p.png", "s.json", "w.pth"}


def test_a_given_configuration_is_taken_with_a_folder(place: Path, tmp_path: Path) -> None:
    words = ["--py-config", str(place / "tiny.py"), "--ckpt-path", str(place / "shared"), "--device", "cpu"]
    assert main(["predict", *words, "--index", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "sample1.npz").exists()


def test_without_any_configuration_one_sentence_says_so(place: Path, tmp_path: Path, capsys: Any) -> None:
    for command in ("predict", "picture", "eval", "export"):
        more = ["--out", str(tmp_path / "o.pth")] if command == "export" else []
        assert main([command, "--ckpt-path", str(place / "alone.pth"), *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"tpvformer {command}: {place / 'alone.pth'}: has no tpv_head.level_embeds, by which")
        assert said.endswith("else give the configuration (--py-config, config=)\n") and said.count("\n") == 1
    for absent in (place / "none.pth", place / "set"):
        assert main(["predict", "--ckpt-path", str(absent)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["train"])
