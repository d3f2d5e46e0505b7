"""Checkpoints: whole or absent, tensors only, restored to the bit, refused where they do not belong."""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import torch
from engine_tools import CPU, ROOT, save_epoch, tiny_config, tiny_model, write_config
from tiny_nuscenes import write_tiny

from tpvformer.cli import main
from tpvformer.compat import CheckpointError, load_weights
from tpvformer.compat.pretrained import config_of
from tpvformer.config import Config, DataConfig
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.checkpoint import rng
from tpvformer.engine.checkpoint import state as checkpoint
from tpvformer.engine.checkpoint.state import Progress
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.logging.meters import LossMeter
from tpvformer.engine.optim import Stepper

CONFIG = tiny_config(DataConfig())


def trained(config: Config = CONFIG):
    """A model and optimiser that have made a step, so that every moment exists."""
    model = tiny_model()
    stepper = Stepper(model, config.optim, CPU)
    torch.manual_seed(5)
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    stepper.optimizer.step()
    return model, stepper


@pytest.fixture
def saved(tmp_path: Path):
    model, stepper = trained()
    progress = Progress(epoch=3, global_iter=21, evaluated=True, best_val_miou_pts=41.5, best_val_miou_vox=None)
    path = save_epoch(tmp_path, model, stepper, CONFIG, progress)
    return path, model, stepper, progress


def test_round_trip_restores_everything(saved) -> None:
    path, model, stepper, progress = saved
    other = tiny_model(seed=9)
    fresh = Stepper(other, CONFIG.optim, CPU)
    back, changed = checkpoint.resume(store.read(path), path, other, fresh, CONFIG)
    assert back == progress
    assert changed == ""
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(a, b), name
    ours, theirs = stepper.optimizer.state_dict()["state"], fresh.optimizer.state_dict()["state"]
    assert all(torch.equal(ours[i][key], theirs[i][key]) for i in ours for key in ours[i])


def test_file_holds_tensors_and_plain_values_only(saved) -> None:
    note, content = torch.load(saved[0], weights_only=True).values()
    assert "tpvformer convert" in note and content["epoch"] == 3
    assert content["config"]["train"]["epochs"] == 2

    def plain(value) -> bool:
        if isinstance(value, dict):
            return all(plain(v) for v in value.values())
        if isinstance(value, (list, tuple)):
            return all(plain(v) for v in value)
        return value is None or isinstance(value, (torch.Tensor, str, int, float, bool))

    assert plain(content)


@pytest.mark.parametrize("name", ["latest.pth", "epoch_3.pth", "best.pth"])
@pytest.mark.parametrize("first", [lambda key: key[:7] == "module.", lambda key: key.startswith("module.")])
def test_other_programs_cannot_take_it_for_weights(saved, tmp_path: Path, name: str, first) -> None:
    """The reference's eval.py would score random weights: it loads whatever it finds, and is not strict."""
    store.write(tmp_path, "epoch_3.pth", store.read(saved[0]), best=True)

    def as_the_reference(file: Path) -> Dict[str, Any]:
        content = torch.load(file, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content)
        return state if first(next(iter(state))) else {f"module.{key}": value for key, value in state.items()}

    with pytest.raises((TypeError, AttributeError)):
        as_the_reference(tmp_path / name)
    with pytest.raises((TypeError, AttributeError)):
        tiny_model().load_state_dict(torch.load(tmp_path / name, weights_only=True), strict=False)
    old = store.read(tmp_path / name)
    torch.save(old, tmp_path / "old.pth")  # as versions before wrote it
    assert as_the_reference(tmp_path / "old.pth")["module.neck.lateral.0.bias"] is not None
    for a, b in zip(store.read(tmp_path / "old.pth")["state_dict"].values(), old["state_dict"].values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("where", ["weights", "moments"])
def test_what_is_not_finite_is_named_and_not_resumed(saved, where: str) -> None:
    path, _, stepper, _ = saved
    content = store.read(path)
    if where == "weights":
        content["state_dict"]["neck.lateral.0.bias"][0] = float("nan")
    else:
        place = next(iter(content["optimizer"]["state"]))
        content["optimizer"]["state"][place]["exp_avg"].view(-1)[0] = float("inf")
    named = "neck.lateral.0.bias" if where == "weights" else "exp_avg of parameter"
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"1 tensors hold NaN or infinite numbers: {named}.*--resume-from"):
        checkpoint.resume(content, path, model, Stepper(model, CONFIG.optim, CPU), CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_can_start_another_training(saved) -> None:
    other = tiny_model(seed=9)
    assert not load_weights(other, saved[0]).missing
    assert torch.equal(other.state_dict()["encoder.level_embed"], saved[1].state_dict()["encoder.level_embed"])


def test_latest_is_a_relative_link_that_survives_a_move(saved, tmp_path: Path) -> None:
    assert os.readlink(tmp_path / "latest.pth") == "epoch_3.pth"
    moved = tmp_path.parent / "moved"
    tmp_path.rename(moved)
    assert store.read(moved / "latest.pth")["epoch"] == 3
    moved.rename(tmp_path)


def test_latest_is_a_copy_where_links_are_impossible(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    model, stepper = trained()
    for epoch in (1, 2):
        save_epoch(tmp_path, model, stepper, CONFIG, Progress(epoch=epoch))
    assert not (tmp_path / "latest.pth").is_symlink()
    assert store.read(tmp_path / "latest.pth")["epoch"] == 2


def test_best_does_not_change_with_what_comes_after(saved, tmp_path: Path) -> None:
    path, model, stepper, _ = saved
    store.write(tmp_path, path.name, store.read(path), best=True)
    save_epoch(tmp_path, model, stepper, CONFIG, Progress(epoch=3, global_iter=99))
    assert store.read(tmp_path / "best.pth")["global_iter"] == 21


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, tmp_path: Path, monkeypatch) -> None:
    path, model, stepper, _ = saved

    def fail(content, target):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_epoch(tmp_path, model, stepper, CONFIG, Progress(epoch=3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_3.pth", "latest.pth"]
    assert store.read(path)["global_iter"] == 21


def test_settings_come_from_the_configuration_moments_from_the_file(saved) -> None:
    path = saved[0]
    config = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, weight_decay=0.5))
    model = tiny_model()
    stepper = Stepper(model, config.optim, CPU)
    _, changed = checkpoint.resume(store.read(path), path, model, stepper, config)
    assert changed == "optim: weight_decay is 0.01 there and 0.5 here"
    assert {group["weight_decay"] for group in stepper.optimizer.param_groups} == {0.5}


def test_another_model_is_refused_by_name(saved) -> None:
    path, model, stepper, _ = saved
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, num_classes=18))
    with pytest.raises(CheckpointError, match="num_classes is 17 there and 18 here"):
        checkpoint.resume(store.read(path), path, model, stepper, config)


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no\.pth"):
        store.read(tmp_path / "no.pth")
    (tmp_path / "latest.pth").symlink_to("epoch_9.pth")
    with pytest.raises(CheckpointError, match=r"points at epoch_9\.pth, which is gone"):
        store.read(tmp_path / "latest.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        store.read(tmp_path / "cut.pth")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"train\.load_from"):
        store.read(tmp_path / "weights.pth")


def test_best_scores_ignore_what_is_not_there() -> None:
    progress = Progress()
    assert not progress.improve(None, None, None)
    assert progress.improve(10.0, 5.0, 10.0)
    assert not progress.improve(9.0, 7.0, 9.0)
    assert not progress.improve(10.0, None, 10.0)
    assert progress.improve(8.0, 1.0, 11.0), "dense labels lead where there are any"
    assert (progress.best_val_miou_pts, progress.best_val_miou_vox) == (10.0, 7.0)


def test_random_numbers_go_on_where_they_were() -> None:
    def drawn():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))  # noqa: NPY002

    rng.seed_all(2**70 + 3)
    drawn()
    state = rng.random_state(CPU)
    expected = [drawn() for _ in range(3)]
    rng.seed_all(0)
    assert drawn() != expected[0]
    rng.restore_random_state(state, CPU)
    assert [drawn() for _ in range(3)] == expected


