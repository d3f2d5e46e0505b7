"""What Windows and macOS have not: modules and names are taken away, and everything still imports and predicts."""

from __future__ import annotations

import sys
from pathlib import Path

import programs
import pytest
import torch
from engine_tools import ROOT, environment, tiny_config, tiny_model, write_config
from tiny_nuscenes import write_tiny

from tpvformer.cli import main

SYSTEM = Path(__file__).parents[1] / "support" / "other_system.py"


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_everything_imports_and_a_frame_is_predicted(system: str, tmp_path: Path) -> None:
    file = write_config(tmp_path / "tiny.py", tiny_config(write_tiny(tmp_path / "set", (40, 60)), precision="auto"))
    torch.save(tiny_model().state_dict(), tmp_path / "w.pth")
    paths = [str(file), str(tmp_path / "w.pth"), str(tmp_path / "out")]
    done = programs.run([sys.executable, str(SYSTEM), system, *paths], env=environment(), cwd=ROOT, seconds=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    expected = {
        "win32": "signals ['SIGTERM'] peak False",
        "darwin": "signals ['SIGTERM', 'SIGUSR1', 'SIGHUP'] peak True",
    }
    assert expected[system] in done.stdout
    assert len(list((tmp_path / "out").glob("*.npz"))) == 1


def test_many_processes_are_refused_on_windows_in_one_sentence(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    words = ["--py-config", "demo", "--work-dir", str(tmp_path / "w"), "--processes", "2"]
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert "2 processes at once are for Linux and macOS" in said and said.count("\n") == 1
    assert not (tmp_path / "w").exists()
