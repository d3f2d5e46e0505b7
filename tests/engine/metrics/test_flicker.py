"""Label flicker, and how far back an evaluation lets a temporal model read."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch
from engine_tools import CPU, ROOT, processes, reading_the_past, tiny_config, write_config
from tiny_nuscenes import write_tiny

from tpvformer import api
from tpvformer.cli import main
from tpvformer.config import Config, DataConfig
from tpvformer.config.detection import DetectionConfig
from tpvformer.config.history import HistoryConfig
from tpvformer.data.dataset import FrameDataset, open_frames
from tpvformer.data.loader import collate, make_loader
from tpvformer.data.street.write import write_dataset
from tpvformer.data.types import Batch
from tpvformer.data.voxels.voxelize import grid_index
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation.evaluate import evaluate, report
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.metrics.flicker import FlickerTally, pairs_of
from tpvformer.engine.metrics.named import RING_NAMES
from tpvformer.errors import ConfigError, DataError
from tpvformer.geometry import now_to_past, transform_points
from tpvformer.labels import CLASS_NAMES, STATIC
from tpvformer.model import Prediction, TPVFormer
from tpvformer.untrusted.run_files import check_record
from tpvformer.viz.report.scores import metric_table

pytestmark = pytest.mark.usefixtures("quick")
EVALUATE = """
import sys
import torch
from pathlib import Path
from tpvformer.compat import load_config
from tpvformer.engine.evaluation.checkpoint_scores import evaluate_checkpoint
torch.set_num_threads(1)
evaluate_checkpoint(load_config(sys.argv[1]), Path(sys.argv[2]), "cpu", out=Path(sys.argv[3]), flicker=True)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Config:
    """Three streets to validate on, of three frames each, 0.5 s apart; voxels of 2 m."""
    root = tmp_path_factory.mktemp("street") / "set"
    write_dataset(root, 4, (64, 36), 3, 3, workers=1)
    path = root / "nuscenes_infos_all.pkl"
    merge(path, [root / f"nuscenes_infos_{split}.pkl" for split in ("val", "train")])
    data = DataConfig(root=str(root), version="v1.0-mini", workers=0, train_infos=str(path), val_infos=str(path))
    made = tiny_config(data)
    grid = dataclasses.replace(made.model.grid, w=51, h=51, z=8)
    return dataclasses.replace(made, model=dataclasses.replace(made.model, grid=grid))


def merge(out: Path, parts: List[Path]) -> None:
    import pickle

    contents = [pickle.loads(path.read_bytes()) for path in parts]  # noqa: S301 - written by this test
    contents[0]["infos"] = [info for content in contents for info in content["infos"]]
    out.write_bytes(pickle.dumps(contents[0]))


def temporal(config: Config, frames: int = 1) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, history=HistoryConfig(frames=frames)))


def answers(batch: Batch, classes: np.ndarray) -> Prediction:
    """A prediction whose point head gives each voxel of the batch's sample a class (M,)."""
    logits = torch.zeros(1, 17, len(classes))
    logits[0, torch.from_numpy(classes), torch.arange(len(classes))] = 1.0
    return Prediction(logits, logits)


def by_hand(data: FrameDataset, config: Config, predicted: Dict[int, np.ndarray]) -> Tuple[int, int]:
    """Changed and compared voxels, one voxel after the other."""
    grid, changed, compared = config.model.grid, 0, 0
    seen = {}
    for index in range(len(data)):
        sample = data[index]
        for voxel, guess in zip(sample.voxel_coords.tolist(), predicted[index]):
            if all(0 < i < n - 1 for i, n in zip(voxel, grid.shape)):
                seen[(index, *voxel)] = int(sample.voxel_labels[tuple(voxel)]), int(guess)
    low, high = np.array(grid.pc_range[:3]), np.array(grid.pc_range[3:])
    pitch = (high - low) / (np.array(grid.shape) - 1)
    before = pairs_of(data)
    for (index, *voxel), (truth, guess) in seen.items():
        if index not in before or truth not in STATIC:
            continue
        poses = [data.grid2global(i) for i in (index, before[index])]
        assert poses[0] is not None and poses[1] is not None
        place = transform_points((low + (np.array(voxel) + 0.5) * pitch)[None], now_to_past(poses[0], poses[1]))
        if not ((place > low) & (place < high)).all():
            continue
        there = seen.get((before[index], *grid_index(place, grid.shape, grid.pc_range)[0].tolist()))
        if there is not None and there[0] == truth:
            compared, changed = compared + 1, changed + (there[1] != guess)
    return changed, compared


