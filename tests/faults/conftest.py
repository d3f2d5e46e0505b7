"""One source of short-lived training processes, a data set for them, and a configuration for other runs."""

from __future__ import annotations

from typing import Iterator

import pytest
from engine_tools import POINTS, tiny_config
from lives import Lives
from tiny_nuscenes import write_tiny

from tpvformer.config import Config, DataConfig


@pytest.fixture(scope="session")
def lives() -> Iterator[Lives]:
    source = Lives()
    yield source
    source.close()


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> DataConfig:
    """Eight samples of one camera."""
    return write_tiny(tmp_path_factory.mktemp("set"), (9, 11, 8, 10, 7, 12, 9, 13), cameras=("CAM_FRONT",))


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Config:
    """One epoch over seven samples of two cameras, which no test changes."""
    return tiny_config(write_tiny(tmp_path_factory.mktemp("set"), POINTS, cameras=("CAM_FRONT", "CAM_BACK")), epochs=1)
