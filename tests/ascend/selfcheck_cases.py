"""``tpvformer selfcheck`` on the pretended card, well and broken: run by test_npu.py in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
from afresh import forget_kernels
from small import PUBLISHED, ROOT, shrunk

from tpvformer import ops
from tpvformer.compat import load_config
from tpvformer.config import Config
from tpvformer.engine.device.accelerator import pick_device
from tpvformer.engine.selfcheck import operations
from tpvformer.engine.selfcheck.run import selfcheck


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPVFORMER_OPS", raising=False)
    monkeypatch.setenv("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")
    forget_kernels()


def small_config(tmp_path: Path) -> Config:
    config = shrunk(PUBLISHED[0], tmp_path)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_scale=1.0))


def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str = "") -> Dict[str, Any]:
    """Everything, or only the operations whose names hold one of ``words``."""
    if words:
        chosen = [case for case in operations.cases() if words in case.name]
        monkeypatch.setattr("tpvformer.engine.selfcheck.run.cases", lambda: chosen)
        monkeypatch.setattr("tpvformer.engine.selfcheck.checks.STEPS", 2)
    return selfcheck(small_config(tmp_path), "npu", (208, 120), lambda line: None)


def failed(result: Dict[str, Any]) -> List[str]:
    return [line["check"] for line in result["checks"] if line["ok"] is False]


def test_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_npu

    del torch_npu.calls[:]
    monkeypatch.setattr("tpvformer.engine.selfcheck.checks.STEPS", 3)
    result = check(tmp_path, monkeypatch)
    assert result["passed"] and failed(result) == []
    told = {line["check"]: line["detail"] for line in result["checks"]}
    assert told["kernel: mx_driving attention"] == "found"
    assert "Ascend910B" in told["device"] and told["cards"] == "8 visible"
    assert told["optimiser"].startswith("NpuFusedAdamW, 5 steps")
    assert result["timing"]["median_ms"] > 0
    # convolutions are compared without rounding, and trained with it
    rounding = [call[1] for call in torch_npu.calls if call[0] == "conv.allow_hf32"]
    assert rounding[-2:] == [False, True]
    json.dumps(result)


def test_a_wrong_kernel_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pick_device("npu")
    real = ops.npu.find("convolution")
    assert real is not None

    def find(name: str) -> Any:
        return (lambda *args: real(*args) * 1.01) if name == "convolution" else None

    monkeypatch.setattr(ops.npu, "find", find)
    monkeypatch.setattr(ops.npu, "find_all", dict)
    result = check(tmp_path, monkeypatch, "convolution, 256")
    assert not result["passed"]
    assert "deformable convolution, 256 channels" in failed(result)


def test_a_kernel_that_raises_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("aicore exception")

    monkeypatch.setattr(ops.npu, "find", lambda name: broken if name == "attention" else None)
    monkeypatch.setattr(ops.npu, "find_all", dict)
    result = check(tmp_path, monkeypatch, "dim64, 4 points")
    assert "image attention of tpv_lidarseg_dim64, 4 points" in failed(result)
    assert any("aicore exception" in line["detail"] for line in result["checks"])
    assert "optimiser" not in failed(result)


def test_a_missing_kernel_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mx_driving", None)
        result = check(tmp_path, patch, "max pooling")
    assert failed(result) == [f"kernel: mx_driving {name}" for name in ops.npu.NAMES]


def test_work_that_falls_back_to_the_cpu_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_LACKS", "cumsum")
    result = check(tmp_path, monkeypatch, "sort")
    assert "convolution, linear, norm, softmax, sort" in failed(result)  # refused
    monkeypatch.setenv("TORCH_NPU_FALLBACK_CPU_DISABLE", "0")  # as older releases do, which do not know the variable
    result = check(tmp_path, monkeypatch, "sort")
    assert failed(result) == ["no operation fell back to the CPU"]
    assert os.environ["TORCH_NPU_FALLBACK_CPU_DISABLE"] == "0"


def test_a_scaler_and_half_precision_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpvformer.engine.selfcheck.run.cases", list)
    monkeypatch.setattr("tpvformer.engine.selfcheck.checks.STEPS", 2)
    config = load_config(ROOT / "config" / "debug.py")  # a CPU takes its time with fp16
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="fp16"))
    result = selfcheck(config, "npu", (96, 64), lambda line: None)
    assert failed(result) == [], result["checks"]
