"""Writing a synthetic drive as a nuScenes v1.0-mini data set (with lidarseg labels, info files and, as an option, dense
occupancy labels) or as sequences of SemanticKITTI.

This package, nuscenes-devkit and code that expects TPVFormer's info pickles can read the folder. Its rig.json describes
the first validation frame as a rig of one's own. The folder gets its name only when it is complete. Writing the same
set again changes nothing.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from tpvformer.data.nuscenes.infos.pickle_file import PROTOCOL, public_names
from tpvformer.data.street import rig
from tpvformer.data.street.drive import VERSION, SceneRecord, Task, record_scene
from tpvformer.data.street.infos import frame_info, prefixed, rig_file
from tpvformer.data.street.kitti import SIZES, SequenceTask, record_sequence
from tpvformer.data.street.tables import CHANNELS, Tokens, constant_tables, scene_tables
from tpvformer.data.worker_processes import interrupts_held
from tpvformer.errors import ConfigError
from tpvformer.runtime.cores import cores

GENERATOR = 5  # version; raised whenever the same parameters give other files
PARAMETERS = "synthetic.json"
RIG = "rig.json"  # the first validation frame, described as a rig
MINI_VAL = ("scene-0103", "scene-0916")
MINI_TRAIN = tuple(f"scene-{n:04d}" for n in (61, 553, 655, 757, 796, 1077, 1094, 1100))
FIRST_EXTRA = 2000  # scenes beyond the ten official names are called scene-2000, scene-2001, ...
EXTRA_VAL_EVERY = 10  # every tenth of them is for validation
KITTI_VAL, KITTI_TRAIN = "08", ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10")
VOXEL_BYTES = 256 * 256 * 32 * (2 + 3 / 8)  # a label and three bits
SWEEP_BYTES = rig.BEAMS * rig.FIRINGS * 21  # five floats and a label a point
MAP_SIZE = 64

Progress = Callable[[int, int], None]


def scene_names(count: int) -> List[Tuple[str, str]]:
    """Return (name, "train" or "val") of ``count`` scenes: mini_val's, mini_train's, then invented names.

    Two scenes are one of each split.
    """
    if count == 2:
        return [(MINI_VAL[0], "val"), (MINI_TRAIN[0], "train")]
    names = [(name, "val") for name in MINI_VAL] + [(name, "train") for name in MINI_TRAIN]
    for k in range(count - len(names)):
        names.append((f"scene-{FIRST_EXTRA + k}", "val" if k % EXTRA_VAL_EVERY == EXTRA_VAL_EVERY - 1 else "train"))
    return names[:count]


def write_dataset(
    out: Path,
    scenes: int,
    size: Tuple[int, int],
    seed: int,
    frames_per_scene: int = 8,
    workers: Optional[int] = None,
    progress: Optional[Progress] = None,
    occupancy: bool = False,
    prefix: str = "",
) -> bool:
    """Generate ``scenes`` streets with ``frames_per_scene`` key frames each under the folder ``out``.

    Args: ``size`` is the images' (width, height) in pixels; ``workers`` the number of processes (all cores by default;
    the files do not depend on it); ``progress`` is called with (frames done, all frames); ``occupancy`` adds dense
    labels in the formats of Occ3D and SurroundOcc and changes no other file; ``prefix`` is put before the file names in
    the info files, for loaders that open these as stored.
    Returns False if ``out`` already holds exactly this set, else True.
    Raises ConfigError for arguments out of range, a target with other content, or a disk that is full or not writable.
    """
    out = Path(out)
    wanted = _parameters(scenes, size, seed, frames_per_scene)
    if occupancy:
        wanted["occupancy"] = True
    if prefix:
        wanted["prefix"] = prefix
    return _write(out, wanted, scenes * frames_per_scene * _frame_bytes(size), _fill, workers, progress)


def write_sequences(
    out: Path,
    sequences: int,
    seed: int,
    frames: int = 8,
    workers: Optional[int] = None,
    progress: Optional[Progress] = None,
) -> bool:
    """Generate ``sequences`` streets in SemanticKITTI's format, each with ``frames`` frames that have voxels.

    The first is sequence 08, which is for validation; the others are for training. Otherwise like ``write_dataset``.
    """
    most = 1 + len(KITTI_TRAIN)
    wanted = _parameters(sequences, SIZES[0], seed, frames)
    if sequences > most:
        raise ConfigError(f"synthetic data: {sequences} sequences; expected at most {most}, as many as have labels")
    wanted = {**{k: v for k, v in wanted.items() if k not in ("width", "height")}, "format": "semantickitti"}
    need = int(sequences * frames * (VOXEL_BYTES + SIZES[0][0] * SIZES[0][1] * 3))
    return _write(Path(out), wanted, need, _fill_sequences, workers, progress)


def _write(
    out: Path,
    wanted: Dict[str, Any],
    need: int,
    fill: Callable[[Path, Dict[str, Any], int, Optional[Progress]], None],
    workers: Optional[int],
    progress: Optional[Progress],
) -> bool:
    """Let ``fill`` write the set, about ``need`` bytes, to a temporary folder, and rename it to ``out`` at the end.

    Returns False where ``out`` already has the set. Raises ConfigError.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"synthetic data: workers is {workers}; expected 1 or more")
    if _holds(out, wanted):
        return False
    target = out.absolute()
    partial = target.with_name(f".{target.name}.partial")  # what a killed run left here is of no use
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        _check_space(target.parent, need)
        partial.mkdir()
        try:
            fill(partial, wanted, workers or cores(), progress)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as err:
        raise ConfigError(
            f"synthetic data: cannot write {out}: {err.strerror or err}; choose another --out or make room"
        ) from err
    except BrokenProcessPool as err:
        raise ConfigError(
            "synthetic data: a worker process was killed, most likely for memory; try fewer --workers"
        ) from err
    return True


