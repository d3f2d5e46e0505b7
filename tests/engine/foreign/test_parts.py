"""The parts of ``tpvformer run``: stand-ins for packages, the command line, remarks, and errors of a script."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, List

import fork_tools as fork
import pytest
import torch

from tpvformer import cli
from tpvformer.commands.parser import split_script
from tpvformer.engine.device.redirect import find_cards
from tpvformer.engine.foreign.cosine import CosineLRScheduler
from tpvformer.engine.foreign.nuscenes import NuScenes
from tpvformer.errors import ConfigError, DataError


def rates(updates: int, base: float = 1.0, **options: Any) -> List[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
    scheduler = CosineLRScheduler(optimizer, **options)
    found = [optimizer.param_groups[0]["lr"]]
    for t in range(updates):
        (scheduler.step if options.get("t_in_epochs", True) else scheduler.step_update)(t)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def half(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def test_rates_of_the_scheduler() -> None:
    """By hand: warm-up, cosine from its beginning or its end, the lowest rate, further cycles."""
    assert rates(5, t_initial=4, lr_min=0.1) == pytest.approx(
        [1, 1, *(0.1 + 0.9 * half(t / 4) for t in (1, 2, 3)), 0.1]
    )
    warm = {"t_initial": 4, "warmup_t": 2, "warmup_lr_init": 0.2}
    assert rates(4, **warm) == pytest.approx([0.2, 0.2, 0.6, half(0.5), half(0.75)])
    assert rates(4, **warm, warmup_prefix=True) == pytest.approx([0.2, 0.2, 0.6, 1, half(0.25)])
    again = {"t_initial": 2, "cycle_mul": 2.0, "cycle_decay": 0.5, "cycle_limit": 2}
    wanted = [1, 1, 0.5, 0.5, 0.5 * half(0.25), 0.25, 0.5 * half(0.75), 0]
    assert rates(7, **again) == pytest.approx(wanted)
    assert rates(3, t_initial=4, t_in_epochs=False) == pytest.approx([1, 1, half(0.25), half(0.5)])


def test_what_the_scheduler_keeps_and_refuses() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    first, second = (CosineLRScheduler(optimizer, t_initial=n) for n in (4, 9))
    second.load_state_dict(first.state_dict())
    assert second.t_initial == 4 and "optimizer" not in first.state_dict() and second.get_cycle_length() == 4
    first.step_update(3)  # time is counted in epochs
    assert optimizer.param_groups[0]["lr"] == 1
    with pytest.raises(ConfigError, match="noise_range_t is not supported here; pip install timm"):
        CosineLRScheduler(optimizer, 4, noise_range_t=(0, 1))


def test_tables_of_nuscenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fork.write_tables(tmp_path / "set", 3)
    nusc = NuScenes("v1.0-mini", str(root))
    assert "each read when it is asked for" in capsys.readouterr().out and not nusc._tables
    sample = nusc.get("sample", "sample1")
    assert sample["data"] == {"LIDAR_TOP": "scan1", "CAM_FRONT": "image1"} and sample["anns"] == []
    record = nusc.get("sample_data", sample["data"]["CAM_FRONT"])
    assert record["sensor_modality"] == "camera" and record["channel"] == "CAM_FRONT"
    assert nusc.get("lidarseg", "scan2")["filename"] == "lidarseg/scan2.bin"
    assert nusc.get_sample_data_path("scan0") == str(root / "samples/scan0.bin")
    assert nusc.getind("sample", "sample2") == 2 and len(nusc.sample) == 3
    assert nusc.field2token("sensor", "modality", "lidar") == ["s0"]
    with pytest.raises(KeyError):
        nusc.get("sample", "nobody")
    with pytest.raises(AttributeError, match=r"NuScenes\.render_sample: nuscenes-devkit is not installed"):
        nusc.render_sample  # noqa: B018
    boxes = [{"token": "box", "sample_token": "sample0"}]
    (root / "v1.0-mini/sample_annotation.json").write_text(json.dumps(boxes))
    assert NuScenes("v1.0-mini", str(root), verbose=False).sample[0]["anns"] == ["box"]
    with pytest.raises(DataError, match="no such folder of nuScenes tables"):
        NuScenes("v1.0-trainval", str(root))


def test_the_script_s_arguments_are_left_as_they_are() -> None:
    words = ["run", "--device", "cpu", "--cards=2", "a.py", "--work_dir", "x", "--device", "y", "-h"]
    assert split_script(words) == (words[:5], words[5:])
    assert split_script(["run", "--help"]) == (["run", "--help"], [])
    assert split_script(["train", "a", "b"]) == (["train", "a", "b"], [])


def test_cards_to_run_on() -> None:
    assert find_cards("cpu") == ("cpu", 1) and find_cards("cpu", 3) == ("cpu", 3) and find_cards("cpu", None, 2)[1] == 2
    for name, reason in (("mps", "no script of others was tried on it"), ("nonsense", "'nonsense' is unknown")):
        with pytest.raises(ConfigError, match=reason):
            find_cards(name)


def test_what_cannot_be_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(tmp_path / "no.py"), "--a_flag"]) == 2
    assert "no.py does not exist; expected a script to run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "--cards", "2", "--processes", "2", "x.py"])
    assert end.value.code == 2
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    assert "read it before you run it" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")


CALLS = """
import sys
from pathlib import Path
import numpy as np, torch
from torch import nn
assert sys.argv[1:] == ["--a_b", "1"] and sys.path[0] == str(Path(__file__).parent), (sys.argv, sys.path[0])
assert np.bool(1) is np.True_ or np.bool(1) is True
assert np.object is object and np.Inf == np.inf and np.in1d([1], [1]).all()
from nuscenes.nuscenes import NuScenes
from timm.scheduler.cosine_lr import CosineLRScheduler
import torchvision
here = torch.device("cuda", 0)
tensors = [torch.zeros(2, device="cuda:0"), torch.ones(2).to("cuda"), torch.ones(2).to(0), torch.ones(2).to(here)]
tensors += [torch.arange(2, device=here), torch.ones(2).cuda(), torch.ones(2).type("torch.cuda.DoubleTensor")]
tensors += [torch.ones(2).new_zeros(2, device="cuda"), torch.ones(2).pin_memory(), torch.cuda.FloatTensor([1, 2])]
tensors += list(nn.Linear(2, 2).cuda().parameters()) + list(nn.Linear(2, 2).to(here).parameters())
assert all(tensor.device.type == "cpu" for tensor in tensors) and tensors[6].dtype == torch.float64
assert not torch.cuda.is_available() and torch.cuda.device_count() == 1 and torch.cuda.current_device() == 0
torch.cuda.set_device("cuda:0"); torch.cuda.synchronize(); torch.cuda.empty_cache(); torch.cuda.manual_seed_all(1)
torch.cuda.set_rng_state(torch.cuda.get_rng_state())
begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
begin.record(); end.record(); torch.cuda.synchronize()
assert begin.elapsed_time(end) >= 0 and torch.cuda.max_memory_allocated() == 0
norm = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(2)).cuda())
assert norm(torch.ones(2, 2, 2, 2)).shape == (2, 2, 2, 2)
torch.save({"n": np.float64(3), "a": np.arange(3), "s": np.int32(4)}, "n.pth")
assert torch.load("n.pth", map_location="cuda:0", weights_only=True)["n"] == 3 and torch.load("n.pth")["s"] == 4
try:
    import nuscenes.utils.splits
