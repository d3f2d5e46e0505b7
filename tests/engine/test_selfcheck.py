"""``tpvformer selfcheck`` on a CPU; test_npu.py has it on the pretended NPU, and broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import programs
import pytest
import torch
from engine_tools import ROOT, environment

from tpvformer.compat import load_config
from tpvformer.engine.selfcheck import checks, operations


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, "-m", "tpvformer", "selfcheck", "--device", "cpu", "--json", str(out)]
    done = programs.run(
        [*command, "--py-config", str(ROOT / "config" / "debug.py"), "--size", "152x90"], env=environment(), seconds=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "everything works"
    result = json.loads(out.read_text())
    assert result["passed"] and result["timing"]["steps"] == 20
    told = {line["check"]: line["ok"] for line in result["checks"]}
    assert all(told[case.name] for case in operations.cases())
    assert told["optimiser"] and told["training step of a small debug"] and told["20 training steps of debug"]


def test_a_device_that_is_not_there_is_one_sentence() -> None:
    done = programs.run([sys.executable, "-m", "tpvformer", "selfcheck", "--device", "npu"], env=environment())
    assert done.returncode == 2
    assert done.stderr.startswith("tpvformer selfcheck: device npu cannot be used") and "Traceback" not in done.stderr


def test_differences_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in operations.cases() if case.name == "add and ReLU")
    assert operations.compare(case, torch.device("cpu"))[0]
    wrong = case._replace(ours=lambda x, y: case.ours(x, y) * 1.001)
    assert not operations.compare(wrong, torch.device("cpu"))[0]
    right_but_for_gradients = case._replace(ours=lambda x, y: case.ours(x, y.detach()) + 0 * y)
    passed, detail = operations.compare(right_but_for_gradients, torch.device("cpu"))
    assert not passed and detail.startswith("forward 0.0e+00" if "forward 0" in detail else "forward")


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.py")), ids=lambda file: file.stem)
def test_a_small_step_of_every_configuration(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SMALL_SIZE", (104, 60))
    passed, detail = checks.training_step(load_config(file), torch.device("cpu"))
    assert passed and " gradients " in detail, detail


def test_the_optimiser_is_compared() -> None:
    passed, detail = checks.optimiser(torch.device("cpu"))
    assert passed and detail.startswith("AdamW, 5 steps")