def test_flicker_is_what_a_count_by_hand_gives(config: Config) -> None:
    data, rng = open_frames(config, "val"), np.random.RandomState(0)
    tally, predicted = FlickerTally(config, data, CPU), {}
    for index in (i for drive in data.drives for i in drive):
        batch = collate([data[index]], 0)
        truth = batch.voxel_labels[0][tuple(batch.voxel_coords[0].T)].numpy().astype(np.int64)
        predicted[index] = np.where(rng.random_sample(len(truth)) < 0.3, 4, truth)
        tally.add(batch, answers(batch, predicted[index]))
    found = tally.metrics()["flicker"]
    changed, compared = by_hand(data, config, predicted)
    assert compared > 500 and found.value == pytest.approx(100 * changed / compared)
    assert 20 < changed / compared * 100 < 60
    assert found.interval is not None and found.interval[0] < found.value < found.interval[1]
    assert set(found.classes) == {CLASS_NAMES[c] for c in STATIC} and found.classes["driveable_surface"] is not None
    assert set(found.rings) == set(RING_NAMES) and found.unit == "%"


def test_what_stays_does_not_flicker_even_if_it_is_wrong(config: Config) -> None:
    data = open_frames(config, "val")
    for guess in (None, 4):
        tally = FlickerTally(config, data, CPU)
        for index in (i for drive in data.drives for i in drive):
            batch = collate([data[index]], 0)
            truth = batch.voxel_labels[0][tuple(batch.voxel_coords[0].T)].numpy().astype(np.int64)
            tally.add(batch, answers(batch, truth if guess is None else np.full_like(truth, guess)))
        assert tally.metrics()["flicker"].value == 0


def test_frames_out_of_order_are_an_error(config: Config) -> None:
    data = open_frames(config, "val")
    tally, drive = FlickerTally(config, data, CPU), data.drives[0]
    with pytest.raises(RuntimeError, match="was not read after the frame before it"):
        batch = collate([data[drive[1]]], 0)
        tally.add(batch, answers(batch, np.zeros(len(batch.voxel_coords[0]), np.int64)))


def test_sets_and_models_without_what_it_takes(config: Config, tmp_path: Path) -> None:
    model = dataclasses.replace(config.model, detection=DetectionConfig())
    loss = dataclasses.replace(config.loss, segmentation=0.0, detection=1.0)
    boxes_alone = dataclasses.replace(config, model=model, loss=loss)
    with pytest.raises(ConfigError, match="flicker compares the classes of lidar points"):
        FlickerTally(boxes_alone, open_frames(config, "val"), CPU)
    bare = tiny_config(write_tiny(tmp_path, (40, 90)))
    with pytest.raises(DataError, match="none of its 2 frames has one before it, so flicker cannot be measured"):
        FlickerTally(bare, open_frames(bare, "val"), CPU)


def test_batches_and_scene_order_do_not_change_scores(config: Config, capsys: Any) -> None:
    data, model, found = open_frames(config, "val"), TPVFormer(config.model), []
    for size in (1, 2):
        cfg = dataclasses.replace(config.data, batch_size=size)
        loader = make_loader(data, cfg, 0, 1, train=False, seed=0, by_scene=True)
        tally = FlickerTally(config, data, CPU)
        result = evaluate(
            model, loader, config, World(), CPU, RunLog(None, False), keep=lambda b, p, t=tally: t.add(b, p)
        )
        found.append((tally.metrics(), result.metrics))
    assert found[0][0] == found[1][0] and found[0][0]["flicker"].value is not None
    assert found[0][1]["miou_points"] == found[1][1]["miou_points"]
    report(dataclasses.replace(result, metrics={**result.metrics, **found[0][0]}), config, RunLog(None, True))
    assert re.search(r"flicker +: +\d+\.\d\d%", capsys.readouterr().out)


