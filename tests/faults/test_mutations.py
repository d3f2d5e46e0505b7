"""Values and bytes changed at random in what others may send: an answer or one sentence, within 10 s and in memory.

test_fuzz.py damages bytes; here the damage knows the file's structure, so that most of it reaches the checks behind the
parser. 60 changes a kind in the suite, 10,000 under TPVFORMER_SLOW=1 (docs/security.md has the figures).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import random
import resource
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import cv2
import numpy as np
import pytest
import torch
from engine_tools import CPU, tiny_config, tiny_model
from rig_tools import write_rig
from submission_tools import write_set
from tiny_nuscenes import VERSION, write_tiny

from tpvformer.compat.pretrained import CONFIG, FORMAT, config_of
from tpvformer.compat.tensors import write_tensors
from tpvformer.config import DataConfig
from tpvformer.data.formats import load_infos
from tpvformer.data.images.decode import read_image
from tpvformer.data.nuscenes.lidarseg import LabelFiles
from tpvformer.data.nuscenes.scenes import frames_by_scene
from tpvformer.data.nuscenes.tables import read_table
from tpvformer.data.rig.read import read_rig
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.checkpoint import state as checkpoint
from tpvformer.engine.checkpoint.resume import ResumePoint, begin_average, restore_mid_epoch_state
from tpvformer.engine.checkpoint.rng import random_state, restore_random_state
from tpvformer.engine.checkpoint.state import Progress
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.logging.meters import LossMeter
from tpvformer.engine.logging.modelzoo_log import publish
from tpvformer.engine.optim import Stepper
from tpvformer.engine.optim.average import WeightAverage
from tpvformer.errors import CheckpointError, ConfigError, DataError
from tpvformer.labels import NUSCENES
from tpvformer.viz.report.page import page
from tpvformer.viz.report.read import read_run

COUNT = 10_000 if os.environ.get("TPVFORMER_SLOW") == "1" else 60
LONGEST, MOST = 10.0, 1.5 * 2**20  # seconds of one input; KiB that a kind may take
pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.filterwarnings("ignore")]

NAN = float("nan")
PLAIN: List[Any] = [
    None, True, False, 0, -1, 1, 2, 255, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 1.5, 1e308, NAN, float("inf"), "",
    "x", "\x1b[2J", "a\nb", "../../x", "x" * 5000, "samples/x", [], {}, [0], [1, 2, 3], [NAN] * 3, [[1, 2], [3]],
    {"a": 1}, [[[[[[[[[[]]]]]]]]]], ["x"] * 3, [None] * 4, [1e308] * 3, "ftp://example.invalid/x", "\u202e", 2**64,
]  # fmt: skip
PICKLED = [
    *PLAIN, b"x", (1, 2), {1}, 1 + 2j, np.zeros(3), np.zeros((3, 3)), np.full((3, 3), NAN), np.eye(4), np.array("x"),
    np.float64(3), np.zeros(0), np.array(["a"]), np.zeros((2, 0)), np.int64(-1), np.eye(3, dtype=">f4"), "\udc80",
]  # fmt: skip
STORED = [*PLAIN, (1, 2), torch.zeros(3), torch.zeros(()), torch.full((2,), NAN), torch.zeros(3, dtype=torch.int64)]


def mutated(tree: Any, rng: random.Random, values: List[Any]) -> Any:
    """A copy with one to three values replaced, removed, moved or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        node = tree
        while isinstance(node, (dict, list)) and node:
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            inner = node[key]
            if isinstance(inner, (dict, list)) and inner and rng.random() < 0.85:
                node = inner
                continue
            kind = rng.random()
            if kind < 0.1:
                del node[key]
            elif kind < 0.15 and isinstance(node, dict):
                node[rng.choice(["x", "\x1b", ""])] = node.pop(key)
            elif kind < 0.2 and isinstance(node, list):
                node.append(copy.deepcopy(inner))
            elif kind < 0.4 and type(inner) in (int, float):
                node[key] = inner + type(inner)(rng.choice([1e-3, 1]))
            else:
                node[key] = copy.deepcopy(rng.choice(values))
            break
    return tree


