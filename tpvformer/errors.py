"""Errors that a user can fix. The command line prints the message and ends with ``exit_status``."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can fix; the message says what, where, what was expected and the remedy."""

    exit_status = 2


class ConfigError(UserError, ValueError):
    """A configuration or an option that cannot be used."""


class DataError(UserError, ValueError):
    """A data set that cannot be used; the message names the sample, the file and the remedy."""

    def __str__(self) -> str:
        # PyTorch wraps a loader worker's error in the worker's traceback; the last line is the message.
        return super().__str__().rsplit("DataError: ", 1)[-1].strip()


class CheckpointError(UserError, ValueError):
    """A weights file that cannot be used; the message names the file, the entries and what was expected."""


class OpsError(UserError, ValueError, RuntimeError):
    """A backend of the operations that was chosen and is not available; the message names those that are."""


class SaveError(UserError, RuntimeError):
    """A checkpoint could not be written; the message says which, why, and which checkpoints remain."""

    exit_status = 1


class NonFiniteLoss(UserError, RuntimeError):
    """The loss or its gradient is not finite; the message names the iteration and the samples."""

    exit_status = 1


class RunEnded(UserError, RuntimeError):
    """The run cannot continue; the message says where, why, and what to change."""

    exit_status = 1
