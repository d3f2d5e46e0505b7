"""``tpvformer doctor`` and what ``tpvformer`` alone says."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from typing import Any

import programs
import pytest
from engine_tools import environment

from tpvformer import ops
from tpvformer.cli import _parser, main
from tpvformer.commands.tour import TOUR
from tpvformer.engine.selfcheck import doctor
from tpvformer.runtime import processor


def test_the_doctor_says_what_is_here(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(ops, "kernels", lambda device: {"numba": None})  # loading the real ones takes seconds
    assert main(["doctor", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"torch {version('torch')}" in said and "device: " in said and said.endswith("compares the operations\n")
    assert "on cpu: numba kernels are used" in said


def test_the_doctor_says_what_precision_follows_from_the_processor(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(ops, "kernels", lambda device: {})
    laptop = processor.Processor("a laptop", frozenset({"avx2"}), False)
    monkeypatch.setattr(processor, "read_processor", lambda: laptop)
    assert main(["doctor", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"processor: a laptop: avx2; kernels use vectors of \d+ float32; PyTorch's oneDNN takes no bf16\n", said
    )
    assert "on cpu: precision fp32 (auto: avx2 without avx512_bf16 or amx_bf16), unless train.precision" in said


def test_the_doctor_names_one_thing_to_mend(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(ops, "kernels", lambda device: {"numba": "no folder to cache in"})
    assert main(["doctor", "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "on cpu: numba: plain PyTorch is used instead (no folder to cache in)" in said
    assert said.endswith("fix first: numba kernels are not available on cpu (no folder to cache in)\n")
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "pyyaml" else known(name))
    assert main(["doctor", "--device", "nothing"]) == 1
    said = capsys.readouterr().out
    assert said.endswith("fix first: pyyaml is missing: pip install pyyaml\n") and said.count("fix first") == 1


def test_the_doctor_loads_what_is_installed(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(ops, "kernels", lambda device: {"numba": None})
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert main(["doctor", "--device", "cpu"]) == 0
    assert "note: simplejpeg does not load (import of simplejpeg halted" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["doctor", "--device", "cpu"]) == 1
    assert "fix first: OpenCV is installed but does not load (import of cv2 halted" in capsys.readouterr().out


def test_the_command_alone_shows_every_command(capsys: Any) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    for what, example in TOUR:
        assert what in said and example in said
    (commands,) = (action.choices for action in _parser(["--help"])._actions if action.dest == "command")
    assert {example.split()[1] for _, example in TOUR} == set(commands)


@pytest.mark.parametrize("example", [example for _, example in TOUR])
def test_every_example_can_be_typed(example: str) -> None:
    words = example.split()[1:]
    assert _parser(words).parse_args(words).run is not None


def test_the_command_alone_needs_no_torch() -> None:
    code = "import sys; from tpvformer.cli import main; print(main([]), 'torch' in sys.modules)"
    done = programs.run([sys.executable, "-c", code], env=environment())
    assert done.stdout.endswith("0 False\n"), done.stderr
