"""Every block of Python in the READMEs and in docs/ runs as it stands, where ``tpvformer demo`` was called before."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from docs_tools import DOCUMENTS, FENCE, name_of, text_of

from tpvformer import api
from tpvformer.cli import main

NEEDS = {"docs/export.md": ("onnx", "onnxscript", "onnxruntime")}  # packages that a page says to install


def python_blocks(document: Path) -> List[str]:
    return [body for language, body in FENCE.findall(text_of(document)) if language == "python"]


WITH_PYTHON = [document for document in DOCUMENTS if python_blocks(document)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands were called that the pages name: the first look, and the data of config/debug.py."""
    folder = tmp_path_factory.mktemp("reader")
    assert main(["demo", "--out", str(folder / "out" / "demo-8001"), "--device", "cpu"]) == 0
    size = ("--scenes", "4", "--frames", "8", "--size", "152x90", "--seed", "25")
    assert main(["synth", "--out", str(folder / "data" / "debug"), *size]) == 0
    return folder


def test_there_are_some() -> None:
    assert {"README.md", "docs/python.md", "docs/export.md"} <= set(map(name_of, WITH_PYTHON))


@pytest.mark.parametrize("document", WITH_PYTHON, ids=name_of)
def test_python_of_the_documents_runs_as_it_stands(
    document: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A page's blocks one after the other, in one process. Only the hub is a stand-in: there is no network."""
    for package in NEEDS.get(name_of(document), ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if "export.md" in document.name and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        pytest.skip("exporting needs PyTorch 2.6")
    monkeypatch.chdir(folder)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(api, "upload", lambda path, hub_id, private: f"https://example.invalid/{hub_id}")
    names: Dict[str, Any] = {"__name__": "__main__"}
    for number, body in enumerate(python_blocks(document), start=1):
        try:
            exec(compile(body, f"{name_of(document)}, block {number}", "exec"), names)
        except Exception as err:
            pytest.fail(f"{name_of(document)}, block {number}: {type(err).__name__}: {err}")
    capsys.readouterr()
    assert "tpvformer" in sys.modules and len(names) > 3
