"""A file system of a few MiB that fills while a run trains: what it says, how it ends, what is left."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import programs
import pytest
from engine_tools import environment, killed_config, write_config
from needs import can_mount

from tpvformer.config import DataConfig
from tpvformer.engine.checkpoint import files as store

# a training whose file system somebody else fills after its third step
FILLED = """
import sys
from pathlib import Path
from tpvformer import cli
from tpvformer.engine import loop as train

real = train.save_if_due

def fill(run):
    real(run)
    if run.progress.global_iter == 3:
        run.saver.wait()
        with open(Path(sys.argv[2], "ballast"), "wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(1024)):
                    pass
            except OSError:
                pass

train.save_if_due = fill
sys.exit(cli.main(["train", "--device", "cpu", "--py-config", sys.argv[1], "--work-dir", sys.argv[2] + "/w"]))
"""
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=4m none "$4" || exit 9
"$1" -c "$2" "$3" "$4"
code=$?
cp -a "$4/w" "$5"
exit $code
"""
FULL = r"cannot be written \(No space left on device\): it takes 0\.\d MiB, 0\.\d MiB are free there; "


def test_a_full_disk(data: DataConfig, tmp_path: Path) -> None:
    disk, left = tmp_path / "disk", tmp_path / "left"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("this user may not mount a file system of a few MiB in a namespace of its own")
    file = write_config(tmp_path / "tiny.py", killed_config(data, save_every_steps=1, keep_checkpoints=2))
    done = programs.run(
        ["unshare", "-m", "bash", "-c", ON_A_SMALL_DISK, "-", sys.executable, FILLED, str(file), str(disk), str(left)],
        env=environment(),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    kept = r"step_3\.pth before it is whole"
    for step in (4, 7):  # within the epoch it is worth a warning each time
        warned = rf"WARNING - checkpoint \S+/step_{step}\.pth {FULL}{kept}; training goes on"
        assert re.search(warned, done.stdout), done.stdout
    assert re.fullmatch(rf"tpvformer train: checkpoint \S+/epoch_1\.pth {FULL}{kept}\n", done.stderr), done.stderr
    assert os.readlink(left / "latest.pth") == "step_3.pth"
    assert [store.read(left / name)["global_iter"] for name in ("latest.pth", "step_2.pth")] == [3, 2]
    assert not list(left.glob(".*"))
