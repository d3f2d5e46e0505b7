"""From a batch to what the losses and the metrics read; the one place where a batch meets the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

from torch import Tensor, nn

from tpvformer.config import Config
from tpvformer.data.images.preprocess import network_images
from tpvformer.engine.losses import needs_dense_voxels

if TYPE_CHECKING:
    from tpvformer.data.types import Batch
    from tpvformer.model import Prediction, TPVFormer


def predict(model: nn.Module, batch: Batch, config: Config, dense: bool = False) -> Prediction:
    """Logits for every occupied voxel, as a voxel and as the place of its points.

    ``point_logits`` (B,K,M) belong to the rows of ``batch.voxel_coords``: all points of a voxel have the same logits.
    ``voxel_logits`` are (B,K,M) at the same voxels, or dense (B,K,X,Y,Z) where empty voxels carry a label too, or where
    ``dense`` asks for them. Samples without points are welcome; M is then 0.
    With dense labels or ``data.even_cells`` a place is the middle of its voxel, else its lower corner, as in the
    published models.
    In training the point logits are left out where the losses do not read them, and of a model with an image head this
    is a TaughtPrediction.
    """
    unread = model.training and "points" not in (config.loss.lovasz_input, config.loss.ce_input)
    places = point_places(batch.voxel_coords, config)
    dense = dense or needs_dense_voxels(config.loss, config.data)
    prediction: Prediction = model(
        network_images(batch, config.data),
        batch.lidar2img,
        points=None if unread else places,
        lengths=batch.voxel_lengths,
        voxels=None if dense else batch.voxel_coords,
        camera_slots=batch.camera_slots,
    )
    return prediction


def point_places(voxels: Tensor, config: Config) -> Tensor:
    """Where the points of voxels (..., 3) are decoded, in voxels."""
    return voxels.float() + (0.5 if config.data.cells_are_even else 0.0)


def planes(model: TPVFormer, batch: Batch, config: Config, prepared: Callable[[], None] = lambda: None) -> Tensor:
    """The plane features (B,Q,C) alone: what the images say, before anybody asks about a place.

    ``prepared`` is called between the pixels' normalisation and the network.
    """
    images = network_images(batch, config.data)
    prepared()
    return model.planes(images, batch.lidar2img, batch.camera_slots)
