"""The scripts in benchmarks/ run, at tiny sizes; what they compare with is right; their report says what failed."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict

import programs
import pytest
import torch
from engine_tools import CPU, ROOT, environment
from programs import Start

sys.path.append(str(ROOT / "benchmarks"))

import bench_ops  # noqa: E402
import gpu_report  # noqa: E402
import gpu_sections  # noqa: E402
import measure  # noqa: E402
import op_cases  # noqa: E402
import render  # noqa: E402
import step_counts  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick")
ABSENT = ("yaml", "rich", "safetensors", "simplejpeg", "matplotlib", "PIL")  # may be, where a GPU is lent for an hour


@pytest.fixture(scope="module")
def cases() -> op_cases.Cases:
    return op_cases.Cases(CPU, quick=True)


def test_the_rebatched_layer_is_the_model_s(cases: op_cases.Cases) -> None:
    case = cases.make("image attention layer")
    pair = (case.variant(function, torch.float64) for function in (case.baseline, case.ours))
    assert max(measure.errors(*pair).values()) < 1e-9


def test_a_wrong_result_is_seen(cases: op_cases.Cases) -> None:
    case = cases.make("deform conv stage 4")
    oracle = case.variant(case.baseline, torch.float64)
    wrong = case.variant(lambda **given: 1.001 * case.ours(**given), torch.float32)
    right = case.variant(case.ours, torch.float32)
    assert not measure.close(measure.errors(oracle, wrong), torch.float32)
    assert measure.close(measure.errors(oracle, right), torch.float32)
    nothing = case.variant(lambda **given: float("nan") * case.ours(**given), torch.float32)
    assert not measure.close(measure.errors(oracle, nothing), torch.float32)


def test_bytes_kept_for_the_backward_pass() -> None:
    leaf, given = torch.randn(1000, requires_grad=True), torch.randn(1000)
    product = measure.Variant(lambda: leaf * given, {"leaf": leaf}, [given])  # keeps its two inputs, which exist anyway
    assert measure.saved_bytes(product) == 0
    twice = measure.Variant(lambda: leaf.exp().sin(), {"leaf": leaf}, [])  # exp keeps its result, which sin keeps too
    assert measure.saved_bytes(twice) == 4000


def test_bench_ops(monkeypatch, tmp_path: Path, capsys) -> None:
    out = tmp_path / "ops.json"
    arguments = ["bench_ops.py", "--quick", "--repeats", "1", "--only", "image attention layer", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert bench_ops.main() == 0
    assert "image attention layer: 6 cameras 128x224" in capsys.readouterr().out
    result = json.loads(out.read_text())
    (layer,) = result["operations"]
    assert layer["saved_mb"]["ours fp32"] < layer["saved_mb"]["plain fp32"]
    assert result["unit"] == "CPU ms, 1 thread"


def test_step_counts(tmp_path: Path, capsys) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    out = tmp_path / "counts.json"
    small = ["--py-config", str(ROOT / "config/debug.py"), "--size", "96x64", "--points", "200", "--out", str(out)]
    assert step_counts.main(small) == 0
    assert "backward encoder" in capsys.readouterr().out
    result = json.loads(out.read_text())
    for kind in ("launches", "bytes", "flop"):
        by_operation = sum(row[kind] for row in result["operations"])
        assert by_operation == sum(row[kind] for row in result["sections"].values()) == result["total"][kind]
    assert all(row["launches"] for row in result["sections"].values())
    kernels = [row for row in result["operations"] if row["name"].startswith("attention")]
    assert {row["section"] for row in kernels} == {"encoder", "backward encoder"}
    assert not result["synchronisations"], "a training step waits for the device nowhere"


def test_step_counts_of_single_operations() -> None:
    counts = step_counts.Counts({})
    x, weight, bias = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 1, 1), torch.zeros(5)
    with counts:
        y = torch.nn.functional.conv2d(x, weight, bias)
        y.view(2, 5, 16).transpose(1, 2)  # nothing but views
        torch.empty(7)
        y.relu_()
        torch._foreach_add_([bias] * 200, 1.0)
        (x[:1, :1, :1, :1].expand(2, 3, 4, 4) + x).sum()
    found = {name: row.as_dict() for (_, name), row in counts.operations.items()}
    assert found["convolution"] == {"launches": 2, "bytes": 4 * (96 + 15 + 5 + 3 * 160), "flop": 2 * 160 * 3}
    assert found["relu_"] == {"launches": 1, "bytes": 4 * 2 * 160, "flop": 0}
    assert found["_foreach_add_"]["launches"] == 2
    assert found["add"]["bytes"] == 4 * (1 + 96 + 96)
    assert set(found) == {"convolution", "relu_", "_foreach_add_", "add", "sum"}


def test_bench_saving(tmp_path: Path) -> None:
    small = ["--py-config", "config/debug.py", "--size", "96x64", "--points", "200", "--steps", "1", "--blocks", "1"]
    done = run("bench_saving.py", *small, "--folder", str(tmp_path), "--out", str(tmp_path / "saving.json"))
    assert done.returncode == 0, done.stderr
    assert "one save a block" in done.stdout
    result = json.loads((tmp_path / "saving.json").read_text())
    assert len(result["cpu_ms"]["with"]) == len(result["cpu_ms"]["without"]) == 1 and result["checkpoint_mib"] > 0.1


def test_bench_augment() -> None:
    done = run("bench_augment.py", "--height", "90", "--repeat", "1")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0].split(" of")[0] for line in done.stdout.splitlines()] == [
        "six images", "six images", "dense labels and mask", "boxes", "label files"
    ]  # fmt: skip


def test_bench_step(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    done = run("bench_step.py", "--py-config", "config/debug.py", "--size", "96x64", "--points", "200", "--steps", "1",
               "--variants", "reference:fp32,reference:bf16", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reference:fp32 / reference:bf16" in done.stdout
    assert set(json.loads(out.read_text())["cpu_ms"]) == {"reference:fp32", "reference:bf16"}
    refused = run("bench_step.py", "--variants", "fast")
    assert refused.returncode == 2
    assert refused.stderr.startswith("bench_step.py: --variants 'fast'")


def run(script: str, *arguments: str, **extra: str) -> programs.Done:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    return programs.run(command, cwd=ROOT, env=environment(**extra))


def test_the_gpu_report_needs_few_packages(tmp_path: Path) -> None:
    """A section through a whole process, on a machine without what only other commands need."""
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not here')\n")
    arguments = ("--device", "cpu", "--only", "inference", "--out-dir", str(tmp_path))
    done = run("gpu_report.py", *arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (text,) = tmp_path.glob("*_cpu_quick.md")
    assert "## Inference, one frame, bf16" in text.read_text()
    (numbers,) = tmp_path.glob("*_cpu_quick.json")
    assert json.loads(numbers.read_text())["sections"]["inference"]["status"] == "done"


def test_the_gpu_report_runs_where_numba_refuses_numpy(tmp_path: Path) -> None:
    """The kernels of the GPU are Triton's; the oracle serves on the CPU."""
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.4 or less. Got NumPy 2.5.')\n")
    arguments = ("--device", "cpu", "--only", "step dim128", "--out-dir", str(tmp_path))
    done = run("gpu_report.py", *arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_gpu_report_refuses_in_a_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--device", "cuda"])
    assert gpu_report.main() == 2
    assert capsys.readouterr().out.count("\n") == 1


def test_every_section_gives_lines_that_the_report_can_show() -> None:
    sections: Dict[str, Dict] = {}
    for name in ("ceilings", "verify small", "step dim64", "operations", "sanitizer"):
        lines = json.loads(json.dumps(list(gpu_sections.SECTIONS[name].lines(CPU, True))))
        assert lines, name
        sections[name] = {"status": "done", "lines": lines, "said": []}
    assert [set(line) & {"deform_conv", "kernels"} for line in sections["step dim64"]["lines"]] == [
        set(),
        {"deform_conv"},
        {"deform_conv", "kernels"},
    ]
    sections["operations"]["lines"].append({"name": "unheard of", "ms": {}, "ok": False, "failed": "RuntimeError: it"})
    sections["step tpv04"] = {"status": "stopped", "lines": sections["step dim64"]["lines"][:1], "said": []}
    sections["inference"] = {"status": "stopped after 90 s", "lines": [], "said": ["the last words"]}
    head = {"device": "d", "date": "today", "command": "c", "seconds": 1.0, "processor": "p", "cores": 1}
    text = render.markdown({**head, "versions": {"torch": "2"}, "machine": ["a card"], "sections": sections})
    for expected in (
        "`a card`",
        "Ceilings of this device",
        "| index_add_ |",
        "Kernels against",
        "Training steps",
        "Kernels of a step dim64",
        "Operations, ms",
        "- inference: stopped after 90 s. the last",
        "Memory errors (memcheck): not run",
    ):
        assert expected in text
    assert "| yes |" in text
    assert "NO" not in text


def test_a_compiled_step_that_is_none_is_refused(monkeypatch) -> None:
    """Where compilation fails, training goes on in eager mode; its times are not those of compiled code."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(RuntimeError, match="nothing was compiled.*no compiler here"):
        list(gpu_sections.SECTIONS["step dim64 compiled"].lines(CPU, True))


def test_a_section_that_hangs_is_stopped_and_keeps_what_it_found(monkeypatch, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys, time; open(sys.argv[1], 'w').write('{\"a\": 1}\\n{\"b'); print('said', flush=True);time.sleep(60)",
    ]
    start = subprocess.Popen

    def hang(arguments, **options):
        return start([*command, arguments[arguments.index("--lines") + 1]], **options)

    monkeypatch.setattr(gpu_report.subprocess, "Popen", hang)
    monkeypatch.setattr(gpu_report, "SHORTEST", 0.5)
    state = gpu_report.run_section("verify small", 1.0, argparse.Namespace(device="cpu"), tmp_path / "02_verify")
    assert state["status"] == "stopped after 1 s"
    assert state["lines"] == [{"a": 1}]
    assert json.loads((tmp_path / "02_verify.json").read_text()) == state
    assert (tmp_path / "02_verify.log").read_text() == "said\n"
    state = gpu_report.run_section("verify small", 0.4, argparse.Namespace(), tmp_path / "03_verify")
    assert state["status"] == "left out: no time left"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_report_that_is_killed_leaves_what_was_finished(start: Start, number: int, tmp_path: Path) -> None:
    """Its second section is killed with it; no process is left behind, which would keep the GPU."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_report.py"), "--device", "cpu", "--quick"]
    process = start([*command, "--out-dir", str(tmp_path)], cwd=ROOT, env=environment())
    process.until(lambda: any(tmp_path.glob("*/02_verify_small.log")), 100)
    process.send_signal(number)
    process.wait(20)
    (numbers,) = tmp_path.glob("*_cpu_quick.json")
    assert json.loads(numbers.read_text())["sections"]["ceilings"]["status"] == "done"
    assert "Ceilings" in numbers.with_suffix(".md").read_text()
    (first,) = tmp_path.glob("*/01_ceilings.json")
    assert json.loads(first.read_text())["lines"]
    programs.wait_until(lambda: str(tmp_path) not in programs.run(["ps", "axww"]).stdout)  # no section outlives it


