"""Training "on an NPU": run by test_npu.py in a process of its own, with the stand-ins on its path.

STANDIN_SDK chooses the Driving SDK's shape. The models have their published heads, levels, points and channels. The
order of the tests matters: the first one looks at a process that has not asked for a card yet.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from small import CPU, PUBLISHED, shrunk, trained

from tpvformer import ops
from tpvformer.data.dataset import FrameDataset
from tpvformer.engine import train as run
from tpvformer.engine.device.accelerator import pick_device
from tpvformer.model import visible_rows

SDK = os.environ["STANDIN_SDK"]


def test_nothing_of_the_vendor_is_imported_unless_a_card_is_asked_for(tmp_path: Path) -> None:
    config = shrunk(PUBLISHED[0], tmp_path)
    run.build_model(config, CPU)
    FrameDataset(config.data, config.model.grid, "train", 0)[0]
    assert "torch_npu" not in sys.modules and "mx_driving" not in sys.modules
    device, remarks = pick_device("npu")
    assert str(device) == "npu:0" and not remarks
    assert "mx_driving" not in sys.modules  # until a tensor on the card needs a kernel
    assert "torch_npu.contrib.transfer_to_npu" not in sys.modules


def test_the_card_is_chosen_and_set_up_before_anything_else() -> None:
    import torch_npu

    assert torch_npu.calls[:5] == [
        ("set_device", 0),
        ("set_compile_mode", False),
        ("config.allow_internal_format", False),
        ("matmul.allow_hf32", False),
        ("conv.allow_hf32", True),
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_two_steps_match_the_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_npu

    config = shrunk(name, tmp_path, large=name == PUBLISHED[0])
    monkeypatch.setattr(visible_rows, "STEP", 1)  # as lists are shorter than the planes at the published sizes
    with monkeypatch.context() as patch:
        patch.setenv("TPVFORMER_OPS", "reference")
        cpu = trained(config, CPU, tmp_path / "cpu", patch)
    del torch_npu.calls[:]
    with monkeypatch.context() as patch:
        patch.setenv("TPVFORMER_OPS", "mx_driving")  # nothing falls back
        npu = trained(config, torch.device("npu", 0), tmp_path / "npu", patch)
    assert npu["losses"] == pytest.approx(cpu["losses"], rel=2e-6)
    # an element of AdamW's first steps moves by its gradient's sign alone, also where that is rounding noise
    assert (npu["change"] - cpu["change"]).norm() < 0.03 * cpu["change"].norm()

    for noted in npu["steps"]:
        assert [event for event in noted if event.kind in ("wait", "double")] == []
    # the second step sends the batch and nothing else: constants lie on the card by then
    assert sum(event.kind == "upload" for event in npu["steps"][1]) == npu["uploads"]

    cfg, calls = config.model, [call for call in torch_npu.calls if call[0] == "attention"]
    fold = ops.npu.fast_points if SDK != "6.0.0" else lambda heads, dim, levels, points: points
    levels = 3 if cfg.view_attn == "cross_view" else 1
    plane_points = cfg.plane_points if cfg.view_attn == "cross_view" else 2 * cfg.plane_points  # of two queues
    planes = [call for call in calls if call[3] == levels]
    dim = cfg.dim // cfg.plane_heads
    most = min(fold(cfg.plane_heads, dim, levels, plane_points), ops.npu.points_a_call(levels))
    assert {call[1:5] for call in planes} == {(cfg.plane_heads, dim, levels, most)}
    images = [call for call in calls if call[3] == cfg.num_levels]
    dim = cfg.dim // cfg.image_heads
    folded = {min(fold(cfg.image_heads, dim, cfg.num_levels, points), 16) for points in cfg.image_points}
    assert {call[4] for call in images} == folded
    queries = {points: call[6] for points in cfg.image_points for call in images}
    assert queries and cfg.layers
    assert any(call[0] == "convolution" for call in torch_npu.calls)
    assert any(call[0] == "max_pool" for call in torch_npu.calls) == (name == PUBLISHED[0])
    assert any(call[0] == "add_relu" for call in torch_npu.calls)


def test_only_the_vendor_redirects_cuda() -> None:
    import torch_npu

    transfers = [call for call in torch_npu.calls if call[0] == "transfer_to_npu"]
    assert len(transfers) <= 1 and ("torch_npu.contrib.transfer_to_npu" in sys.modules) == (SDK == "26.x")
    if SDK == "26.x":
        assert torch.cuda.is_available()  # it says so now, of the NPU
    assert str(pick_device("auto")[0]) == "npu:0"


def test_no_deprecated_name_was_used() -> None:
    """This process turns such warnings into errors; here is one, to show it."""
    import mx_driving

    with pytest.raises(DeprecationWarning):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert ("mx_driving.fused" in sys.modules) == (SDK == "6.0.0")
    assert hasattr(mx_driving, "npu_add_relu") == (SDK != "6.0.0")
