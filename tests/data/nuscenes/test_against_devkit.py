"""nuscenes-devkit as the oracle: for infos from tables with all channels and sweeps, and for the synthetic set, which
it loads itself; and tables of the size of v1.0-trainval.

The devkit pins numpy below 2, so it lives in an environment of its own; TPVFORMER_DEVKIT_PYTHON names its interpreter:

    python -m venv devkit
    devkit/bin/pip install numpy opencv-python-headless matplotlib scikit-learn pyquaternion tqdm cachetools
    devkit/bin/pip install --no-deps nuscenes-devkit==1.2.0

TPVFORMER_SLOW=1 adds the large set: 1.9 GB of tables are written to a temporary folder.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from pathlib import Path

import numpy as np
import programs
import pytest
from many_tables import FIRST, STEP, mounted, vehicle, write_tables
from needs import PYTHON, has_devkit

from tpvformer.cli import main
from tpvformer.data.formats import load_infos
from tpvformer.data.nuscenes.infos.build import build
from tpvformer.data.nuscenes.infos.pickle_file import to_records
from tpvformer.data.nuscenes.splits import OFFICIAL, official
from tpvformer.data.street import rig
from tpvformer.data.street.write import write_dataset

MINI = [*official("mini_train"), *official("mini_val")]


def assert_record(record: dict, scene: int, k: int) -> None:
    """The record of a key frame against the functions that wrote the tables."""
    time_of = scene * 100_000_000 + FIRST
    assert record["timestamp"] == time_of + k * STEP
    lidar = rig.pose(*vehicle(scene, k * STEP)) @ rig.pose(rig.LIDAR_TRANSLATION, rig.LIDAR_ROTATION)
    for channel, camera in record["cams"].items():
        translation, rotation, intrinsic, offset, _ = mounted()[channel]
        between = np.linalg.inv(lidar) @ rig.pose(*vehicle(scene, k * STEP + offset)) @ rig.pose(translation, rotation)
        assert camera["sensor2lidar_rotation"] == pytest.approx(between[:3, :3], abs=1e-9)
        assert camera["sensor2lidar_translation"] == pytest.approx(between[:3, 3], abs=1e-9)
        assert camera["cam_intrinsic"].tolist() == intrinsic
    for n, sweep in enumerate(record["sweeps"], start=1):
        before = k * STEP - n * STEP // 10
        assert sweep["timestamp"] == time_of + before
        assert sweep["data_path"].split("/")[-3] == ("samples" if n == 10 else "sweeps")
        own = rig.pose(*vehicle(scene, before)) @ rig.pose(rig.LIDAR_TRANSLATION, rig.LIDAR_ROTATION)
        assert sweep["sensor2lidar_translation"] == pytest.approx((np.linalg.inv(lidar) @ own)[:3, 3], abs=1e-9)
    assert len(record["sweeps"]) == (10 if k else 0)


def test_rows_in_any_order(tmp_path):
    """The real tables are not sorted by time, channel or scene."""
    write_tables(tmp_path, "v1.0-mini", MINI, [3] * len(MINI))
    for name in ("sample_data", "ego_pose"):
        path = tmp_path / "v1.0-mini" / f"{name}.json"
        rows = json.loads(path.read_text())
        random.Random(0).shuffle(rows)
        path.write_text(json.dumps(rows))
    for split in ("mini_train", "mini_val"):
        records = to_records(build(tmp_path, "v1.0-mini", [split])[split])
        assert len(records) == 3 * len(official(split))
        for i, record in enumerate(records):
            assert_record(record, MINI.index(official(split)[i // 3]), i % 3)


def test_the_test_set_has_infos_and_no_labels(tmp_path, capsys):
    write_tables(tmp_path, "v1.0-test", official("test")[:2], [2, 3])
    command = ["--root", str(tmp_path), "--version", "v1.0-test"]
    assert main(["data", "infos", *command, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "nuscenes_infos_test.pkl: 5 samples of 2 scenes, 6 cameras, 30 sweeps" in said.out
    assert "test: 2 of its 150 scenes are in" in said.err
    assert len(load_infos(tmp_path / "nuscenes_infos_test.safetensors")) == 5
    assert main(["data", "check", *command]) == 1
    said = capsys.readouterr()
    assert "note: no lidarseg.json: labels of the test set are not published" in said.out
    assert "most likely an archive v1.0-test_blobs was not unpacked" in said.out
    assert said.out.endswith("35 faults\n")  # seven files of five samples


@pytest.mark.skipif(not has_devkit(), reason="no nuscenes-devkit: TPVFORMER_DEVKIT_PYTHON names no interpreter with it")
def test_devkit_says_the_same(tmp_path):
    write_tables(tmp_path / "set", "v1.0-mini", MINI, [4 + i % 2 for i in range(len(MINI))])
    command = ["data", "infos", "--root", str(tmp_path / "set"), "--version", "v1.0-mini", "--prefix", ""]
    assert main([*command, "--out", str(tmp_path), "--format", "pkl"]) == 0
    script = Path(__file__).parents[2] / "support" / "infos_devkit_check.py"
    arguments = [str(tmp_path / "set"), "v1.0-mini", str(tmp_path), "mini_train", "mini_val"]
    done = programs.run([PYTHON, str(script), *arguments])
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") == 12
    names = "from nuscenes.utils.splits import create_splits_scenes as c; import json; print(json.dumps(c()))"
    listed = json.loads(programs.run([PYTHON, "-c", names], check=True).stdout)
    assert {split: official(split) for split in OFFICIAL} == {split: sorted(listed[split]) for split in OFFICIAL}


@pytest.mark.skipif(os.environ.get("TPVFORMER_SLOW") != "1", reason="writes 1.9 GB of tables; TPVFORMER_SLOW=1 runs it")
def test_tables_as_large_as_trainval(tmp_path):
    """34,149 key frames, 2.6 million rows: at most 4 GiB and 5 minutes, in a process of its own."""
    names = sorted([*official("train"), *official("val")])
    frames = [40 + (s * 149 // 850 != (s + 1) * 149 // 850) for s in range(850)]
    rows = write_tables(tmp_path, "v1.0-trainval", names, frames)
    began = time.perf_counter()
    command = ["data", "infos", "--root", str(tmp_path), "--version", "v1.0-trainval", "--out", str(tmp_path / "out")]
    code = f"import sys; from tpvformer.cli import main; sys.exit(main({command!r}))"
    programs.run([sys.executable, "-c", code], check=True, seconds=900)
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    gib = used.ru_maxrss / 2**20
    print(f"{rows} rows: {seconds:.0f} s, processor {used.ru_utime + used.ru_stime:.0f} s, at most {gib:.2f} GiB")
    for kind in ("pkl", "safetensors"):
        began = time.process_time()
        count = len(load_infos(tmp_path / "out" / f"nuscenes_infos_train.{kind}"))
        print(f"{count} samples of train from .{kind}: processor {time.process_time() - began:.2f} s")
    counted = {
        split: len(load_infos(tmp_path / "out" / f"nuscenes_infos_{split}.safetensors")) for split in ("train", "val")
    }
    assert sum(counted.values()) == sum(frames) == 34149
    assert gib < 4
    assert used.ru_utime + used.ru_stime < 300  # of one process; how long it takes depends on who else is on the cores


# ---- the synthetic set


@pytest.mark.skipif(not has_devkit(), reason="no nuscenes-devkit: TPVFORMER_DEVKIT_PYTHON names no interpreter with it")
def test_devkit_loads_evaluates_and_agrees(tmp_path):
    write_dataset(tmp_path / "set", 10, (96, 54), 3, 2, workers=1)
    script = Path(__file__).parents[2] / "support" / "devkit_check.py"
    done = programs.run([PYTHON, str(script), str(tmp_path / "set")])
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") >= 16
