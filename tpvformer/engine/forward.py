"""Run the model on a batch: the inputs of the losses and metrics. All other code calls the model through here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Optional

import torch
from torch import Tensor, nn

from tpvformer.config import Config
from tpvformer.data.images.preprocess import network_images
from tpvformer.engine.losses import needs_dense_voxels
from tpvformer.engine.past import history_of

if TYPE_CHECKING:
    from tpvformer.data.types import Batch
    from tpvformer.model import Prediction, TPVFormer
    from tpvformer.model.history import PlaneHistory


def predict(
    model: nn.Module, batch: Batch, config: Config, dense: bool = False, history: Optional[PlaneHistory] = None
) -> Prediction:
    """Return logits at every occupied voxel, from the voxel head and from the point head.

    ``point_logits`` (B,K,M) belong to the rows of ``batch.voxel_coords``: all points of a voxel have the same logits.
    ``voxel_logits`` are (B,K,M) at the same voxels. They are dense (B,K,X,Y,Z) if empty voxels have labels too, or if
    ``dense`` is set. Samples may have no points; M is then 0.

    With dense labels or ``data.even_cells`` a point is decoded at the centre of its voxel, otherwise at the lower
    corner, as in the published models.

    In training the point logits are None if no loss reads them, and a model with an image head returns a
    FullPrediction, as a model with a detection head or a history always does. ``history``: of the samples in the batch;
    None: what the batch's past frames tell, if it has any.
    """
    unread = model.training and "points" not in (config.loss.lovasz_input, config.loss.ce_input)
    places = point_places(batch.voxel_coords, config)
    dense = dense or needs_dense_voxels(config.loss, config.data)
    bare: Any = getattr(model, "module", model)  # without what averages gradients
    if history is None:
        history = history_of(bare, batch, config)
    compiled = getattr(bare, "pixel_network", None)
    images = pixels(bare, batch, config) if compiled is None else compiled(batch, config.data)
    prediction: Prediction = model(
        images,
        batch.grid2img,
        points=None if unread else places,
        lengths=batch.voxel_lengths,
        voxels=None if dense else batch.voxel_coords,
        camera_slots=batch.camera_slots,
        **listed_rows(batch),
        **({} if history is None else {"history": history}),
    )
    return prediction


def listed_rows(batch: Batch) -> Dict[str, Any]:
    """Return the batch's lists of visible queries as an argument of the model; nothing where it has none."""
    if batch.query_rows is None:
        return {}
    return {"rows": [part.contiguous() for part in batch.query_rows.split(batch.row_counts, 2)]}


def pixels(model: nn.Module, batch: Batch, config: Config) -> Tensor:
    """Return the network input (B,N,3,h,w) in the memory format that the model asks for on its device."""
    planes = getattr(model, "image_layout", torch.channels_last) == torch.contiguous_format
    return network_images(batch, config.data, planes)


def point_places(voxels: Tensor, config: Config) -> Tensor:
    """Return the positions (..., 3) at which voxels (..., 3) are decoded, in voxel units."""
    return voxels.float() + (0.5 if config.data.cells_are_even else 0.0)


def planes(
    model: TPVFormer,
    batch: Batch,
    config: Config,
    prepared: Callable[[], None] = lambda: None,
    history: Optional[PlaneHistory] = None,
) -> Tensor:
    """Return the plane features (B,Q,C), without decoding any point or voxel. ``history``: as for ``predict``.

    ``prepared`` is called after the pixels are normalised and before the network runs.
    """
    images = pixels(model, batch, config)
    prepared()
    return model.planes(images, batch.grid2img, batch.camera_slots, history)
