"""The former module of CheckpointError, which is now in ``tpvformer.errors``; kept for imports from here."""

from __future__ import annotations

from tpvformer.errors import CheckpointError

__all__ = ["CheckpointError"]