def _parameters(scenes: int, size: Tuple[int, int], seed: int, frames: int) -> Dict[str, Any]:
    def need(ok: bool, text: str) -> None:
        if not ok:
            raise ConfigError(f"synthetic data: {text}")

    width, height = size
    need(scenes >= 2, f"scenes is {scenes}; expected 2 or more, one for validation and one to train on at least")
    need(scenes <= 8000, f"scenes is {scenes}; expected at most 8000")
    need(32 <= width <= 4096 and 32 <= height <= 4096, f"size is {width}x{height}; expected 32 to 4096 pixels a side")
    need(0 <= seed < 2**31, f"seed is {seed}; expected a whole number from 0 to 2147483647")
    need(1 <= frames <= 100, f"frames a scene is {frames}; expected 1 to 100")
    return {
        "generator": GENERATOR,
        "scenes": scenes,
        "width": width,
        "height": height,
        "seed": seed,
        "frames_per_scene": frames,
    }


def _holds(out: Path, wanted: Dict[str, Any]) -> bool:
    """Tell whether ``out`` already holds the set. Raises ConfigError where it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise ConfigError(f"synthetic data: {out} is a file; expected a folder that is empty or absent")
    try:
        found = json.loads((out / PARAMETERS).read_text())
    except (OSError, ValueError):
        if any(out.iterdir()):
            raise ConfigError(
                f"synthetic data: {out} is not empty and holds no {PARAMETERS}; choose another --out"
            ) from None
        return False
    if found != wanted:
        raise ConfigError(
            f"synthetic data: {out} holds another synthetic set ({found}); delete it or choose another --out"
        )
    return True


def _frame_bytes(size: Tuple[int, int]) -> int:
    return SWEEP_BYTES + len(rig.CAMERAS) * size[0] * size[1] // 2


def _check_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ConfigError(
            f"synthetic data: it needs about {need / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free; ask for "
            "fewer scenes or choose another --out"
        )


def _folders(root: Path) -> None:
    for channel in CHANNELS:
        (root / "samples" / channel).mkdir(parents=True)
        (root / "sweeps" / channel).mkdir(parents=True)
    for name in ("maps", VERSION, f"lidarseg/{VERSION}"):
        (root / name).mkdir(parents=True)


def _fill(root: Path, wanted: Dict[str, Any], workers: int, progress: Optional[Progress]) -> None:
    _folders(root)
    token = Tokens(wanted["seed"])
    size = (wanted["width"], wanted["height"])
    frames = wanted["frames_per_scene"]
    names = scene_names(wanted["scenes"])
    tasks = [
        Task(
            str(root),
            name,
            i,
            frames,
            size,
            wanted["seed"],
            tuple(token.reading(name, k, rig.LIDAR_CHANNEL) for k in range(frames)),
            tuple(token("sample", name, k) for k in range(frames)) if wanted.get("occupancy") else (),
        )
        for i, (name, _) in enumerate(names)
    ]
    records = _record(record_scene, tasks, workers, progress)
    _write_tables(root, token, records, names, size)
    for split in ("train", "val"):
        infos = [
            frame_info(token, record, k, size)
            for record, (_, part) in zip(records, names)
            if part == split
            for k in range(len(record.frames))
        ]
        stored = [prefixed(info, wanted.get("prefix", "")) for info in infos]
        content = {"infos": stored, "metadata": {"version": VERSION}}
        with public_names():
            (root / f"nuscenes_infos_{split}.pkl").write_bytes(pickle.dumps(content, PROTOCOL))
        if split == "val":
            labels = f"lidarseg/{VERSION}/{token.reading(names[0][0], 0, rig.LIDAR_CHANNEL)}_lidarseg.bin"
            (root / RIG).write_text(json.dumps(rig_file(infos[0], labels, size), indent=1) + "\n")
    (root / PARAMETERS).write_text(json.dumps(wanted) + "\n")


def _fill_sequences(root: Path, wanted: Dict[str, Any], workers: int, progress: Optional[Progress]) -> None:
    names = (KITTI_VAL, *KITTI_TRAIN)[: wanted["scenes"]]
    tasks = [
        SequenceTask(str(root / "sequences" / name), name, i, wanted["frames_per_scene"], wanted["seed"])
        for i, name in enumerate(names)
    ]
    _record(record_sequence, tasks, workers, progress)
    (root / PARAMETERS).write_text(json.dumps(wanted) + "\n")


def _record(
    record_one: Callable[[Any], Any], tasks: Sequence[Any], workers: int, progress: Optional[Progress]
) -> List[Any]:
    """Render all scenes and return their records in order.

    The first is rendered in this process, so that the workers find compiled code in Numba's cache.
    """
    done = 0
    records: Dict[int, Any] = {}

    def store(record: Any, index: int) -> None:
        nonlocal done
        records[index] = record
        done += len(record.frames)
        if progress:
            progress(done, sum(t.frames for t in tasks))

    alone = len(tasks) if workers == 1 else 1
    for task in tasks[:alone]:
        store(record_one(task), task.index)
    if tasks[alone:]:
        with ProcessPoolExecutor(min(workers, len(tasks) - 1), get_context("spawn")) as pool:
            if os.name == "posix":
                resource_tracker.ensure_running()  # before the block below, because its start unblocks SIGINT
            try:
                with interrupts_held():  # Ctrl-C inside the block is raised at its end
                    futures = {pool.submit(record_one, task): task.index for task in tasks[alone:]}
                for future in as_completed(futures):
                    store(future.result(), futures[future])
            except KeyboardInterrupt:
                for worker in list((pool._processes or {}).values()):
                    worker.terminate()  # a scene may take minutes
                raise
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return [records[i] for i in range(len(tasks))]


def _write_tables(
    root: Path, token: Tokens, records: List[SceneRecord], names: List[Tuple[str, str]], size: Tuple[int, int]
) -> None:
    tables = constant_tables(token)
    for record in records:
        for name, rows in scene_tables(token, record, size).items():
            tables.setdefault(name, []).extend(rows)
    area = token("map")
    tables["map"] = [
        {
            "token": area,
            "log_tokens": [row["token"] for row in tables["log"]],
            "category": "semantic_prior",
            "filename": f"maps/{area}.png",
        }
    ]
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows))
    splits = {f"synthetic_{part}": [name for name, p in names if p == part] for part in ("train", "val")}
    (root / VERSION / "splits.json").write_text(json.dumps(splits))
    mask = cv2.imencode(".png", np.full((MAP_SIZE, MAP_SIZE), 255, np.uint8))[1]  # drivable everywhere
    (root / "maps" / f"{area}.png").write_bytes(mask.tobytes())
