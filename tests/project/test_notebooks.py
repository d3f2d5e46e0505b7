"""The notebooks run from top to bottom: their cells, on tiny streets, with a tiny model, one after the other."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List

import pytest
from engine_tools import ROOT, tiny_config, write_config

from tpvformer.config import DataConfig

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = ["--scenes", "3", "--frames", "1", "--size", "64x36", "--workers", "1"]


def cells(notebook: Path) -> List[Dict[str, Any]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    return content["cells"]


def script(notebook: Path, parameters: Dict[str, Any]) -> str:
    """The notebook's code, with other values for its parameters; these must be all that it has."""
    code = []
    for cell in cells(notebook):
        text = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", ()):
            named = [node.targets[0].id for node in ast.parse(text).body]
            assert sorted(named) == sorted(parameters)
            text = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        if cell["cell_type"] == "code":
            code.append(text)
    return "\n\n".join(code)


def run(notebook: str, parameters: Dict[str, Any]) -> None:
    file = Path(f"{notebook}.py")
    file.write_text(script(ROOT / "notebooks" / f"{notebook}.ipynb", parameters))
    runpy.run_path(str(file), run_name="__main__")


@pytest.mark.usefixtures("quick")
def test_both_run_one_after_the_other(tmp_path: Path, monkeypatch, capsys) -> None:
    """In place of IPython stands what the notebooks use of it: it says what was shown."""
    monkeypatch.chdir(tmp_path)
    shown: List[Any] = []
    stand_in = ModuleType("IPython.display")
    vars(stand_in).update(Image=lambda file: Path(file).read_bytes(), SVG=str, display=lambda x: shown.append(x[:4]))
    monkeypatch.setitem(sys.modules, "IPython.display", stand_in)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    infos = {f"{split}_infos": f"set/nuscenes_infos_{split}.pkl" for split in ("train", "val")}
    data = DataConfig(root="set", version="v1.0-mini", workers=0, **infos)
    config = str(write_config(tmp_path / "tiny.py", tiny_config(data, epochs=1)))
    run("train_demo", {"CONFIG": config, "DATA": "set", "WORK_DIR": "run", "SYNTH": SMALL})
    assert shown == [b"\x89PNG", "<svg", b"\x89PNG"]
    assert "loss of the printed steps" in capsys.readouterr().out
    run("predict", {"CONFIG": config, "CHECKPOINT": "run/best.pth", "FRAME": 0, "OUT": "out/predicted"})
    assert shown[3:] == [b"\x89PNG"]
    said = capsys.readouterr().out
    assert "points, the nearest at" in said and "probability" in said


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_results(notebook: Path) -> None:
    """Results would be somebody's machine and date; they come with running it."""
    for cell in cells(notebook):
        assert cell["cell_type"] == "markdown" or not (cell["outputs"] or cell["execution_count"])
