"""Processes of a run that differ, and data that changed under a run: named, before anything is trained."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
from engine_tools import POINTS, processes, tiny_config, write_config
from tiny_nuscenes import write_tiny

from tpvformer.compat import CheckpointError
from tpvformer.config import Config
from tpvformer.engine import train as run

pytestmark = pytest.mark.usefixtures("quick")

# process 1 has other settings, or other data, than process 0
DIFFER = """
import os, sys
from tpvformer import cli
command = ["train", "--py-config", sys.argv[1], "--device", "cpu", "--work-dir", sys.argv[2], "--max-steps", "2"]
rank = os.environ["RANK"]
sys.exit(cli.main([*command, *(sys.argv[3:] if rank == "1" else [])]))
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config(write_tiny(tmp_path / "set", POINTS, cameras=("CAM_FRONT",)), epochs=2)


def drop_one(config: Config, file: Path) -> Path:
    """The same data without the first sample, in ``file``."""
    content = pickle.loads(Path(config.data.train_infos).read_bytes())  # noqa: S301  # written by this test
    content["infos"] = content["infos"][1:]
    file.write_bytes(pickle.dumps(content, protocol=2))
    return file


def test_settings_that_differ(config: Config, tmp_path: Path) -> None:
    file = write_config(tmp_path / "tiny.py", config)
    given = ["--set", "optim.lr=0.5", "--set", "train.seed=3", "--set", "data.workers=1"]
    for said in processes(2, DIFFER, str(file), str(tmp_path / "run"), *given, status=2):
        assert "optim.lr is 0.001 in process 0 and 0.5 in process 1" in said, said
        assert "train.seed is 0 in process 0 and 3 in process 1" in said and "workers" not in said
        assert "Traceback" not in said


def test_data_that_differ(config: Config, tmp_path: Path) -> None:
    file, other = write_config(tmp_path / "tiny.py", config), drop_one(config, tmp_path / "other.pkl")
    given = ["--set", f"data.train_infos={other}"]
    for said in processes(2, DIFFER, str(file), str(tmp_path / "run"), *given, status=2):
        assert "train data is 7 samples" in said and "in process 0 and 6 samples" in said, said


def stopped(config: Config, work_dir: Path, after: int, monkeypatch: Any) -> None:
    """Train until a signal comes after so many steps."""
    from tpvformer.engine import loop as train

    real = train.save_if_due

    def ask(job: Any) -> None:
        if job.progress.global_iter == after:
            job.signals.received = "SIGTERM"
        real(job)

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_if_due", ask)
        assert run.train(config, work_dir, "cpu") == {}


def test_a_set_that_changed_in_the_middle_of_an_epoch(config: Config, tmp_path: Path, monkeypatch) -> None:
    work_dir, infos = tmp_path / "run", Path(config.data.train_infos)
    before = infos.read_bytes()
    stopped(config, work_dir, 3, monkeypatch)
    drop_one(config, infos)
    with pytest.raises(
        CheckpointError, match="7 samples were in, 6 are now in the training set; bring the info file back"
    ):
        run.train(config, work_dir, "cpu")
    infos.write_bytes(before)
    assert run.train(config, work_dir, "cpu")["epochs"] == 2


def test_a_set_that_changed_between_epochs(config: Config, tmp_path: Path, capsys) -> None:
    """It trains on, with what there is; the order of the same samples counts too."""
    work_dir = tmp_path / "run"
    run.train(dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1)), work_dir, "cpu")
    infos = Path(config.data.train_infos)
    content = pickle.loads(infos.read_bytes())  # noqa: S301  # written by this test
    content["infos"] = content["infos"][::-1]
    infos.write_bytes(pickle.dumps(content, protocol=2))
    capsys.readouterr()
    assert run.train(config, work_dir, "cpu")["epochs"] == 2
    said = capsys.readouterr().out
    assert "7 other samples are in the training set; training goes on with what is there now" in said
    assert "are in the validation set; scores before and after are not of the same samples" in said
