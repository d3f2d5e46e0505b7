"""What is typed wrongly, or as other programs want it, is one line that says what to type; --help shows an example."""

from __future__ import annotations

import re
import sys
from typing import Any, List

import programs
import pytest
from engine_tools import environment

from tpvformer import __version__
from tpvformer.cli import COMMANDS, _parser, main

CALLS = [command.name for command in COMMANDS if command.name != "data"] + ["data infos", "data check"]


def refused(line: str, capsys: Any) -> str:
    """The one line on stderr by which a command line is refused."""
    with pytest.raises(SystemExit) as end:
        main(line.split())
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (2, "") and said.err.count("\n") == 1
    return said.err


def help_of(words: List[str], capsys: Any) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("call", CALLS)
def test_every_help_ends_with_an_example_that_can_be_typed(call: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = help_of([*call.split(), "--help"], capsys)
    (example,) = re.findall(rf"^Example: (tpvformer {call}.*)$", said, re.MULTILINE)  # on one line
    words = example.split()[1:]
    assert _parser(words).parse_args(words).run is not None
    assert help_of(["help", *call.split()], capsys) == said


def test_version_and_help_need_no_torch(capsys: Any) -> None:
    assert help_of(["--version"], capsys) == f"tpvformer {__version__}\n"
    assert help_of(["help"], capsys) == help_of(["--help"], capsys)
    code = "import sys; from tpvformer.cli import main\ntry: main([sys.argv[1]])\n"
    code += "except SystemExit: print('TORCH', 'torch' in sys.modules)"
    for word in ("--version", "help", "trian"):
        command = [sys.executable, "-c", code, word]
        done = programs.run(command, env=environment())
        assert done.stdout.endswith("TORCH False\n"), done.stderr


@pytest.mark.parametrize(
    ("word", "meant"),
    [("trian", "train"), ("Predict", "predict"), ("evaluate", "eval"), ("visualize", "view"), ("version", "--version")],
)
def test_a_mistyped_command(word: str, meant: str, capsys: Any) -> None:
    assert f"there is no command {word!r}; did you mean {meant}? (tpvformer --help" in refused(word, capsys)
    assert f"did you mean {meant}?" in refused(f"help {word}", capsys)


def test_a_command_like_no_other_gets_no_guess(capsys: Any) -> None:
    assert "did you mean" not in refused("qqqqqq", capsys)
    assert "'chek' is not known; expected infos or check or drive; did you mean check?" in refused("data chek", capsys)
    assert "'vla' is not known; expected val or test" in refused("predict --ckpt-path x --split vla", capsys)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("train --lr 1", "there is no option --lr; give --set optim.lr=1 "),
        ("train --py-config demo --learning_rate=1e-3", "no option --learning-rate; give --set optim.lr=1e-3 "),
        ("train --py-config demo --amp", "no option --amp; give --set train.precision=bf16 "),
        ("train --config demo", "no option --config; give --py-config demo "),
        ("predict --config demo --weights w.pth", "no option --config; give --py-config demo "),
        ("predict --weights w.pth", "no option --weights; give --ckpt-path w.pth "),
        ("train --py-config demo --weights w.pth", "give --set train.load_from=w.pth "),
        ("train --py-config demo --batch-size 2", "give --set data.batch_size=2 "),
        ("train --py-config demo --epochs 3", "give --set train.epochs=3 "),
        ("train --py-config demo --num-epochs 3", "give --max-epochs 3 "),
        ("train --py-config demo --gpus 8", "give --processes 8 "),
        ("train --py-config demo --launcher pytorch", "give --processes N "),
        ("predict --ckpt-path w --gpu 0", "give --device NAME: auto, cpu"),
        ("predict --ckpt-path w --output-dir o", "give --out o "),
        ("export --ckpt-path demo --format onnx", "there is no option --format; give --onnx FILE "),
        ("export --ckpt-path demo --format=.pt2", "there is no option --format; give --pt2 FILE "),
        ("export --ckpt-path demo --include engine", "give one of --onnx FILE, --pt2 FILE, --aoti FILE, --out FILE "),
        ("train --py-config demo --format semantickitti", "give --set data.format=semantickitti "),
        ("predict --ckpt-path demo --out=", "argument --out: expected the name of a folder, but it is empty"),
        ("eval --ckpt-path w --dim=32", "give --set model.dim=32 "),
        ("synth --out o --framse 3", "no option --framse; did you mean --frames?"),
        ("synth --out o --lr 3", "no option --lr; expected --frames, --kitti"),
        ("synth --out o --workers x", "'x' is not a whole number above 0"),
        ("data infos --version v --weights w", "tpvformer data infos: there is no option --weights; expected"),
        ("train", "required: --py-config; for example: tpvformer train --py-config"),
    ],
)
def test_options_as_others_call_them(line: str, answer: str, capsys: Any) -> None:
    said = refused(line, capsys)
    assert answer in said and said.startswith(f"tpvformer {line.split()[0]}")


def test_what_argparse_takes_is_still_taken() -> None:
    for words in (
        ["train", "--py_config", "demo", "--max_ep", "3"],  # underscores, and beginnings of names
        ["train", "--py-config=demo", "--set", "train.epochs=3"],
        ["view", "--html", "x.html", "--", "--odd-name.npz"],
        ["view", "--title", "--a title with spaces", "x.npz"],
        ["synth", "--out", "x", "--seed", "-3"],
    ):
        assert _parser(words).parse_args(words).run is not None, words


@pytest.mark.parametrize("call", CALLS)
def test_every_answer_can_be_typed(call: str) -> None:
    """Whatever the name, what is told is an option of the command, or a setting where it has --set."""
    from tpvformer.commands import mistyped
    from tpvformer.config import Config, override

    parser = _parser([*call.split()])
    for name in call.split():
        parser = parser.below()[name]
    options = {option for option in parser._option_string_actions if option.startswith("--")}
    for name in mistyped._WAYS:
        answer = mistyped.instead(name, "", options)
        option = re.search(r"--[a-z0-9-]+", answer)
        assert option is None or option[0] in options, (name, answer)
        setting = re.search(r"--set (\S+)=", answer)
        if setting is not None:
            section, field = setting[1].split(".")
            assert hasattr(getattr(Config(name="x"), section), field) and "--set" in options
        if "train.precision=bf16" in answer:
            assert override(Config(name="x"), ["train.precision=bf16"]).train.precision == "bf16"
