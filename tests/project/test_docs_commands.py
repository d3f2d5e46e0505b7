"""Every command in the READMEs and in docs/ can be typed: it parses, its files exist, and a test runs it or a reason
says why none does.

A test runs the program and the flags of a command, on small data where the document has nuScenes.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from pathlib import Path
from typing import Dict, List, Set, Tuple, Union, get_args, get_origin, get_type_hints

import programs
import pytest
from docs_tools import DOCUMENTS, FENCE, PLACEHOLDERS, Command, commands, foreign_lines, name_of, prose, spans, text_of
from engine_tools import ROOT

from tpvformer.cli import _parser, main
from tpvformer.compat import load_config
from tpvformer.config import Config, override

# program: tests that run it. Each flag that a document gives it stands in one of them.
RUN_BY: Dict[str, Tuple[str, ...]] = {
    "tpvformer demo": ("test_demo.py",),
    "tpvformer train": ("test_cli.py", "test_distributed.py", "test_own_model.py"),
    "tpvformer eval": ("test_average.py", "test_cli.py", "test_flicker.py", "test_own_model.py", "test_submission.py"),
    "tpvformer predict": ("test_predict_command.py", "test_view_command.py", "test_infos.py"),
    "tpvformer picture": ("test_cli.py",),
    "tpvformer check-geometry": ("test_predict_command.py", "test_infos_broken.py"),
    "tpvformer data infos": ("test_infos.py",),
    "tpvformer data check": ("test_data_check.py", "test_predict_command.py", "test_scans.py"),
    "tpvformer data drive": ("test_rig_drive.py",),
    "tpvformer synth": ("test_docs_commands.py", "test_semantickitti.py"),
    "tpvformer export": ("test_weights.py", "test_deploy.py"),
    "tpvformer convert": ("test_deploy.py",),
    "tpvformer doctor": ("test_doctor.py",),
    "tpvformer report": ("test_report.py",),
    "tpvformer view": ("test_view_command.py",),
    "tpvformer bench": ("test_bench.py",),
    "tpvformer completion": ("test_completion.py",),
    "tpvformer selfcheck": ("test_selfcheck.py",),
    "tpvformer run": ("test_fork.py", "test_parts.py"),
    "tpvformer overlay": ("test_overlay.py",),
    "tpvformer overlay apply": ("test_overlay.py",),
    "tpvformer overlay check": ("test_overlay.py",),
    "tpvformer overlay revert": ("test_overlay.py",),
    "tpvformer.engine.agent": ("test_multi_node.py",),
    "test/train_1p.sh": ("test_launchers.py", "test_own_model.py"),
    "test/train_8p.sh": ("test_launch_npu.py",),
    "test/train_multi_node.sh": ("test_multi_node.py",),
    "train.py": ("test_own_model.py", "test_upstream.py"),
    "eval.py": ("test_own_model.py", "test_upstream.py"),
    "launcher.sh": ("test_patch.py",),
    "tests/support/golden.py": ("test_model.py",),
    "tools/make_patch.py": ("test_patch.py",),
    "benchmarks/bench_augment.py": ("test_benchmark_scripts.py",),
    "benchmarks/bench_ops.py": ("test_benchmark_scripts.py",),
    "benchmarks/bench_saving.py": ("test_benchmark_scripts.py",),
    "benchmarks/step_counts.py": ("test_benchmark_scripts.py",),
    "benchmarks/bench_ranks.py": ("test_docs_distributed.py",),
}
# what no test runs, and why
NOT_RUN: Dict[str, str] = {
    r"^make (test|lint|types|unit)\b": "this is the test suite; .ci/run calls it",
    r"^python tools/commands_page\.py": "run by test_docs.py",
    r"^make demo$": "minutes on two idle cores",
    r"^make test-openmmlab$": "minutes, and packages of OpenMMLab",
    r"^pytest ": "a test itself",
    r"^\S*python3? -m venv ": "makes the reader's environment",
    r"^torchrun ": "cards or several machines; its flags: test_docs_distributed.py",
    r"train_multi_node\.sh .*--(max_restarts|rdzv_id)": "several machines; its flags: test_docs_distributed.py",
    r"^\S*python benchmarks/gpu_report\.py": "a GPU",
    r"^\S*python benchmarks/bench_loader\.py": "minutes of images at full size",
    r"^\S*python benchmarks/bench_(deploy|view)\.py": "minutes of exporting and compiling; a browser",
    r"^python benchmarks/bench_fork\.py": "mmcv's operations, compiled for it",
    r"^python benchmarks/bench_cpu\.py": "times two checkouts against each other, for minutes",
    r"^make embed": "takes the weights of a whole make demo; convert --half is run by test_pretrained.py",
    r"^\S*python benchmarks/first_picture\.py": "installs PyTorch anew; its last command is run by test_package.py",
    r"^tools/torch21_env\.sh": "0.7 GB of downloads",
    r"^tools/openmmlab_env\.sh": "downloads of OpenMMLab's packages; make test-openmmlab runs it",
}
TESTS = ROOT / "tests"
ALL = [command for document in DOCUMENTS for command in commands(document)]
QUOTED = [Command(name_of(document), words) for document in DOCUMENTS for words in spans(document)]


def reasons(command: Command) -> List[str]:
    text = " ".join(command.words)
    return [pattern for pattern in NOT_RUN if re.search(pattern, text)]


def not_run_by_tests(command: Command) -> List[str]:
    """What of the command no test of RUN_BY runs; empty if all is well."""
    if command.program not in RUN_BY:
        return [f"{command}: name the tests that run {command.program!r} in RUN_BY, or in NOT_RUN why none does"]
    text = "".join(next(TESTS.rglob(name)).read_text(encoding="utf-8") for name in RUN_BY[command.program])
    unused = [flag for flag in command.flags if not re.search(rf"{flag}\b", text)]
    return [f"{command}: none of {RUN_BY[command.program]} gives {flag}" for flag in unused]


def test_every_command_is_run_or_says_why_not() -> None:
    assert len(ALL) > 60
    problems = [text for c in [*ALL, *QUOTED] if not reasons(c) for text in not_run_by_tests(c)]
    assert not problems, "\n".join(problems)


def test_no_rule_is_left_over() -> None:
    """A rule that fits no command any more would let a new one pass unseen."""
    used = {command.program for command in [*ALL, *QUOTED]}
    assert set(RUN_BY) <= used, set(RUN_BY) - used
    met = {pattern for command in [*ALL, *QUOTED] for pattern in reasons(command)}
    assert met == set(NOT_RUN), set(NOT_RUN) - met


def test_the_check_can_fail() -> None:
    assert not_run_by_tests(Command("x", ("tpvformer", "train", "--nonsense")))
    assert not_run_by_tests(Command("x", ("tpvformer", "fly")))
    assert not_run_by_tests(Command("x", ("bash", "test/train_9p.sh")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_line_of_a_command_block_goes_unseen(document: Path) -> None:
    assert not foreign_lines(document)


def subcommand(words: Tuple[str, ...]) -> Set[str]:
    """The flags that a command of ``tpvformer`` knows."""
    parser = _parser(list(words[1:]))
    for word in words[1:3]:
        groups = parser._subparsers._group_actions if parser._subparsers else []
        if not groups:
            break
        assert word in groups[0].choices, f"tpvformer has no command {word!r}"
        parser = groups[0].choices[word]
    return set(parser._option_string_actions)


def test_whole_commands_parse(capsys) -> None:
    ours = [command for command in ALL if command.words[0] == "tpvformer"]
    assert len(ours) > 25
    for command in ours:
        words = [PLACEHOLDERS.get(word, word) for word in command.words[1:]]
        try:
            _parser(words).parse_args(words)
        except SystemExit:
            pytest.fail(f"{command}: {capsys.readouterr().err}")


def test_settings_given_on_the_command_line_exist() -> None:
    """``--set`` of a command with one of our configurations is taken, all of them together."""
    tried = 0
    for command in ALL:
        words = list(command.words)
        given = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        files = [words[i + 1] for i, word in enumerate(words) if word == "--py-config"]
        if given and files and (ROOT / files[0]).exists():
            override(load_config(str(ROOT / files[0])), given)
            tried += 1
    assert tried >= 2


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_quoted_commands_and_settings_exist(document: Path) -> None:
    for words in spans(document):
        if words[0] == "tpvformer" and "..." not in words:
            unknown = [flag for flag in Command("", words).flags if flag not in subcommand(words)]
            assert not unknown, (words, unknown)
    settings = re.findall(r"`(?:--set )?'?((?:model|data|loss|optim|train)(?:\.[a-z_0-9]+)+)(?![\w(])", prose(document))
    settings = [name for name in settings if name not in ("model.network", "model.safetensors", "model.report")]
    assert not [name for name in settings if not is_setting(name) and not name.endswith((".py", ".md"))]


def is_setting(name: str) -> bool:
    kind: type = Config
    for part in name.split("."):
        if not dataclasses.is_dataclass(kind) or part not in (hints := get_type_hints(kind)):
            return False
        kind = hints[part]
        if get_origin(kind) is Union:  # a section that may be left out
            kind = get_args(kind)[0]
    return True


def test_is_setting_can_fail() -> None:
    assert is_setting("model.grid.frame") and is_setting("model.detection.scale")
    assert not is_setting("model.grid.colour") and not is_setting("train.seed.x")


def test_files_of_commands_exist() -> None:
    """Configurations, scripts and tests that a command names; also the test that -k chooses."""
    named = re.compile(r"^(?:--?\w[\w-]*=)?((?:config|tests?|benchmarks|tools)/[\w./-]+\.(?:py|sh|json))$")
    files = {match.group(1) for c in [*ALL, *QUOTED] for word in c.words if (match := named.match(word))}
    assert len(files) > 20
    assert not [name for name in files if not (ROOT / name).exists()]
    for command in [*ALL, *QUOTED]:
        if command.words[0] == "pytest" and "-k" in command.words:
            chosen = command.words[command.words.index("-k") + 1]
            text = "".join((ROOT / word).read_text() for word in command.words if word.endswith(".py"))
            assert re.search(rf"def test_\w*{chosen}", text), command


def test_make_has_the_targets() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    named = {command.words[1] for command in [*ALL, *QUOTED] if command.words[0] == "make"}
    assert named <= set(targets) and "demo" in named


@pytest.mark.parametrize("script", ["train_1p.sh", "train_8p.sh", "train_multi_node.sh"])
def test_launchers_know_their_flags(script: str) -> None:
    done = programs.run(["bash", ROOT / "test" / script, "-h"], check=True)
    used = {flag for c in [*ALL, *QUOTED] if c.program == f"test/{script}" for flag in c.flags}
    assert used and used <= set(re.findall(r"--\w+", done.stdout))


def test_benchmarks_know_their_flags() -> None:
    for command in [*ALL, *QUOTED]:
        if command.program.startswith("benchmarks/"):
            source = (ROOT / command.program).read_text() + (ROOT / "benchmarks" / "measure.py").read_text()
            assert not [flag for flag in command.flags if f'"{flag}"' not in source], command


def test_extras_that_pip_is_asked_for_exist() -> None:
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    named = {x for document in DOCUMENTS for x in re.findall(r"tpvformer\[(\w+)\]", text_of(document))}
    assert named and named <= extras


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_python_blocks_import_what_there_is(document: Path) -> None:
    for language, body in FENCE.findall(text_of(document)):
        for node in ast.parse(body).body if language == "python" else []:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tpvformer"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_synth_as_the_documents_call_it(tmp_path: Path, capsys) -> None:
    more = ("--scenes", "2", "--frames", "1", "--size", "64x36", "--seed", "25", "--workers", "1", "--occupancy")
    assert main(["synth", "--out", str(tmp_path / "set"), *more]) == 0
    assert "2 scenes of 1 frames, images 64x36, seed 25" in capsys.readouterr().out
    assert (tmp_path / "set" / "nuscenes_infos_train.pkl").exists()
