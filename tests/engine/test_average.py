"""The average of the weights (EMA): its values, what it leaves alone, and which of the two sets a file gives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from engine_tools import CPU, MODEL, POINTS, tiny_config, tiny_model, write_config
from tiny_nuscenes import write_tiny

from tpvformer.api import TPVFormer as Opened
from tpvformer.cli import main
from tpvformer.compat import load_weights
from tpvformer.config import Config, ConfigError, DataConfig, override
from tpvformer.engine import loop
from tpvformer.engine import train as run
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.optim import Stepper
from tpvformer.engine.optim.average import WeightAverage, averaged_tensors
from tpvformer.errors import CheckpointError
from tpvformer.model import TPVFormer

pytestmark = pytest.mark.usefixtures("quick")


def test_by_hand() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.2)
    expected = model.weight.item()
    for n, decay in enumerate((0.1, 2 / 11, 0.2, 0.2)):
        with torch.no_grad():
            model.weight.fill_(n + 1.0)
        average.update()
        expected = decay * expected + (1 - decay) * (n + 1)
        assert float(average.state()["state_dict"]["weight"]) == pytest.approx(expected, rel=1e-6)
    assert average.updates == 4 and average.nbytes == 4
    average.begin()
    assert average.updates == 0 and float(average.state()["state_dict"]["weight"]) == 4.0


def batch_norms(freeze: Any = ()) -> TPVFormer:
    torch.manual_seed(0)
    model = TPVFormer(dataclasses.replace(MODEL, backbone=dataclasses.replace(MODEL.backbone, norm="batch")))
    model.freeze(freeze)
    return model


def test_what_does_not_change_is_not_averaged() -> None:
    tensors = averaged_tensors(tiny_model())  # its norms are frozen
    assert set(tensors) == {name for name, p in tiny_model().named_parameters() if p.requires_grad}
    learning = averaged_tensors(batch_norms())
    assert "backbone.bn1.running_mean" in learning and "backbone.layer4.0.bn3.running_var" in learning
    assert not [name for name in learning if name.endswith("num_batches_tracked")]
    frozen = averaged_tensors(batch_norms(["backbone", "neck"]))
    assert not [name for name in frozen if name.startswith(("backbone.", "neck."))] and len(frozen) > 20


def test_the_weights_come_back_to_the_bit() -> None:
    model = batch_norms()
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        for tensor in averaged_tensors(model).values():
            tensor.mul_(1.25).add_(0.1)
    average.update()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mean = {name: value.clone() for name, value in average.state()["state_dict"].items()}
    with pytest.raises(RuntimeError, match="evaluation failed"), average.applied():
        for name, value in model.state_dict().items():
            assert torch.equal(value, mean.get(name, before[name])), name
        assert any(not torch.equal(mean[name], before[name]) for name in mean)
        raise RuntimeError("evaluation failed")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_that_overflows_is_not_counted(monkeypatch: Any) -> None:
    """The scaler of fp16 leaves such a step out and says so by its scale alone."""
    stepper = Stepper(tiny_model(), tiny_config(DataConfig()).optim, CPU)
    assert stepper.step_changed()

    class Scaler:
        scale = 8.0

        def get_scale(self) -> float:
            return self.scale

        def step(self, optimizer: Any) -> None:
            pass

        def update(self) -> None:
            self.scale *= self.factor

    stepper.scaler = scaler = Scaler()
    for factor, changed in ((1.0, True), (2.0, True), (0.5, False)):
        scaler.factor = factor
        assert stepper.step_changed() is changed


# ---- runs


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Config:
    data = write_tiny(tmp_path_factory.mktemp("set"), POINTS)
    base = tiny_config(data, ema=0.6, keep_checkpoints=9)
    backbone = dataclasses.replace(base.model.backbone, norm="batch")
    return dataclasses.replace(base, model=dataclasses.replace(base.model, backbone=backbone))


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: Any, quick: None) -> Path:
    """The work dir of a run of two epochs, with the weights of each step beside it."""
    work_dir = tmp_path_factory.mktemp("finished")
    real, steps = loop.log_step, []

    def kept(job: loop.TrainState, *given: Any) -> None:
        steps.append({name: value.clone() for name, value in job.model.state_dict().items()})
        real(job, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "log_step", kept)
        run.train(config, work_dir, "cpu")
    torch.save(steps, work_dir / "steps.pt")
    return work_dir


def records(work_dir: Path, kind: str) -> List[Dict[str, Any]]:
    lines = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_a_run_averages_every_step(config: Config, finished: Path) -> None:
    steps = torch.load(finished / "steps.pt", weights_only=True)
    content = store.read(finished / "latest.pth")
    mean = {name: value.double() for name, value in run.build_model(config, CPU).state_dict().items()}
    for n, weights in enumerate(steps):
        decay = min(0.6, (1 + n) / (10 + n))
        mean = {name: decay * value + (1 - decay) * weights[name].double() for name, value in mean.items()}
    assert content["ema"]["updates"] == len(steps) == 14
    stored = content["ema"]["state_dict"]
    assert "backbone.bn1.running_var" in stored and "encoder.level_embed" in stored
    for name, value in stored.items():
        torch.testing.assert_close(value.double(), mean[name], rtol=1e-5, atol=1e-6, msg=name)
    assert all(torch.equal(value, steps[-1][name]) for name, value in content["state_dict"].items())


def test_both_are_scored_and_the_average_leads(config: Config, finished: Path) -> None:
    averaged, raw = records(finished, "eval"), records(finished, "eval_raw")
    assert [r["epoch"] for r in averaged] == [r["epoch"] for r in raw] == [1, 2]
    assert [r["loss"] for r in averaged] != [r["loss"] for r in raw]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["best_val_leading"] == max(r["metrics"]["miou_points"]["value"] for r in averaged)
    assert summary["evaluation"]["loss"] == averaged[-1]["loss"]
    said = max(finished.glob("2*.log")).read_text()
    assert said.count("Without averaging miou_points is ") == 2
    assert "the average of the weights (train.ema) takes " in said


@pytest.mark.parametrize("which", [None, "ema", "raw"])
def test_eval_says_and_takes_what_is_asked(
    which: Any, config: Config, finished: Path, tmp_path: Path, capsys: Any
) -> None:
    words = [] if which is None else ["--which", which]
    path, file = str(finished / "epoch_2.pth"), tmp_path / "scores.json"
    assert main(["eval", "--ckpt-path", path, "--device", "cpu", "--json", str(file), *words]) == 0
    said = capsys.readouterr().out
    expected = records(finished, "eval_raw" if which == "raw" else "eval")[-1]
    assert json.loads(file.read_text())["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    line = "the weights of the last step; the file" if which == "raw" else "the average of the weights (EMA) over 14 st"
    assert said.count(line) == 1


def test_every_command_takes_the_same(config: Config, finished: Path, tmp_path: Path, capsys: Any) -> None:
    """Exported, converted and opened in Python: the average, or with ``raw`` the weights of the last step."""
    content = store.read(finished / "best.pth")
    for which in ("ema", "raw"):
        out, folder = tmp_path / f"{which}.safetensors", tmp_path / which
        words = ["--which", which]
        assert main(["export", "--ckpt-path", str(finished / "best.pth"), "--out", str(out), *words]) == 0
        assert main(["convert", str(finished), str(folder), *words]) == 0
        said = capsys.readouterr().out
        assert said.count("(EMA) over" if which == "ema" else "of the last step; the file") == 2
        expected = {**content["state_dict"], **(content["ema"]["state_dict"] if which == "ema" else {})}
        opened = Opened.from_pretrained(str(finished), device="cpu", which=which)
        again = Opened.from_pretrained(str(folder), device="cpu")
        exported = TPVFormer(config.model)
        load_weights(exported, out)
        for name, value in expected.items():
            for model in (opened.network, again.network, exported):
                if not name.endswith("num_batches_tracked"):
                    assert torch.equal(model.state_dict()[name], value), (which, name)
    assert "(EMA) over" in str(Opened.from_pretrained(str(finished), device="cpu").report)


def test_predict_and_picture_say_it(finished: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--ckpt-path", str(finished / "best.pth"), "--index", "0", "--device", "cpu"]
    arrays = []
    for which in ("ema", "raw"):
        assert main(["predict", *words, "--out", str(tmp_path / which), "--which", which]) == 0
        (path,) = (tmp_path / which).glob("*.npz")
        with np.load(path) as file:
            arrays.append(file["confidence"])
        said = capsys.readouterr().out
        assert said.count("(EMA) over" if which == "ema" else "of the last step; the file") == 1
    assert not np.array_equal(*arrays)
    assert main(["picture", *words, "--out", str(tmp_path / "frame.png")]) == 0
    assert "(EMA) over" in capsys.readouterr().out


def test_a_file_without_an_average(finished: Path, tmp_path: Path) -> None:
    """As every file before: it opens as it did; who asks for the average is told."""
    content = store.read(finished / "best.pth")
    mean = content.pop("ema")
    plain = store.write(tmp_path, "epoch_1.pth", content)
    assert Opened.from_pretrained(plain, device="cpu").report.which == ""
    with pytest.raises(CheckpointError, match=r"holds no average of the weights \(EMA\)"):
        Opened.from_pretrained(plain, device="cpu", which="ema")
    first = next(iter(mean["state_dict"]))
    mean["state_dict"][first] = torch.zeros(3, 3, 3)
    damaged = store.write(tmp_path, "epoch_2.pth", {**content, "ema": mean})
    with pytest.raises(CheckpointError, match="does not fit its weights"):
        Opened.from_pretrained(damaged, device="cpu")
    assert Opened.from_pretrained(damaged, device="cpu", which="raw").report.which
    with pytest.raises(CheckpointError, match="which is 'mean'; expected 'ema', 'raw' or None"):
        Opened.from_pretrained(plain, device="cpu", which="mean")


def test_a_run_without_an_average_goes_on_with_one(config: Config, finished: Path, tmp_path: Path) -> None:
    content = store.read(finished / "epoch_1.pth")
    mean = content.pop("ema")
    path = store.write(tmp_path, "epoch_1.pth", content)
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))
    run.train(short, tmp_path / "w", "cpu", resume_from=path)
    said = max((tmp_path / "w").glob("2*.log")).read_text()
    assert f"checkpoint {path} has no average of the weights; it begins at the weights there" in said
    begun = store.read(tmp_path / "w" / "epoch_1.pth")["ema"]
    assert begun["updates"] == 0
    assert all(torch.equal(value, content["state_dict"][name]) for name, value in begun["state_dict"].items())
    mean["state_dict"].pop(next(iter(mean["state_dict"])))
    path = store.write(tmp_path, "epoch_1.pth", {**content, "ema": mean})
    with pytest.raises(CheckpointError, match="does not fit: its average of the weights"):
        run.train(short, tmp_path / "v", "cpu", resume_from=path)


def test_off_nothing_is_kept(config: Config, finished: Path, tmp_path: Path) -> None:
    """The weights of a run are the same to the bit with an average beside them and without."""
    plain = dataclasses.replace(config, train=dataclasses.replace(config.train, ema=0.0))
    run.train(plain, tmp_path / "w", "cpu")
    ours, theirs = (store.read(folder / "latest.pth") for folder in (tmp_path / "w", finished))
    assert "ema" not in ours and not records(tmp_path / "w", "eval_raw")
    losses = [[r["loss"] for r in records(folder, "train")] for folder in (tmp_path / "w", finished)]
    assert losses[0] == losses[1] and len(losses[0]) == 14
    assert [r["loss"] for r in records(tmp_path / "w", "eval")] == [r["loss"] for r in records(finished, "eval_raw")]
    assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())


def test_wrong_settings_are_named() -> None:
    for value in ("1", "-0.1"):
        with pytest.raises(ConfigError, match="train.ema"):
            override(tiny_config(DataConfig()), [f"train.ema={value}"])


def test_a_configuration_file_takes_it(config: Config, tmp_path: Path) -> None:
    from tpvformer.compat import load_config

    assert load_config(write_config(tmp_path / "tiny.py", config)).train.ema == 0.6
