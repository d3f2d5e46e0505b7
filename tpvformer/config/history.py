"""Define the section of what a model remembers of past frames."""

from __future__ import annotations

from dataclasses import dataclass

from tpvformer.config.ranges import check_section


@dataclass(frozen=True)
class HistoryConfig:
    """Configure how queries read the planes of past frames (model/history.py)."""

    frames: int = 1  # past frames that a prediction may read
    max_seconds: float = 2.0  # an older frame is not read

    def __post_init__(self) -> None:
        check_section("model.history", self)