def test_two_processes_count_what_one_does(config: Config, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(TPVFormer(config.model).state_dict(), tmp_path / "w.pth")
    file, found = write_config(tmp_path / "config.py", config), []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        processes(ranks, EVALUATE, str(file), str(tmp_path / "w.pth"), str(out), PYTHONPATH=str(ROOT))
        found.append(json.loads(out.read_text())["metrics"])
    assert found[0]["flicker"] == found[1]["flicker"] and found[0]["flicker"]["value"] is not None
    assert set(found[0]["flicker"]) == {"value", "interval", "flicker", "rings"}
    assert found[0]["miou_points"] == found[1]["miou_points"]
    record = {"kind": "eval", "epoch": 1, "step": 3, "samples": 9, "metrics": found[0]}
    check_record(record)
    assert "flicker" in metric_table(record)


def test_windows_hold_the_seconds_that_are_asked_for(config: Config) -> None:
    two = temporal(config, 2)
    whole = open_frames(two, "val").windows
    assert sorted(map(len, whole)) == sorted([0, 1, 2] * len(whole_drives(two)))
    half, times = open_frames(two, "val", 0.55), open_frames(two, "val").timestamps
    for now, (window, cut) in enumerate(zip(whole, half.windows)):
        assert cut == tuple(old for old in window if times[now] - times[old] <= 0.551)
    assert max(map(len, half.windows)) == 1
    assert not any(open_frames(two, "val", 0.0).windows) and not open_frames(two, "val", 0.0)[1].past
    for config_, seconds, said in (
        (config, 0.5, "the model has no model.history"),
        (two, -1.0, "past seconds are -1"),
        (two, float("nan"), "past seconds are nan"),
    ):
        with pytest.raises(ConfigError, match=said):
            open_frames(config_, "val", seconds)


def whole_drives(config: Config) -> List[List[int]]:
    return open_frames(config, "val").drives


def test_eval_limits_the_past_and_scores_flicker(config: Config, tmp_path: Path, capsys: Any) -> None:
    two, scores = temporal(config, 2), {}
    scenes = whole_drives(two)
    torch.save(reading_the_past(two).state_dict(), tmp_path / "w.pth")
    file = write_config(tmp_path / "config.py", two)
    words = ["eval", "--py-config", str(file), "--ckpt-path", str(tmp_path / "w.pth"), "--device", "cpu"]
    for seconds in ("0", "0.55", "2"):
        out = tmp_path / "scores.json"
        assert main([*words, "--past-seconds", seconds, "--flicker", "--json", str(out)]) == 0
        said = capsys.readouterr().out
        assert f"past frames of at most {seconds} s: {0 if seconds == '0' else 2 * len(scenes)} of" in said
        scores[seconds] = json.loads(out.read_text())
    assert len({each["loss"] for each in scores.values()}) == 3
    assert all(each["metrics"]["flicker"]["value"] is not None for each in scores.values())
    static = tmp_path / "static.pth"
    names = TPVFormer(config.model).state_dict()
    torch.save({name: t for name, t in reading_the_past(two).state_dict().items() if name in names}, static)
    plain = write_config(tmp_path / "plain.py", config)
    words = ["eval", "--py-config", str(plain), "--ckpt-path", str(static), "--device", "cpu"]
    assert main([*words, "--json", str(tmp_path / "static.json")]) == 0
    alone = json.loads((tmp_path / "static.json").read_text())
    assert "flicker" not in alone["metrics"] and alone["loss"] == pytest.approx(scores["0"]["loss"])
    capsys.readouterr()
    assert main([*words, "--past-seconds", "0.5"]) != 0
    assert "the model has no model.history" in capsys.readouterr().err
    assert main([*words, "--split", "test", "--flicker"]) != 0
    assert "leave --flicker out" in capsys.readouterr().err


def test_eval_with_shuffled_poses_is_another_answer(config: Config, tmp_path: Path, capsys: Any) -> None:
    two, losses = temporal(config, 2), {}
    torch.save(reading_the_past(two).state_dict(), tmp_path / "w.pth")
    for batch_size in (1, 2):
        data = dataclasses.replace(two.data, batch_size=batch_size)
        file = write_config(tmp_path / "config.py", dataclasses.replace(two, data=data))
        words = ["eval", "--py-config", str(file), "--ckpt-path", str(tmp_path / "w.pth"), "--device", "cpu"]
        for more in ([], ["--shuffle-poses"]):
            assert main([*words, *more, "--json", str(tmp_path / "scores.json")]) == 0
            said = capsys.readouterr().out
            told = re.findall(r"(\d+) of \d+ samples have the motion of another sample, .* ([\d.]+) m away", said)
            assert (len(told) == 1 and int(told[0][0]) == 2 * len(whole_drives(two))) if more else not told
            scores = json.loads((tmp_path / "scores.json").read_text())
            assert scores.get("shuffle_poses", False) == bool(more)
            losses[batch_size, bool(more)] = scores["loss"]
    for shuffled in (False, True):
        assert losses[1, shuffled] == pytest.approx(losses[2, shuffled], abs=1e-5)
    assert abs(losses[1, True] - losses[1, False]) > 1e-4
    assert main([*words, "--shuffle-poses", "--submission", str(tmp_path / "s.zip")]) != 0
    assert "a control and no submission" in capsys.readouterr().err
    file = write_config(tmp_path / "static.py", config)
    assert main(["eval", "--py-config", str(file), *words[3:], "--shuffle-poses"]) != 0
    said = capsys.readouterr().err
    assert "no past is read; expected a model with model.history" in said and "Traceback" not in said


def test_python_has_the_options_of_the_command(config: Config) -> None:
    two = temporal(config, 2)
    model = api.TPVFormer(two, device="cpu")
    model.network.load_state_dict(reading_the_past(two).state_dict())
    found = [model.val(), model.val(past_seconds=0, flicker=True), model.val(shuffle_poses=True)]
    assert len({score.loss for score in found}) == 3
    assert ["flicker" in score.metrics for score in found] == [False, True, False]


def test_a_static_model_is_measured_on_the_same_voxels(config: Config) -> None:
    data = open_frames(config, "val")
    assert pairs_of(data) == pairs_of(open_frames(temporal(config, 2), "val")) and len(pairs_of(data)) > 2