def damaged(data: bytes, rng: random.Random, until: int = 10**9) -> bytes:
    """The bytes with one to five of the first ``until`` changed, or cut."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        if content:
            content[rng.randrange(min(len(content), until))] = rng.choice([0, 0xFF, rng.randrange(256)])
    return bytes(content[: rng.randrange(len(content) + 1)]) if rng.random() < 0.1 else bytes(content)


def run(name: str, attempt: Callable[[random.Random], Any]) -> None:
    """COUNT attempts; what is no sentence of ours is raised, with the number of the attempt."""
    before, taken, longest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0.0
    for seed in range(COUNT):
        began = time.process_time()
        try:
            attempt(random.Random(f"{name} {seed}"))
            taken += 1
        except (DataError, CheckpointError, ConfigError) as err:
            text = str(err)
            assert text.strip() and "\n" not in text and "Traceback" not in text and len(text) < 3000, (seed, text)
        except Exception as err:
            raise AssertionError(f"{name}: attempt {seed}: {type(err).__name__}: {err}") from err
        longest = max(longest, time.process_time() - began)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{name}: {COUNT} changes, {taken} taken, longest {longest:.2f} s, {grown / 1024:.0f} MiB more")
    assert longest < LONGEST and grown < MOST
    assert taken < COUNT and (taken or COUNT < 1000)  # both happen: the changes reach what is read


def test_info_pickles(tmp_path: Path) -> None:
    whole = pickle.loads(Path(write_tiny(tmp_path, (9, 8)).val_infos).read_bytes())  # noqa: S301
    path = tmp_path / "x.pkl"

    def attempt(rng: random.Random) -> None:
        data = pickle.dumps(mutated(whole, rng, PICKLED), protocol=rng.randrange(6))
        path.write_bytes(damaged(data, rng) if rng.random() < 0.5 else data)
        load_infos(path)

    run("info pickles", attempt)


def test_configurations_in_weights(tmp_path: Path) -> None:
    write_tensors(tiny_model().state_dict(), tmp_path / "model.safetensors")
    tree = {"format": FORMAT, "config": dataclasses.asdict(tiny_config(DataConfig()))}
    tree = json.loads(json.dumps(tree))

    def attempt(rng: random.Random) -> None:
        text = json.dumps(mutated(tree, rng, PLAIN)).encode()
        (tmp_path / CONFIG).write_bytes(damaged(text, rng) if rng.random() < 0.3 else text)
        config = config_of(tmp_path / "model.safetensors")
        assert config.data.image_cache == "" and "://" not in str(config)
        assert min(config.model.grid.shape) >= 1

    run("configurations in weights", attempt)


def test_plain_parts_of_checkpoints(tmp_path: Path) -> None:
    config = tiny_config(DataConfig())
    model = torch.nn.Linear(3, 2)  # the plain parts do not know the model, and a small one is written soon
    stepper = Stepper(model, config.optim, CPU)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stepper.update()
    world = World(0, 1, 0, 1)
    losses, average, log = LossMeter(world), WeightAverage(model, 0.9), RunLog(None, False)
    losses.add("", [], torch.tensor(1.0), {"ce": torch.tensor(0.5)})
    losses.read()
    moment = {
        "world_size": 1,
        "global_batch": 1,
        "losses": losses.state(),
        "rng": {name: state[None] for name, state in random_state(CPU).items()},
        "ema": {"updates": 3, "state_dict": {name: p.detach() for name, p in model.named_parameters()}},
    }
    whole = checkpoint.capture(model, stepper, config, Progress(epoch=1, global_iter=3), moment)
    plain = {name: value for name, value in whole.items() if name not in ("state_dict", "optimizer")}
    optimiser = whole["optimizer"]
    path = tmp_path / "epoch_1.pth"

    def attempt(rng: random.Random) -> None:
        made = mutated({**plain, "groups": optimiser["param_groups"], "state": optimiser["state"]}, rng, STORED)
        state, groups = made.pop("state", None), made.pop("groups", None)
        content = {**made, "optimizer": {"state": state, "param_groups": groups}}
        torch.save({**content, "state_dict": whole["state_dict"]}, path)
        found = store.read(path)
        checkpoint.resume(found, path, model, stepper, config)
        begin_average(average, ResumePoint(path, found), log)
        if "rng" in found:
            restore_mid_epoch_state(found, losses, world, CPU, [0])

    kept = random_state(CPU)
    try:
        run("plain parts of checkpoints", attempt)
    finally:
        restore_random_state(kept, CPU)


def test_tables(tmp_path: Path) -> None:
    write_set(tmp_path, (9, 8))
    folder = tmp_path / VERSION
    whole = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("scene", "sample", "lidarseg", "sample_data")
    }

    def attempt(rng: random.Random) -> None:
        name = rng.choice(list(whole))
        for table, rows in whole.items():
            text = json.dumps(mutated(rows, rng, PLAIN) if table == name else rows).encode()
            path = folder / f"{table}.json"
            path.write_bytes(damaged(text, rng) if table == name and rng.random() < 0.3 else text)
            os.utime(path, ns=(time.monotonic_ns(), time.monotonic_ns()))  # readers remember unchanged files
        if name in ("scene", "sample"):
            frames_by_scene(str(tmp_path), VERSION, ["sample0"])
            read_table(folder, "scene", "name")
            read_table(folder, "sample", "scene_token", "timestamp")
        else:
            LabelFiles(tmp_path, VERSION).find("sample0", "log__LIDAR_TOP__0.pcd.bin")

    def without_stamps(rng: random.Random) -> None:
        for row in whole["sample"]:
            row.setdefault("timestamp", 1)
        attempt(rng)

    run("tables", without_stamps)


def test_rig_files(tmp_path: Path) -> None:
    path = write_rig(tmp_path, points=(5, 0))
    whole = json.loads(path.read_text())

    def attempt(rng: random.Random) -> None:
        text = json.dumps(mutated(whole, rng, PLAIN)).encode()
        path.write_bytes(damaged(text, rng) if rng.random() < 0.3 else text)
        read_rig(path)

    run("rig files", attempt)


def test_jpegs(tmp_path: Path) -> None:
    picture = np.random.RandomState(0).randint(0, 255, (45, 77, 3), np.uint8)
    options = ((), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2))
    whole = [cv2.imencode(".jpg", picture, option)[1].tobytes() for option in options]
    whole.append(cv2.imencode(".png", picture)[1].tobytes())
    path = tmp_path / "a.jpg"

    def attempt(rng: random.Random) -> None:
        path.write_bytes(damaged(rng.choice(whole), rng, rng.choice([200, 700, 10**9])))
        read_image(path, "t", (77, 45) if rng.random() < 0.3 else None)

    run("JPEGs", attempt)


def test_files_of_runs(tmp_path: Path) -> None:
    metric = {"value": 30.0, "interval": [20.0, 40.0], "rings": {"0-20 m": 31.0}, "iou": {"car": 12.0}}
    error = {"value": 0.7, "interval": [0.5, 0.9], "rings": {}, "unit": "m", "ate": {"car": 0.7, "bus": None}}
    scores = {
        "loss": 1.0, "samples": 3, "scenes": 1, "pts": {"miou": 1.0}, "metrics": {"miou_points": metric, "mate": error},
        "leading": "miou_points", "confusion": {"classes": ["a", "b"], "counts": [[1, 2], [3, 4]]},
        "worst": [{"token": "t", "loss": 2.0}],
    }  # fmt: skip
    common = {"run": "a", "step": 2}
    train = {"kind": "train", **common, "loss": 1.0, "mean_loss": 1.0, "grad_norm": 1.0, "lr": 1.0,
             "parts": {"ce": 1.0, "lovasz": 2.0}, "mean_parts": {"ce": 1.0, "lovasz": None}}  # fmt: skip
    ended = {"kind": "nonfinite", **common, "reports": ["x"]}
    whole: Dict[str, Any] = {
        "metrics": [train, {"kind": "eval", "epoch": 1, **common, **scores},
                    {"kind": "eval_raw", "epoch": 1, **common, **scores}, ended],
        "starts": [{**common, "max_steps": None, "world_size": 1, "device": "cpu", "versions": {"a": "1"}}],
        "summary": {
            "config": "tiny", "run": "a", "world_size": 1, "batch_size": 1, "global_batch": 1, "device_name": "cpu",
            "duration_s": 3.0, "steps": 2, "measured_steps": 2, "samples_per_s": 1.0, "step_time_ms": 3.0,
            "final_loss": 1.0, "evaluation": scores, "best_val_miou_pts": 3.0, "best_val_leading": 3.0,
            "leading_metric": "miou_points", "peak_memory_mib": 10.0, "seed": 0, "skipped_steps": 1, "bad_samples": 1,
            "best_epoch": 1, "stopped_early": True,
        },
    }  # fmt: skip

    def attempt(rng: random.Random) -> None:
        made = mutated(whole, rng, PLAIN)
        for name in ("metrics", "starts"):
            rows = made.get(name)
            lines = [json.dumps(row) for row in rows] if isinstance(rows, list) else [json.dumps(rows)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        text = json.dumps(made.get("summary")).encode()
        (tmp_path / "summary.json").write_bytes(damaged(text, rng) if rng.random() < 0.2 else text)
        (tmp_path / "timeline.csv").write_text(
            f"run,epoch,step,began_s,waited_s,computed_s\na,0,1,{rng.choice(PLAIN)},1,2\n"
        )
        for read in (lambda: page(read_run(tmp_path), NUSCENES), lambda: publish(tmp_path)):
            try:
                read()
            except (FileNotFoundError, ConfigError) as err:
                raise ConfigError(str(err)) from err
            except ValueError as err:  # which the command makes a sentence of
                raise ConfigError(str(err)) from err

    run("files of runs", attempt)
