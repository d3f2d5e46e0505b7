"""A small set in nuScenes' layout, drawn once for all files of tests that read or change it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tpvformer.data.street.write import write_dataset


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic set of three scenes with two key frames each, which no test changes."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    write_dataset(folder, 3, (64, 36), 5, 2, workers=1)
    return folder


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "set"))
