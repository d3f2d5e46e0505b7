"""The launchers on a pretended Ascend machine: CANN, its tools and its cards are stand-ins, all of ours is real.

Training takes place: the cards' numbers are the CPU's, and gloo does what hccl is asked for. Nothing ran on an NPU.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Dict, List

import programs
import pytest
from engine_tools import ROOT, environment
from launchers import BLOCK, block, keys
from needs import SITE, needs_card

# what env_npu.sh exports, and set_env.sh before it
EXPORTED = {
    "ASCEND_SLOG_PRINT_TO_STDOUT": "0",
    "ASCEND_GLOBAL_LOG_LEVEL": "3",
    "ASCEND_GLOBAL_EVENT_ENABLE": "0",
    "TASK_QUEUE_ENABLE": "2",
    "COMBINED_ENABLE": "1",
    "CPU_AFFINITY_CONF": "1",
    "HCCL_WHITELIST_DISABLE": "1",
    "HCCL_CONNECT_TIMEOUT": "1200",
}
ROW = """\
| {card}     910B3               | OK            | 93.1        38                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3161 / 65536         |
+===========================+===============+====================================================+
"""
pytestmark = pytest.mark.skipif(Path("/usr/local/Ascend").exists(), reason="this machine has CANN")


class Machine:
    """A home folder with CANN in it, a folder of the vendor's tools, and a checkout whose data lie elsewhere."""

    def __init__(self, folder: Path, cards: int = 8, python_path: str = str(SITE)) -> None:
        self.folder, self.home, self.tools = folder, folder / "home", folder / "tools"
        cann = self.home / "Ascend" / "ascend-toolkit"
        cann.mkdir(parents=True)
        path = f'export PYTHONPATH={shlex.quote(python_path)}"${{PYTHONPATH:+:$PYTHONPATH}}"\n' if python_path else ""
        (cann / "set_env.sh").write_text(f"export ASCEND_HOME_PATH={shlex.quote(str(cann))}\n{path}")
        self.tools.mkdir(parents=True)
        table = "+---- npu-smi 24.1.0 (a stand-in) ----+\n" + "".join(ROW.format(card=card) for card in range(cards))
        self._tool("npu-smi", f"cat <<'END'\n{table}END\n")
        self._tool("msnpureport", f"touch {shlex.quote(str(folder / 'reported'))}; exit 1\n")
        self.cards = cards

    def _tool(self, name: str, body: str) -> None:
        tool = self.tools / name
        tool.write_text(f"#!/bin/bash\n{body}")
        tool.chmod(0o755)

    def run(self, command: List[str], cwd: Path, **extra: str) -> programs.Done:
        env = environment(
            HOME=str(self.home), PATH=f"{self.tools}{os.pathsep}{os.environ['PATH']}", STANDIN_CARDS=str(self.cards)
        )
        for name in ("TPVFORMER_OPS", "ASCEND_HOME_PATH", "ASCEND_RT_VISIBLE_DEVICES", "ASCEND_DEVICE_ID", *EXPORTED):
            env.pop(name, None)
        env.update(STANDIN_SAY_ENV=" ".join([*EXPORTED, "ASCEND_RT_VISIBLE_DEVICES"]), **extra)
        done = programs.run(command, cwd=cwd, env=env, seconds=400)
        assert not (self.folder / "reported").exists(), "msnpureport was called"
        return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository with data of its own, which are made as the header of config/debug.py says."""
    folder = tmp_path_factory.mktemp("machine") / "checkout"
    folder.mkdir()
    for name in ("config", "test", "tpvformer"):
        (folder / name).symlink_to(ROOT / name)
    said = re.search(r"^command +tpvformer (synth .*)$", (ROOT / "config" / "debug.py").read_text(), re.MULTILINE)
    assert said is not None
    made = [sys.executable, "-m", "tpvformer", *shlex.split(said[1])]
    programs.run(made, cwd=folder, env=environment(), check=True)
    return folder


def train(machine: Machine, checkout: Path, script: str, **extra: str) -> programs.Done:
    flags = ["--py_config=config/debug.py", "--performance=1", f"--work_dir={machine.folder / 'w'}"]
    return machine.run(["bash", f"test/{script}", *flags], checkout, **extra)


def environments(output: str) -> Dict[int, Dict[str, str]]:
    """What the process on each card found in its environment. The launching process chooses no card."""
    lines = re.findall(r"^torch_npu stand-in: set_device\((\d+)\) (.*)$", output, re.MULTILINE)
    assert len({card for card, _ in lines}) == len(lines), "two processes on one card"
    return {int(card): dict(item.split("=", 1) for item in rest.split()) for card, rest in lines}


def check_summary(work_dir: Path, output: str, cards: int, batch: int) -> None:
    results, written = block(output), keys(work_dir / f"debug_bs{batch}_{cards}p_perf.log")
    assert list(results) == BLOCK
    assert written["RankSize"] == str(cards) and written["BatchSize"] == str(batch)
    assert written["CaseName"] == f"debug_bs{batch}_{cards}p_perf"
    assert f"{cards * batch} samples a step" in output and f"on {cards} x Ascend910B (a stand-in)" in output
    step = float(written["TrainingTime"])
    assert float(written["ActualFPS"]) == pytest.approx(cards * batch / step * 1e3, rel=0.01)
    assert written["ActualFPS"] == results["Final Performance images/sec"]


@needs_card
@pytest.mark.parametrize("cards", [8, 4])
def test_eight_processes(cards: int, checkout: Path, tmp_path: Path) -> None:
    """One a card; where fewer cards are visible, fewer processes, and the summary counts those."""
    machine = Machine(tmp_path, cards)
    done = train(machine, checkout, "train_8p.sh")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = environments(done.stdout)
    assert sorted(found) == list(range(cards))
    assert all({**values, **EXPORTED} == values for values in found.values())
    joined = re.findall(r"init_process_group\('hccl'\) on card (\d)", done.stdout)
    assert sorted(joined) == [str(card) for card in range(cards)]
    check_summary(tmp_path / "w", done.stdout, cards, batch=2)
    fewer = "4 cards are visible: 4 processes are started instead of 8, and a step takes 4 batches instead of 8\n"
    assert done.stdout.count(fewer) == (cards < 8)


@needs_card
def test_one_process_on_the_card_that_was_named(checkout: Path, tmp_path: Path) -> None:
    done = train(Machine(tmp_path), checkout, "train_1p.sh", ASCEND_DEVICE_ID="3", TASK_QUEUE_ENABLE="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = environments(done.stdout)
    assert list(found) == [0]  # the first of one visible card
    assert found[0]["ASCEND_RT_VISIBLE_DEVICES"] == "3" and found[0]["TASK_QUEUE_ENABLE"] == "1"
    assert "init_process_group" not in done.stdout
    check_summary(tmp_path / "w", done.stdout, 1, batch=2)


def test_without_torch_npu_the_processor_does_not_step_in(checkout: Path, tmp_path: Path) -> None:
    """One sentence, from one process, that says how to mend it."""
    broken = tmp_path / "broken"
    (broken / "torch_npu").mkdir(parents=True)
    (broken / "torch_npu" / "__init__.py").write_text("raise ImportError('libhccl.so: cannot open')\n")
    for script, path, reason in (
        ("train_1p.sh", "", "is not installed"),
        ("train_8p.sh", str(broken), "does not load (libhccl.so: cannot open)"),
    ):
        done = train(Machine(tmp_path / script, python_path=path), checkout, script)
        sentence, end = done.stderr.splitlines()
        assert done.returncode == 2 and not block(done.stdout)
        assert sentence.startswith(f"tpvformer train: CANN is set up here (ASCEND_HOME_PATH), but torch_npu {reason}; ")
        assert sentence.endswith("--device cpu") and "exit code 2" in end


def test_a_machine_with_cann_and_no_card_says_so(tmp_path: Path) -> None:
    names = "from tpvformer.engine.device.accelerator import pick_device, visible_cards"
    code = f"{names}; print(*pick_device(), visible_cards())"
    command = f"cd {shlex.quote(str(ROOT))}; . test/env_npu.sh; {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    done = Machine(tmp_path, cards=0).run(["bash", "-euc", command], ROOT)
    assert done.stdout == "cpu ['npu is skipped: CANN is set up here, but no card is visible'] 0\n", done.stderr
