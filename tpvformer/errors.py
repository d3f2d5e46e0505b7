"""The error of a configuration; it lies here because everything may raise it."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what, where, and what was expected."""
