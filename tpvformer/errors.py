"""Errors that a user can mend. The command line prints the message and ends with ``exit_status``."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can mend; the message says what, where, what was expected and how to mend it."""

    exit_status = 2


class ConfigError(UserError, ValueError):
    """A configuration or an option that cannot be used."""


class DataError(UserError, ValueError):
    """A data set that cannot be used; the message names the sample, the file, and what mends it."""

    def __str__(self) -> str:
        # An error of a loader's worker arrives with the worker's traceback around it; its last line is the message.
        return super().__str__().rsplit("DataError: ", 1)[-1].strip()


class CheckpointError(UserError, ValueError):
    """A weights file that cannot be used; the message names the file, the entries, and what was expected."""


class OpsError(UserError, ValueError, RuntimeError):
    """A backend of the operations that was asked for and cannot serve; the message names it and what can."""


class SaveError(UserError, RuntimeError):
    """A checkpoint could not be written; the message says which, why, and what is still there."""

    exit_status = 1


class NonFiniteLoss(UserError, RuntimeError):
    """The loss stopped being a number; the message names the iteration and the samples."""

    exit_status = 1


class RunEnded(UserError, RuntimeError):
    """The run cannot go on; the message says where, why, and what to change."""

    exit_status = 1
