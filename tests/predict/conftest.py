"""A model and a rig of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from api_tools import CONFIG, lively
from rig_tools import THREE, write_rig

from tpvformer import TPVFormer


@pytest.fixture(scope="module")
def model() -> TPVFormer:
    return lively(CONFIG)


@pytest.fixture
def rig(tmp_path: Path) -> Path:
    """A rig file of three cameras of different sizes."""
    return write_rig(tmp_path, THREE)
