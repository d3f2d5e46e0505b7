"""Work dirs that cannot be used, or are lost: one sentence, before anything is trained where that can be known."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, List

import programs
import pytest
from engine_tools import environment, write_config
from needs import can_mount

from tpvformer.cli import main
from tpvformer.config import Config
from tpvformer.engine import loop as train
from tpvformer.engine.work_dir.folder import make
from tpvformer.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick")


def command(tmp_path: Path, config: Config, work_dir: str, *more: str) -> List[str]:
    file = write_config(tmp_path / "tiny.py", config)
    return ["train", "--py-config", str(file), "--device", "cpu", "--work-dir", work_dir, *more]


def sentence(capsys: pytest.CaptureFixture) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("file", "is no folder; choose another --work-dir, or remove that file"),
        ("file/below", "is no folder; choose another --work-dir, or remove that file"),
        ("a" * 300, "cannot be written (File name too long)"),
        ("/".join(["b" * 200] * 20), "cannot be written (File name too long)"),
        ("/proc/no", "cannot be written (No such file"),
        ("caf\udce9", "is not UTF-8; choose a --work-dir that is"),
    ],
)
def test_refused_before_anything_else(config: Config, tmp_path: Path, capsys, name: str, text: str) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(command(tmp_path, config, str(tmp_path / name))) == 2
    said = sentence(capsys)
    assert text in said, said
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_name(config: Config, tmp_path: Path, capsys) -> None:
    """It would be the current folder."""
    with pytest.raises(SystemExit) as ended:
        main(command(tmp_path, config, ""))
    assert ended.value.code == 2
    assert "argument --work-dir: expected the name of a folder, but it is empty" in capsys.readouterr().err


READ_ONLY = 'mount -t tmpfs -o ro none "$1" && "$2" -c "$3" "$1"/run'
MAKES = """
import sys
from pathlib import Path
from tpvformer.errors import ConfigError
from tpvformer.engine.work_dir.folder import make
try:
    make(Path(sys.argv[1]))
except ConfigError as err:
    print(err)
"""


def test_a_read_only_file_system(tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        pytest.skip("this user may not mount in a namespace of its own")
    run = ["unshare", "-m", "bash", "-c", READ_ONLY, "-", str(tmp_path), sys.executable, MAKES]
    done = programs.run(run, env=environment())
    assert done.stdout.endswith("cannot be written (Read-only file system); choose a --work-dir that can\n"), done


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="the current folder is gone"):
        make(Path("run"))


@pytest.mark.parametrize("workers", [0, 1])
def test_lost_while_it_trains(config: Config, tmp_path: Path, monkeypatch, capsys, workers: int) -> None:
    real, work_dir = train.save_if_due, tmp_path / "run"

    def lose(job: Any) -> None:
        real(job)
        if job.progress.global_iter == 2:
            shutil.rmtree(work_dir)

    monkeypatch.setattr(train, "save_if_due", lose)
    job = replace(config, data=replace(config.data, workers=workers))
    assert main(command(tmp_path, job, str(work_dir))) == 1
    said = sentence(capsys)
    assert f"checkpoint {work_dir / 'epoch_1.pth'} cannot be written: the work dir is gone" in said


def test_closed_streams(config: Config, tmp_path: Path) -> None:
    """What would be printed goes nowhere, above all not into files."""
    given = [sys.executable, "-m", "tpvformer", *command(tmp_path, config, str(tmp_path / "run"), "--max-steps", "1")]
    done = programs.run(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", *given], env=environment())
    assert done.returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_nobody_reads_what_is_said(tmp_path: Path) -> None:
    """As in ``tpvformer train | head -1``: no traceback for every line, and the file has them all."""
    code = "import sys; from pathlib import Path; from tpvformer.engine.logging.log import RunLog\n"
    code += "log = RunLog(Path(sys.argv[1]), True)\nfor i in range(3000): log.line(str(i))\nlog.close()\n"
    run = ["bash", "-c", '"$@" | head -1', "-", sys.executable, "-c", code, str(tmp_path)]
    done = programs.run(run, env=environment())
    assert "Logging error" not in done.stderr and "Traceback (most recent call last)" not in done.stderr
    assert len(next(tmp_path.glob("2*.log")).read_text().splitlines()) == 3000
