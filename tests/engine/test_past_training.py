"""Training and evaluation with past frames: what is computed, and that resuming and ranks change nothing."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from engine_tools import CPU, ROOT, processes, reading_the_past, tiny_config, write_config

from tpvformer.config import Config, DataConfig
from tpvformer.config.history import HistoryConfig
from tpvformer.data.dataset import open_frames
from tpvformer.data.loader import collate
from tpvformer.data.street.write import write_dataset
from tpvformer.data.types import Batch
from tpvformer.engine import loop
from tpvformer.engine import train as run
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.forward import predict
from tpvformer.engine.losses import total_loss
from tpvformer.engine.past import history_of

pytestmark = pytest.mark.usefixtures("quick")
TRAIN = """
import sys
from pathlib import Path
import torch
from tpvformer.compat import load_config
from tpvformer.engine.train import train
torch.set_num_threads(1)
train(load_config(sys.argv[1]), Path(sys.argv[2]), "cpu")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> DataConfig:
    """Two streets, one to train on, of four frames each."""
    root = tmp_path_factory.mktemp("street") / "set"
    write_dataset(root, 2, (64, 36), 3, 4, workers=1)
    infos = {f"{split}_infos": str(root / f"nuscenes_infos_{split}.pkl") for split in ("train", "val")}
    return DataConfig(root=str(root), version="v1.0-mini", workers=0, **infos)


def config_of(data: DataConfig, frames: int = 1, **train: Any) -> Config:
    config = tiny_config(data, **train)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, history=HistoryConfig(frames=frames)))


def batch_of(config: Config, index: int) -> Batch:
    return collate([open_frames(config, "val")[index]], 0)


def weights(work_dir: Path) -> Dict[str, torch.Tensor]:
    return store.read(work_dir / "latest.pth")["state_dict"]


@pytest.mark.parametrize("frames", [1, 2])
def test_a_window_is_the_stream_that_begins_with_it(data: DataConfig, frames: int) -> None:
    config = config_of(data, frames)
    model, history = reading_the_past(config).eval(), None
    with torch.no_grad():
        for index in range(frames + 1):
            batch = batch_of(config, index)
            alone = dataclasses.replace(batch, past=[])
            if history is not None:
                frame = batch.past[0]
                history = history.moved(frame.motion, frame.gap)
            streamed = predict(model, alone, config, history=history)
            history = streamed.history
        windowed = predict(model, batch, config)
        assert torch.allclose(windowed.voxel_logits, streamed.voxel_logits, atol=1e-5)
        forgot = predict(model, alone, config)
    assert (windowed.voxel_logits - forgot.voxel_logits).abs().max() > 1e-3


def test_the_past_has_no_gradients_and_changes_no_norm(data: DataConfig) -> None:
    config = config_of(data)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model, dropout=0.3, backbone=dataclasses.replace(config.model.backbone, norm="batch")
        ),
    )
    model, batch = reading_the_past(config).train(), batch_of(config, 1)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    first, second = (history_of(model, batch, config) for _ in range(2))
    assert first is not None and second is not None and model.training
    assert torch.equal(first.planes, second.planes) and not first.planes.requires_grad
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    total_loss(predict(model, batch, config), batch, config.loss, config.data).backward()
    assert all(p.grad is not None for p in model.history.parameters())


def test_a_frame_without_a_past_is_static(data: DataConfig) -> None:
    config = config_of(data)
    model, batch = reading_the_past(config).eval(), batch_of(config, 0)
    assert not batch.past[0].valid.any()
    with torch.no_grad():
        with_past, alone = (predict(model, b, config) for b in (batch, dataclasses.replace(batch, past=[])))
    assert torch.allclose(with_past.voxel_logits, alone.voxel_logits, atol=1e-6)


def test_resuming_is_equal_to_the_bit(data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the end of an epoch, and from the middle of the first and of the second one."""
    config = config_of(data, epochs=2, save_every_steps=1)
    run.train(config, tmp_path / "whole", "cpu")
    run.train(config, tmp_path / "end", "cpu", resume_from=tmp_path / "whole" / "epoch_1.pth")
    save = loop.save_if_due

    def save_and_end(ends: int, job: loop.TrainState) -> None:
        save(job)
        job.saver.wait()
        if job.progress.global_iter == ends:
            raise KeyboardInterrupt

    for ends in (1, 6):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_if_due", functools.partial(save_and_end, ends))
            with pytest.raises(KeyboardInterrupt):
                run.train(config, tmp_path / f"step_{ends}", "cpu")
        assert run.train(config, tmp_path / f"step_{ends}", "cpu")["steps"] == 8 - ends
    whole = weights(tmp_path / "whole")
    assert any(name.startswith("history.") for name in whole)
    for resumed in ("end", "step_1", "step_6"):
        found = weights(tmp_path / resumed)
        assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items()), resumed


def test_two_processes_train_as_one_with_twice_the_batch(data: DataConfig, tmp_path: Path) -> None:
    single = config_of(dataclasses.replace(data, batch_size=2), epochs=1)
    run.train(single, tmp_path / "one", "cpu")
    file = write_config(tmp_path / "config.py", config_of(data, epochs=1))
    processes(2, TRAIN, str(file), str(tmp_path / "two"), PYTHONPATH=str(ROOT))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=3e-5), name


def test_old_weights_start_a_temporal_model(data: DataConfig, tmp_path: Path) -> None:
    """The new parts start at zero: the first answers are those of the old model."""
    old = tiny_config(data, epochs=1)
    run.train(old, tmp_path / "old", "cpu")
    config = config_of(data, load_from=str(tmp_path / "old" / "latest.pth"))
    model = run.build_model(config, CPU).eval()
    model.load_state_dict({**model.state_dict(), **weights(tmp_path / "old")})
    static = run.build_model(old, CPU).eval()
    static.load_state_dict(weights(tmp_path / "old"))
    batch = batch_of(config, 1)
    with torch.no_grad():
        temporal, plain = predict(model, batch, config), predict(static, dataclasses.replace(batch, past=[]), old)
    assert torch.allclose(temporal.voxel_logits, plain.voxel_logits, atol=1e-5)
    run.train(config, tmp_path / "new", "cpu", max_steps=1)