except ModuleNotFoundError as err:
    print(err)
try:
    torchvision.models
except AttributeError as err:
    print(err)
"""
ERRORS = {
    "raise SystemExit('no data')": (1, "no data\n"),
    "import sys; sys.exit(3)": (3, ""),
    "import a_package_of_theirs": (1, "the script needs a_package_of_theirs, which is not installed in"),
    "import torch; torch.cuda.init()": (1, "the call above asks CUDA itself, which is not here"),
    "from mmcv.ops import nms; nms(1, 2, 0.5)": (1, "mmcv._ext.nms is not there: tpvformer stands in"),
}


def test_what_a_script_finds(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(CALLS)
    done = fork.start(["--device=cpu"], ["--a_b", "1"], [fork.SITE], script=tmp_path / "a.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    splits, models = done.stdout.splitlines()
    assert splits.startswith("nuscenes.utils: nuscenes is not installed, and") and "pip install --no-deps" in splits
    assert models.startswith("torchvision.models: torchvision is not installed")
    assert "tpvformer run: batch norms over all processes are not there" in done.stderr


@pytest.mark.parametrize("code", ERRORS)
def test_how_a_script_ends(tmp_path: Path, code: str) -> None:
    status, said = ERRORS[code]
    (tmp_path / "a.py").write_text(f"\n\n{code}\n")
    done = fork.start(["--device=cpu"], [], [fork.SITE], script=tmp_path / "a.py", cwd=tmp_path)
    assert done.returncode == status and said in done.stderr, done.stderr
    if "Traceback" in done.stderr:
        first = done.stderr.partition("Traceback")[2].splitlines()[1]
        assert "a.py" in first, "the traceback begins with lines of tpvformer's"


def test_one_process_each_as_torchrun_starts_them(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import os, torch, torch.distributed as dist\nimport numpy as np\ndist.init_process_group('nccl')\n"
        "torch.cuda.set_device(int(os.environ['LOCAL_RANK']))\nx = torch.ones(np.int(1)).cuda()\ndist.all_reduce(x)\n"
        "print(f'{dist.get_rank()} of {torch.cuda.device_count()}: {x.item()}', flush=True)\n"
    )
    done = fork.start(["--device=cpu", "--processes", "2"], [], script=tmp_path / "a.py")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")[:2]) == ["0 of 2: 2.0", "1 of 2: 2.0"]
    assert done.stderr.count("nccl is asked for; gloo exchanges between processes here") == 1


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
