"""``train.precision``: what "auto" comes to on every kind of hardware, what is said of it, and TF32."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List

import programs
import pytest
import torch
import yaml
from engine_tools import CPU, POINTS, environment, processes, tiny_config, tiny_model, write_config
from tiny_nuscenes import write_tiny

from tpvformer.cli import main
from tpvformer.compat import load_config
from tpvformer.config import TrainConfig
from tpvformer.engine.checkpoint import files as store
from tpvformer.engine.device import accelerator as device
from tpvformer.engine.device.precision import choose
from tpvformer.engine.faults.explain_crash import explain_crash
from tpvformer.engine.train import set_precision, train
from tpvformer.errors import RunEnded
from tpvformer.runtime import processor
from tpvformer.runtime.processor import Processor, read_cpuinfo, read_processor

pytestmark = pytest.mark.usefixtures("quick")

AVX2 = Processor("a laptop", frozenset({"avx2"}), False)
AVX512 = Processor("a server", frozenset({"avx2", "avx512f"}), True)  # oneDNN takes bf16 there, and converts it
ZEN4 = Processor("a newer one", frozenset({"avx2", "avx512f", "avx512_bf16"}), True)
AMX = Processor("with tiles", frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16"}), True)
ARM = Processor("an old Arm", frozenset({"neon"}), False)
ARM_BF16 = Processor("a new Arm", frozenset({"neon", "bf16"}), True)
EVERY = [
    (AVX2, "fp32", "auto: avx2 without avx512_bf16 or amx_bf16"),
    (AVX512, "fp32", "auto: avx2, avx512f without avx512_bf16 or amx_bf16"),
    (ZEN4, "bf16", "auto: avx512_bf16"),
    (ZEN4._replace(limit="ONEDNN_MAX_CPU_ISA=AVX2"), "fp32", "auto: avx512_bf16, but ONEDNN_MAX_CPU_ISA=AVX2"),
    (ZEN4._replace(onednn=False), "fp32", "auto: avx512_bf16, but this PyTorch's oneDNN takes no bf16 here"),
    (AMX, "bf16", "auto: amx_bf16"),
    (ARM, "fp32", "auto: neon without bf16"),
    (ARM_BF16, "bf16", "auto: bf16"),
    (ARM_BF16._replace(onednn=False), "fp32", "auto: bf16, but this PyTorch's oneDNN takes no bf16 here"),
    (Processor("?", frozenset(), True), "fp32", "auto: this processor is not known to have bf16 instructions"),
]


def pretend(monkeypatch: pytest.MonkeyPatch, facts: Processor) -> None:
    monkeypatch.setattr(processor, "read_processor", lambda: facts)


@pytest.mark.parametrize(("facts", "name", "why"), EVERY)
def test_auto_is_bf16_where_a_processor_multiplies_it(facts: Processor, name: str, why: str, monkeypatch) -> None:
    pretend(monkeypatch, facts)
    chosen = choose("auto", CPU)
    assert (chosen.name, chosen.setting, chosen.warning) == (name, "auto", "")
    assert str(chosen) == f"precision {name} ({why})"


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_on_a_card_goes_by_its_compute_capability(capability: Any, name: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    chosen = choose("auto", torch.device("cuda", 0))
    assert str(chosen) == f"precision {name} (auto: compute capability {capability[0]}.{capability[1]})"


@pytest.mark.parametrize("kind", ["npu", "mps", "xpu"])
def test_auto_is_fp32_on_other_devices(kind: str) -> None:
    place: Any = SimpleNamespace(type=kind)
    assert choose("auto", place).name == "fp32"
    assert choose("fp16", place).name == "fp16"  # an explicit choice is kept


@pytest.mark.parametrize("facts", [AVX2, AVX512, ARM])
def test_bf16_that_is_slow_is_kept_with_its_cost(facts: Processor, monkeypatch) -> None:
    pretend(monkeypatch, facts)
    chosen = choose("bf16", CPU)
    assert chosen.name == "bf16"
    assert "3689 ms in bf16, 587 in fp32" in chosen.warning
    assert "\n" not in chosen.warning
    assert choose("fp32", CPU).warning == ""
    pretend(monkeypatch, ZEN4)
    assert choose("bf16", CPU).warning == ""


def test_what_is_recomputed_follows_from_the_precision(monkeypatch) -> None:
    model = tiny_model()
    for facts, autocast, mode in ((AVX2, None, "cheap"), (ZEN4, torch.bfloat16, "none")):
        pretend(monkeypatch, facts)
        set_precision(model, TrainConfig(), CPU)
        assert model.image_autocast is autocast
        assert model.backbone.layer1[0].recompute == mode


# ---- where the facts come from

X86 = "processor\t: {}\nmodel name\t: {}\nflags\t\t: fpu sse4_1 avx avx2 fma avx512f {}\n\n"
AARCH64 = "processor\t: {}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd aes crc32 {}\nCPU implementer\t: 0x41\n\n"


def test_linux_tells_by_its_cpuinfo() -> None:
    two = X86.format(0, "A B", "avx512_bf16 amx_bf16") + X86.format(1, "A B", "avx512_bf16")
    name, features = read_cpuinfo(two, "x86_64")
    assert name == "A B"
    assert {"avx2", "avx512f", "avx512_bf16"} <= set(features)
    assert "amx_bf16" not in features, "not all cores have it"
    _, arm = read_cpuinfo(AARCH64.format(0, "bf16 i8mm"), "aarch64")
    assert {"neon", "bf16"} <= set(arm)
    assert "bf16" not in read_cpuinfo(AARCH64.format(0, ""), "aarch64")[1]
    assert read_cpuinfo("", "x86_64") == ("", [])
    assert not read_cpuinfo(two, "aarch64")[1], "an emulator shows the text of its x86 host"


def sources(monkeypatch, linux: str = "", sysctl: Any = None, torch_says: Any = None, onednn: bool = True) -> None:
    """What each source of facts answers; nothing by default."""
    machine = "aarch64" if "Features" in linux else "x86_64"
    monkeypatch.setattr(processor, "_linux", lambda: read_cpuinfo(linux, machine))
    monkeypatch.setattr(processor, "_sysctl", lambda key: (sysctl or {}).get(key, ""))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: torch_says or {}, raising=False)
    for name in ("_is_avx2_supported", "_is_avx512_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)  # as in PyTorch 2.1
    monkeypatch.setattr(processor, "_onednn_takes_bf16", lambda: onednn)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE", "fp32"),  # there oneDNN says that it takes bf16, and converts it
        ("ONEDNN_MAX_CPU_ISA", "avx2", "fp32"),
        ("DNNL_MAX_CPU_ISA", "AVX512_CORE_VNNI", "fp32"),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", "bf16"),
        ("ONEDNN_MAX_CPU_ISA", "DEFAULT", "bf16"),
        ("ATEN_CPU_CAPABILITY", "avx2", "bf16"),  # convolutions are oneDNN's
        ("ATEN_CPU_CAPABILITY", "default", "fp32"),
    ],
)
def test_what_holds_onednn_back_counts(variable: str, value: str, name: str, monkeypatch) -> None:
    sources(monkeypatch, linux=X86.format(0, "A", "avx512_bf16"))
    monkeypatch.setenv(variable, value)
    chosen = choose("auto", CPU)
    assert chosen.name == name
    assert (f"{variable}={value}" in chosen.why) == (name == "fp32")


def test_macos_tells_by_sysctl(monkeypatch) -> None:
    keys: Dict[str, str] = {"machdep.cpu.brand_string": "Apple M2", "hw.optional.neon": "1"}
    monkeypatch.setattr(sys, "platform", "darwin")
    sources(monkeypatch, sysctl=keys)
    assert read_processor() == Processor("Apple M2", frozenset({"neon"}), True)
    assert choose("auto", CPU).name == "fp32"
    keys["hw.optional.arm.FEAT_BF16"] = "1"
    assert str(choose("auto", CPU)) == "precision bf16 (auto: bf16)"
    sources(monkeypatch, sysctl=keys, onednn=False)  # as in the wheels that are built without oneDNN
    assert choose("auto", CPU).name == "fp32"


def test_elsewhere_pytorch_tells(monkeypatch) -> None:
    sources(monkeypatch, torch_says={"avx2": True, "avx512_f": True, "avx512_bf16": True, "cpu_name": "A"})
    assert read_processor().features == {"avx2", "avx512f", "avx512_bf16"}
    assert choose("auto", CPU).name == "bf16"
    sources(monkeypatch)
    assert read_processor().features == frozenset()
    assert choose("auto", CPU).name == "fp32"


@pytest.mark.parametrize("missing", ["no oneDNN", "no such operation"])
def test_an_older_pytorch_that_cannot_say_takes_no_bf16(missing: str, monkeypatch) -> None:
    if missing == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(), raising=False)
    assert processor._onednn_takes_bf16() is False


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variable is for x86")
def test_onednn_held_to_avx2_means_fp32() -> None:
    code = (
        "import torch; from tpvformer.engine.device.precision import choose; "
        "from tpvformer.runtime.processor import *; "
        "print(choose('auto', torch.device('cpu')).name, read_processor().onednn)"
    )
    env = environment(ONEDNN_MAX_CPU_ISA="AVX2")
    done = programs.run([sys.executable, "-c", code], env=env)
    assert done.stdout == "fp32 False\n", done.stderr


# ---- runs


def said(work_dir: Path) -> List[str]:
    """The lines of the newest log, without their dates."""
    return [line.split(" - ", 3)[-1] for line in max(work_dir.glob("*.log")).read_text().splitlines()]


def test_a_run_keeps_the_setting_and_says_what_it_came_to(tmp_path: Path, monkeypatch) -> None:
    config = tiny_config(write_tiny(tmp_path / "set", POINTS), epochs=1, precision="auto")
    pretend(monkeypatch, AVX2)
    work_dir = tmp_path / "run"
    summary = train(config, work_dir, "cpu")
    line = "precision fp32 (auto: avx2 without avx512_bf16 or amx_bf16)"
    assert said(work_dir).count(line) == 1
    assert ", fp32, batch" in said(work_dir)[0]
    start = json.loads((work_dir / "starts.jsonl").read_text())
    for record in (summary, start):
        assert (record["precision"], record["precision_setting"]) == ("fp32", "auto")
    assert yaml.safe_load((work_dir / "config.yaml").read_text())["train"]["precision"] == "auto"
    content = store.read(work_dir / "latest.pth")
    assert (content["config"]["train"]["precision"], content["precision"]) == ("auto", "fp32")

    pretend(monkeypatch, ZEN4)
    again = train(tiny_config(config.data, epochs=2, precision="auto"), work_dir, "cpu")
    moved = [text for text in said(work_dir) if "was trained in" in text]
    assert len(moved) == 1
    assert moved[0].endswith(
        "was trained in fp32, and goes on in bf16 (auto: avx512_bf16); train.precision=fp32 keeps it"
    )
    assert again["precision"] == "bf16"


def test_an_explicit_choice_is_warned_of_once(tmp_path: Path, monkeypatch) -> None:
    config = tiny_config(write_tiny(tmp_path / "set", POINTS), precision="bf16")
    pretend(monkeypatch, AVX2)
    work_dir = tmp_path / "run"
    assert train(config, work_dir, "cpu", max_steps=1)["precision"] == "bf16"
    assert sum("3689 ms" in line for line in said(work_dir)) == 1
    assert said(work_dir).count("precision bf16 (train.precision=bf16)") == 1


TOGETHER = """
import os, sys, torch
from tpvformer.engine.distributed import collectives as distributed
from tpvformer.runtime import processor
from tpvformer.engine.device.precision import choose_together
names = sys.argv[1].split(",")
features = frozenset(names[int(os.environ["RANK"])].split("+"))
processor.read_processor = lambda: processor.Processor("p", features, True)
world = distributed.read_world()
distributed.start(world, torch.device("cpu"))
print(choose_together(sys.argv[2], torch.device("cpu"), world))
distributed.stop()
"""


def test_processes_on_unlike_machines_agree() -> None:
    lines = [text.strip() for text in processes(2, TOGETHER, "avx512_bf16,avx2", "auto")]
    expected = "precision fp32 (auto: bf16 is fast for 1 of 2 processes, all must use the same)"
    assert lines == [expected, expected]


def test_advice_against_running_out_of_memory_is_not_slower(monkeypatch) -> None:
    for facts, advised in ((AVX2, False), (ZEN4, True)):
        pretend(monkeypatch, facts)
        with pytest.raises(RunEnded) as caught, explain_crash(load_config("demo"), "fp32", CPU, lambda: "step 1"):
            raise MemoryError
        assert ("train.precision=bf16" in str(caught.value)) == advised


def test_commands_say_it(tmp_path: Path, monkeypatch, capsys) -> None:
    pretend(monkeypatch, AVX2)
    file = write_config(tmp_path / "tiny.py", tiny_config(write_tiny(tmp_path / "set", POINTS), precision="auto"))
    where = ["--py-config", str(file), "--device", "cpu"]
    assert main(["bench", *where, "--size", "64x36", "--points", "500", "--steps", "1"]) == 0
    assert capsys.readouterr().out.startswith("tiny, fp32 (auto: avx2 without")
    assert (
        main(["bench", *where, "--size", "64x36", "--points", "500", "--steps", "1", "--set", "train.precision=bf16"])
        == 0
    )
    assert capsys.readouterr().out.count("3689 ms") == 1
    weights = tmp_path / "w.pth"
    torch.save(tiny_model().state_dict(), weights)
    asked = [*where, "--ckpt-path", str(weights)]
    assert main(["predict", *asked, "--index", "0", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("precision fp32 (auto: avx2 without avx512_bf16 or amx_bf16)\n")
    assert main(["eval", *asked]) == 0
    assert capsys.readouterr().out.count("precision fp32 (auto: avx2") == 1
    assert main(["predict", *asked, "--index", "0", "--out", str(tmp_path), "--set", "train.precision=bf16"]) == 0
    assert capsys.readouterr().err.count("3689 ms") == 1


# ---- TF32


@pytest.fixture
def arithmetic() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    device._set_tf32(*before)


def now() -> Any:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("arithmetic")
def test_tf32_is_allowed_on_cards_that_have_it_unless_forbidden(monkeypatch) -> None:
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert device.allow_tf32(card, True) == "TF32 is allowed in what stays fp32 (train.tf32=false forbids it)"
    assert now() == ("high", True)
    with device.exact_arithmetic(card):
        assert now() == ("highest", False)
    assert now() == ("high", True)
    assert device.allow_tf32(card, False) == "TF32 is forbidden (train.tf32=false)"
    assert now() == ("highest", False)


@pytest.mark.usefixtures("arithmetic")
def test_tf32_changes_nothing_elsewhere(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    before = now()
    npu: Any = SimpleNamespace(type="npu")
    for place in (torch.device("cuda", 0), CPU, npu):
        for allowed in (True, False):
            assert device.allow_tf32(place, allowed) == ""
            assert now() == before


def test_convolutions_are_timed_on_cards_unless_runs_are_to_be_repeatable(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    device.time_convolutions(torch.device("cuda", 0))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    device.time_convolutions(CPU)
    assert not torch.backends.cudnn.benchmark
    device.time_convolutions(torch.device("cuda", 0))
    assert torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("arithmetic")
def test_a_run_on_a_card_says_so(tmp_path: Path, monkeypatch) -> None:
    """The card is pretended for this question alone: nothing here has one."""
    asked: List[bool] = []
    monkeypatch.setattr(
        "tpvformer.engine.device.precision.allow_tf32", lambda place, on: asked.append(on) or "TF32 is spoken of"
    )
    config = tiny_config(write_tiny(tmp_path / "set", POINTS), tf32=False)
    train(config, tmp_path / "run", "cpu", max_steps=1)
    assert asked == [False]
    assert said(tmp_path / "run").count("TF32 is spoken of") == 1
