"""The reference's recorded numbers: the tiny cases of both families on every CPU backend, names and initial values."""

from __future__ import annotations

from pathlib import Path

import golden
import pytest

DATA = Path(__file__).parents[1] / "golden_data"
CONFIGS = Path(__file__).parents[2] / "config"


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("name", ["tiny10", "tiny04"])
def test_recorded_case(name: str, backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("TPVFORMER_OPS", backend)
    status = golden.main([str(DATA / f"{name}_96x160"), str(DATA / "config" / f"{name}.json")])
    rows = capsys.readouterr().out
    assert status == 0, rows
    assert rows.count(" ok\n") > 100


@pytest.mark.parametrize("name", ["tiny10", "tiny04", "tpv_lidarseg_dim64", "tpv04_occupancy"])
def test_keys(name: str, capsys: pytest.CaptureFixture) -> None:
    config = DATA / "config" / f"{name}.json" if name.startswith("tiny") else CONFIGS / f"{name}.py"
    status = golden.main(["keys", str(DATA / "manifest" / f"{name}.json"), str(config)])
    assert status == 0, capsys.readouterr().out
