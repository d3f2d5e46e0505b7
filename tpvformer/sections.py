"""The old place of ``tpvformer.config.sections``, kept for those who import from it."""

from tpvformer.config.sections import *  # noqa: F403