def test_a_report_killed_at_random_moments_leaves_whole_files(monkeypatch, tmp_path: Path) -> None:
    """Twenty times, between any two instructions: the report names every section that had ended, each with its file."""

    def quickly(name: str, limit: float, args: argparse.Namespace, base: Path) -> Dict:
        time.sleep(0.004)
        state = {"status": "done", "lines": [{"name": name}], "said": [], "seconds": 0.004}
        gpu_report.write(base.with_name(base.name + ".json"), json.dumps(state))
        return state

    monkeypatch.setattr(gpu_report, "run_section", quickly)
    monkeypatch.setattr(gpu_report, "markdown", lambda result: f"{len(result['sections'])} sections\n")
    monkeypatch.setattr(gpu_report, "machine", list)
    draw, left = random.Random(7), []
    for run in range(20):
        out = tmp_path / str(run)
        monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--device", "cpu", "--out-dir", str(out)])
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            gpu_report.main()
            os._exit(0)
        while not list(out.glob("*/01_ceilings.json")):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ended = len(list(out.glob("*/*.json")))
        reports = list(out.glob("*.json"))
        named = len(json.loads(reports[0].read_text())["sections"]) if reports else 0
        assert ended - 1 <= named <= ended, "the last one may have ended just before"
        assert all(json.loads(file.read_text())["status"] == "done" for file in out.glob("*/*.json"))
        left.append(named)
    assert len(set(left)) > 1, left


def test_two_reports_of_a_day_have_two_names(tmp_path: Path) -> None:
    head = {"date": "2030-01-02 03:04 UTC", "device": "NVIDIA H200"}
    asked = argparse.Namespace(quick=False, device="cuda")
    names = [gpu_report.free_name(tmp_path, head, asked).name for _ in range(2)]
    assert names == ["2030-01-02_nvidia-h200", "2030-01-02_nvidia-h200_2"]


def test_the_atomic_additions_that_are_timed_are_right() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    program = """if True:
        import torch
        from scatter_kernel import BLOCK, scatter
        index = torch.tensor([3, 0, 3, 1] * 20)
        values = torch.arange(80.0 * 16).view(80, 16)
        sums = torch.zeros(4, 16)
        scatter[(-(-80 // BLOCK),)](index, values, sums, 80, ROW=16, ROWS=BLOCK)
        assert torch.equal(sums, torch.zeros(4, 16).index_add_(0, index, values))
    """
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(ROOT / "benchmarks"))
    done = programs.run([sys.executable, "-c", program], env=env)
    assert done.returncode == 0, done.stderr
