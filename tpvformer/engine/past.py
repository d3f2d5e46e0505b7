"""Compute what the samples of a batch saw before, from the past frames that the loader reads with them.

A past frame is run without gradients and in evaluation mode: no dropout, no update of batch norms. The oldest comes
first, and each later one reads those before it, as in a stream that begins with the oldest. Nothing is kept between
batches, so the order of samples, accumulation, resuming and the number of processes are what they are without a past.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Generator, Optional

import torch

from tpvformer.config import Config
from tpvformer.data.images.preprocess import network_images
from tpvformer.model.history import PlaneHistory, remember

if TYPE_CHECKING:
    from tpvformer.data.types import Batch
    from tpvformer.model import TPVFormer


def history_of(model: TPVFormer, batch: Batch, config: Config) -> Optional[PlaneHistory]:
    """Return the history that the samples of a batch have; None for a batch without past frames.

    ``model`` is the bare module. A sample without a frame (the start of a scene, a past that was dropped) has one that
    is not read.
    """
    if config.model.history is None or not batch.past:
        return None
    seen: Optional[PlaneHistory] = None  # by the frame that is next
    planar = model.image_layout == torch.contiguous_format
    with _at_rest(model), torch.no_grad():
        for frame in reversed(batch.past):
            images = network_images(frame, config.data, planar)
            planes = model.planes(images, frame.grid2img, frame.camera_slots, seen)
            after = remember(planes, seen, config.model.history.frames)
            seen = after.moved(frame.motion, frame.gap).of_samples(frame.valid)
    return seen


@contextlib.contextmanager
def _at_rest(model: TPVFormer) -> Generator[None, None, None]:
    """Put a model into evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