def test_the_mean_loss_goes_on_to_the_last_bit() -> None:
    values = [0.1 * 3**-k for k in range(9)]
    one, two = (LossMeter(World()) for _ in range(2))
    for k, value in enumerate(values):
        for meter in (one, two):
            meter.add("", [], torch.tensor(value), {"ce": torch.tensor(value / 3), "lovasz": torch.tensor(1 - value)})
        if k in (2, 3, 7):
            two.read()
            state, two = two.state(), LossMeter(World())
            two.restore(state)
    one.read()
    two.read()
    assert one.state() == two.state() and one.mean == two.mean
    assert one.mean_parts == two.mean_parts and one.last_parts == two.last_parts
    assert one.mean_parts["ce"] == pytest.approx(sum(values) / 27, rel=1e-5)
    assert one.last_parts["lovasz"] == pytest.approx(1 - values[-1], rel=1e-6)
    two.restore({"sum": 1.0, "count": 2, "last": 0.5})  # of an older version
    assert two.mean == 0.5 and two.mean_parts == {}


# ---- files of an earlier version: what the package wrote before its modules were moved


EARLIER = ROOT / "tests" / "golden_data" / "earlier"
CHECKPOINT, ARCHIVE = EARLIER / "epoch_1.pth", EARLIER / "sample0.npz"


@pytest.fixture
def config_file(quick: None, tmp_path: Path) -> str:
    config = config_of(CHECKPOINT)
    data = dataclasses.replace(write_tiny(tmp_path / "set", (9, 8)), photometric=False, grid_mask=False)
    train = dataclasses.replace(config.train, epochs=2)
    return str(write_config(tmp_path / "tiny.py", dataclasses.replace(config, data=data, train=train)))


def test_a_checkpoint_predicts_what_it_did(config_file: str, tmp_path: Path) -> None:
    given = ["--py-config", config_file, "--ckpt-path", str(CHECKPOINT), "--index", "0", "--truth", "--device", "cpu"]
    assert main(["predict", *given, "--out", str(tmp_path / "out")]) == 0
    with np.load(ARCHIVE) as before, np.load(tmp_path / "out" / "sample0.npz") as now:
        assert set(before.files) <= set(now.files)
        for name in ("token", "voxels", "point_labels", "pc_range", "lidar2img", "class_names", "true_voxels"):
            assert np.array_equal(before[name], now[name]), name
        assert np.allclose(before["confidence"], now["confidence"], atol=1e-3)


def test_an_archive_is_shown(tmp_path: Path) -> None:
    assert main(["view", str(ARCHIVE), "--html", str(tmp_path / "page.html")]) == 0
    assert "sample0" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_run_goes_on(config_file: str, tmp_path: Path, capsys: Any) -> None:
    given = ["--py-config", config_file, "--resume-from", str(CHECKPOINT), "--work-dir", str(tmp_path / "run")]
    assert main(["train", *given, "--device", "cpu"]) == 0
    assert f"resumed {CHECKPOINT} at epoch 1" in capsys.readouterr().out
    assert (tmp_path / "run" / "epoch_2.pth").is_file()
