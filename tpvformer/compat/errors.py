"""The place of CheckpointError until it moved to ``tpvformer.errors``; kept for those who import it from here."""

from __future__ import annotations

from tpvformer.errors import CheckpointError

__all__ = ["CheckpointError"]
