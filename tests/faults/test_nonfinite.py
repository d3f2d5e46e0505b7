"""Numbers that are not finite: the report names sample and module; a step left out changes nothing; bounds hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from engine_tools import CPU, processes, write_config

from tpvformer.cli import main
from tpvformer.config import Config
from tpvformer.data.dataset import FrameDataset
from tpvformer.engine import loop as train
from tpvformer.engine import train as run
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.logging.log import RunLog
from tpvformer.errors import NonFiniteLoss

pytestmark = pytest.mark.usefixtures("quick")
BAD = "sample3"
NAN_CONTRAST = (0.0, 1.0, 1.0, 0.0, torch.nan, 0.0, 1.0, 2.0)  # see augment.draw_photometric


def skipping(config: Config, most: int = 10) -> Config:
    return replace(config, train=replace(config.train, on_nonfinite="skip", max_skipped=most))


def records(work_dir: Path, kind: str) -> List[Dict[str, Any]]:
    lines = map(json.loads, (work_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture
def bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample's images are multiplied by NaN on their way to the network."""
    real = FrameDataset.sample

    def poisoned(self: FrameDataset, index: int, augment: bool, *more: int) -> Any:
        sample = real(self, index, augment, *more)
        if sample.token == BAD and augment:
            sample.photometric = torch.tensor([NAN_CONTRAST] * len(sample.images))
        return sample

    monkeypatch.setattr(FrameDataset, "sample", poisoned)


@pytest.fixture
def bad_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient that comes back to one parameter is infinite for one sample."""
    real = train.predict

    def poisoned(model: Any, batch: Any, config: Config) -> Any:
        place = model.neck.fpn_convs[1] if hasattr(model.neck, "fpn_convs") else list(model.neck.children())[-1]
        handle = None
        if batch.tokens == [BAD]:

            def burst(module: Any, inputs: Any, output: Any) -> None:
                output.register_hook(lambda g: g * torch.inf)

            handle = next(m for m in place.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(burst)
        try:
            return real(model, batch, config)
        finally:
            if handle is not None:
                handle.remove()

    monkeypatch.setattr(train, "predict", poisoned)
    monkeypatch.setattr("tpvformer.engine.faults.diagnose.predict", poisoned)


def test_a_bad_image_is_named(config: Config, tmp_path: Path, bad_image: None) -> None:
    with pytest.raises(NonFiniteLoss, match=f"the images of sample {BAD} are not finite") as caught:
        run.train(config, tmp_path, "cpu")
    assert f"samples {BAD}: " in str(caught.value)
    (record,) = records(tmp_path, "nonfinite")
    assert BAD in record["reports"][0] and record["where"].startswith("epoch 0 iteration")


def test_a_bad_weight_is_named(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.start_from

    def damaged(job: Any, origin: Any) -> None:
        real(job, origin)
        with torch.no_grad():
            job.model.neck.get_parameter(next(n for n, _ in job.model.neck.named_parameters())).view(-1)[0] = torch.nan

    monkeypatch.setattr(run, "start_from", damaged)
    with pytest.raises(NonFiniteLoss, match=r"iteration 0, .*the weights are not finite already: neck\."):
        run.train(config, tmp_path, "cpu")


def test_a_bad_gradient_is_named(config: Config, tmp_path: Path, bad_gradient: None) -> None:
    with pytest.raises(NonFiniteLoss, match=rf"in the backward pass that of neck\..* is the first.*for sample {BAD}"):
        run.train(config, tmp_path, "cpu")


def test_a_bad_module_is_named(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.start_from

    def damaged(job: Any, origin: Any) -> None:
        real(job, origin)
        norm = next(m for m in job.model.encoder.modules() if isinstance(m, torch.nn.LayerNorm))
        norm.register_forward_hook(lambda module, given, out: out / 0)

    monkeypatch.setattr(run, "start_from", damaged)
    with pytest.raises(NonFiniteLoss, match=r"module encoder\.\S*norm\S* is the first whose output is not finite"):
        run.train(config, tmp_path, "cpu")


@pytest.mark.parametrize("fault", ["bad_image", "bad_gradient"])
def test_skipping_leaves_the_step_out_and_goes_on(config: Config, tmp_path: Path, fault: str, request) -> None:
    run.train(replace(config, train=replace(config.train, epochs=1)), tmp_path / "whole", "cpu")
    before = records(tmp_path / "whole", "train")
    request.getfixturevalue(fault)
    summary = run.train(skipping(config), tmp_path / "skipped", "cpu")
    after = records(tmp_path / "skipped", "train")
    assert summary["skipped_steps"] == 1 and len(after) == len(before) == 7
    assert all(torch.isfinite(w).all() for w in _weights(tmp_path / "skipped").values())
    (report,) = records(tmp_path / "skipped", "nonfinite")
    at = int(report["where"].rsplit(" ", 1)[1])
    assert [r["loss"] for r in after[:at]] == [r["loss"] for r in before[:at]]  # random numbers stay in step as well
    assert after[at + 1]["loss"] != before[at + 1]["loss"]
    assert "left out: the loss is" in max((tmp_path / "skipped").glob("2*.log")).read_text()


def test_the_bound_holds(config: Config, tmp_path: Path, bad_image: None, capsys) -> None:
    (tmp_path / "tiny.py").write_text("")
    file = write_config(tmp_path / "tiny.py", skipping(config, most=0))
    words = ["train", "--py-config", str(file), "--device", "cpu", "--work-dir", str(tmp_path / "run")]
    assert main(words) == 1
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0 and "0 steps were left out before, as many as train.max_skipped allows" in err


def test_an_explanation_touches_nothing(config: Config, tmp_path: Path) -> None:
    job = run.build(config, tmp_path, World(), CPU, RunLog(None, False), None)
    state = {name: value.clone() for name, value in job.model.state_dict().items()}
    drawn = torch.get_rng_state()
    assert "give finite numbers when they are run again" in job.guard.explain([BAD, "sample1"])
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in job.model.state_dict().items())


TWO = """
import sys
from pathlib import Path
import torch
from tpvformer.cli import main
from tpvformer.data.dataset import FrameDataset
real = FrameDataset.sample
def poisoned(self, index, augment, *more):
    sample = real(self, index, augment, *more)
    if sample.token == "sample3" and augment:
        sample.photometric = torch.tensor([[0.0, 1.0, 1.0, 0.0, torch.nan, 0.0, 1.0, 2.0]] * len(sample.images))
    return sample
FrameDataset.sample = poisoned
print("STATUS", main(["train", "--py-config", sys.argv[1], "--device", "cpu", "--work-dir", sys.argv[2]]), flush=True)
"""


def test_two_processes_leave_the_same_step_out(config: Config, tmp_path: Path) -> None:
    file = write_config(tmp_path / "tiny.py", skipping(config))
    outputs = processes(2, TWO, str(file), str(tmp_path / "run"))
    assert all("STATUS 0" in out for out in outputs), outputs
    (report,) = records(tmp_path / "run", "nonfinite")
    assert len(report["reports"]) == 2 and sum("images of sample sample3" in text for text in report["reports"]) == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_steps"] == 1
    log = max((tmp_path / "run").glob("2*.log")).read_text()
    assert "images of sample sample3 are not finite" in log  # whichever process had it


def _weights(work_dir: Path) -> Dict[str, torch.Tensor]:
    return store.read(work_dir / "latest.pth")["state_dict"]
