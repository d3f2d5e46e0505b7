"""docs/finetune.md's searches over settings at the size of its toy data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest
from page_blocks import blocks, run

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """The page's names with the toy data set and its configuration, without its training."""
    folder, bound = tmp_path_factory.mktemp("reader"), {"__name__": "__main__"}
    *first, last = blocks("A data set of your own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run([*blocks("A label map"), *first, last.split("\nmodel = ")[0]], bound)
    return {**bound, "here": folder}


def test_a_loop_needs_no_other_package(names: Dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(names["here"])
    run(blocks("Sweeps"), names)
    assert set(names["scores"]) == {1e-3, 4e-3} and all(score is not None for score in names["scores"].values())
    assert Path("out/sweep/lr0.004/summary.json").is_file()


def test_optuna_searches(names: Dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.chdir(names["here"])
    run(blocks("Sweeps", "py"), names)
    assert len(names["study"].trials) == 2 and names["study"].best_value >= 0
