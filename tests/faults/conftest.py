"""One source of short-lived training processes, and a data set for them."""

from __future__ import annotations

from typing import Iterator

import pytest
from lives import Lives
from tiny_nuscenes import write_tiny

from tpvformer.config import DataConfig

POINTS = (9, 11, 8, 10, 7, 12, 9, 13)


@pytest.fixture(scope="session")
def lives() -> Iterator[Lives]:
    source = Lives()
    yield source
    source.close()


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> DataConfig:
    """Eight samples of one camera."""
    return write_tiny(tmp_path_factory.mktemp("set"), POINTS, cameras=("CAM_FRONT",))
