"""The old place of ``tpvformer.config.grids``, kept for those who import from it."""

from tpvformer.config.grids import *  # noqa: F403
