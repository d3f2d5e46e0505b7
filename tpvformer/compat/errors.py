"""The one error of this package for files that hold weights."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names the file, the entries, and what was expected."""
