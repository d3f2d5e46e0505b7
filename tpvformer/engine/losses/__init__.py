"""Compute the training losses, one value a sample: Lovász-softmax, cross-entropy, and the optional terms.

Lovász-softmax: Berman et al., CVPR 2018, arXiv:1705.08790.

Shapes: B samples, K classes, P points, M occupied voxels (padded rows at the end), X, Y, Z the label grid.

The loss of a batch is the mean of its samples' losses. Training therefore depends only on the product ranks x batch
size x accumulation, and a validation loss does not depend on how samples are grouped.

Every point of a voxel has the same logits, so points enter as *counts*: the number of points of each class in a voxel.
Points that share a voxel and a label are ties in the Lovász sort. A run of ties contributes its common error times the
Jaccard difference over the run, in any order. Sorting voxels therefore gives the same loss as sorting points.
"""

from __future__ import annotations

from functools import lru_cache, reduce
from operator import add
from typing import TYPE_CHECKING, Dict, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tpvformer.config import DataConfig, GridConfig, LossConfig
from tpvformer.data.types import CAMERA_BIT, LIDAR_BIT
from tpvformer.engine.losses.affinity import affinity
from tpvformer.engine.losses.detection import detection_losses
from tpvformer.engine.losses.entropy import soft_entropy, soft_entropy_of_counts
from tpvformer.engine.losses.render import render_losses

if TYPE_CHECKING:
    from tpvformer.data.types import Batch
    from tpvformer.model import Prediction
    from tpvformer.model.detection import DetectionMaps
    from tpvformer.model.image_head import ImageLogits


def total_loss(
    prediction: Prediction,
    batch: Batch,
    loss_cfg: LossConfig,
    data_cfg: DataConfig,
    grid: Optional[GridConfig] = None,
    parts: Optional[Dict[str, Tensor]] = None,
) -> Tensor:
    """Return the mean loss of the samples, a scalar, with the terms of the image head, of the boxes and of rendering.

    ``prediction.point_logits`` (B,K,M) belong to the rows of ``batch.voxel_coords``. ``prediction.voxel_logits`` are
    (B,K,M) at the same rows, or dense (B,K,X,Y,Z). A sample without any label contributes zero. ``grid``, the model's,
    is for ``loss_cfg.render``, which draws random numbers. ``parts`` receives the share of each term, a scalar without
    gradient on the same device: "ce", "lovasz", "affinity", "detection", "image", "render". They add up to the loss, up
    to rounding.
    """
    found = segmentation_terms(prediction, batch, loss_cfg, data_cfg)
    losses = _weighed(reduce(add, found.values()), loss_cfg)
    shares = {name: _weighed(term.detach(), loss_cfg) for name, term in found.items() if loss_cfg.segmentation}
    boxes: Optional[DetectionMaps] = getattr(prediction, "detection", None)
    if boxes is not None:
        shares["detection"] = loss_cfg.detection * detection_losses(boxes, batch, together=True)
        losses = losses + shares["detection"]
    image: Optional[ImageLogits] = getattr(prediction, "image", None)  # a FullPrediction may have it
    if image is not None:
        shares["image"] = loss_cfg.image * image_losses(image, batch, data_cfg.ignore_label)
        losses = losses + shares["image"]
    if loss_cfg.render:
        shares["render"] = loss_cfg.render * _rendered(prediction, batch, loss_cfg, data_cfg, grid)
        losses = losses + shares["render"]
    if parts is not None:
        parts.update({name: share.detach().mean() for name, share in shares.items()})
    return losses.mean()


def sample_losses(prediction: Prediction, batch: Batch, loss_cfg: LossConfig, data_cfg: DataConfig) -> Tensor:
    """Return each sample's loss, (B,) float32, without image head and rendering; inputs as for ``total_loss``."""
    losses = segmentation_losses(prediction, batch, loss_cfg, data_cfg)
    boxes: Optional[DetectionMaps] = getattr(prediction, "detection", None)
    if boxes is None or batch.heatmaps is None:
        return losses
    return losses + loss_cfg.detection * detection_losses(boxes, batch, together=False)


def segmentation_losses(prediction: Prediction, batch: Batch, loss_cfg: LossConfig, data_cfg: DataConfig) -> Tensor:
    """Return the loss (B,) float32 of points and voxels; inputs as for ``total_loss``."""
    return _weighed(reduce(add, segmentation_terms(prediction, batch, loss_cfg, data_cfg).values()), loss_cfg)


def _weighed(loss: Tensor, loss_cfg: LossConfig) -> Tensor:
    return loss if loss_cfg.segmentation == 1 else loss_cfg.segmentation * loss


def segmentation_terms(
    prediction: Prediction, batch: Batch, loss_cfg: LossConfig, data_cfg: DataConfig
) -> Dict[str, Tensor]:
    """Return the terms of the loss of points and voxels, (B,) float32 each; inputs as for ``total_loss``.

    Each has its own weight; ``loss.segmentation`` is left out.
    """
    ignore, soft = data_cfg.ignore_label, (loss_cfg.focal, loss_cfg.label_smoothing)
    inputs = {loss_cfg.lovasz_input, loss_cfg.ce_input}
    if "points" in inputs:
        assert prediction.point_logits is not None, "the losses read points, so the model must be given some"
        point_logits = prediction.point_logits.float()
        counts = point_counts(batch, point_logits.shape[1], ignore)
    if "voxel" in inputs:
        voxel_logits = prediction.voxel_logits.float().flatten(2)
        dense = prediction.voxel_logits.dim() == 5
        labels = taught_labels(batch, data_cfg).flatten(1) if dense else labels_at_voxels(batch, ignore)
    terms: Dict[str, Tensor] = {}
    if loss_cfg.ce_input == "points":
        if any(soft):
            terms["ce"] = soft_entropy_of_counts(point_logits, counts, *soft)
        else:
            costs = -(F.log_softmax(point_logits, 1) * counts).sum((1, 2))
            terms["ce"] = costs / counts.sum((1, 2)).clamp(min=1)
    else:
        weights = _on_device(loss_cfg.class_weights, voxel_logits.device) if loss_cfg.class_weights else None
        if any(soft):
            terms["ce"] = soft_entropy(voxel_logits, labels, ignore, *soft, weights)
        else:
            terms["ce"] = cross_entropy(voxel_logits, labels, ignore, weights)
    if loss_cfg.lovasz_input == "points":
        terms["lovasz"] = lovasz_counts(point_logits, counts)
    elif loss_cfg.lovasz_input == "voxel":
        terms["lovasz"] = lovasz_labels(voxel_logits, labels, ignore)
    if loss_cfg.affinity:
        terms["affinity"] = affinity(voxel_logits, labels, ignore, data_cfg.fill_label)
    for name, weight in (("ce", loss_cfg.ce_weight), ("lovasz", loss_cfg.lovasz_weight)):
        if weight != 1 and name in terms:
            terms[name] = weight * terms[name]
    return terms


def _rendered(
    prediction: Prediction, batch: Batch, loss_cfg: LossConfig, data_cfg: DataConfig, grid: Optional[GridConfig]
) -> Tensor:
    """Return the render loss (B,) float32; inputs as for ``total_loss``."""
    assert grid is not None and prediction.voxel_logits.dim() == 5, "rays cross dense voxels of a known grid"
    height, width = batch.images.shape[2:4]
    return render_losses(
        prediction.voxel_logits.float(),
        taught_labels(batch, data_cfg),
        batch.grid2img,
        (width * data_cfg.image_scale, height * data_cfg.image_scale),
        grid.pc_range,
        data_cfg.fill_label,
        data_cfg.ignore_label,
        loss_cfg.render_rays,
        loss_cfg.render_samples,
    )


@lru_cache(maxsize=4)  # cached: each copy from the host may synchronise with the device
def _on_device(numbers: Tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device)


def needs_dense_voxels(loss_cfg: LossConfig, data_cfg: DataConfig) -> bool:
    """Return whether empty voxels have labels, so that the loss needs logits in all voxels."""
    return "voxel" in (loss_cfg.lovasz_input, loss_cfg.ce_input) and data_cfg.fill_label != data_cfg.ignore_label


def taught_labels(batch: Batch, data_cfg: DataConfig) -> Tensor:
    """Return the labels (B,X,Y,Z) int64 of all voxels, with the ignore label outside the configured visibility mask."""
    labels = batch.voxel_labels.long()
    if not data_cfg.occupancy_mask:
        return labels
    assert batch.voxel_mask is not None
    bit = {"lidar": LIDAR_BIT, "camera": CAMERA_BIT}[data_cfg.occupancy_mask]
    return torch.where((batch.voxel_mask & bit) > 0, labels, data_cfg.ignore_label)


def cross_entropy(logits: Tensor, labels: Tensor, ignore: int, weights: Optional[Tensor] = None) -> Tensor:
    """Return the mean cross-entropy (B,) over each sample's rows whose label is not ``ignore``; 0 without such rows.

    logits (B,K,N), labels (B,N) int64. ``weights`` (K,) make it a weighted mean, each row with the weight of its label.
    """
    each = F.cross_entropy(logits, labels, weights, ignore_index=ignore, reduction="none")
    valid = labels != ignore
    if weights is None:
        return each.sum(1) / valid.sum(1).clamp(min=1)
    total = (weights[torch.where(valid, labels, 0)] * valid).sum(1)
    return each.sum(1) / torch.where(total > 0, total, 1.0)


def image_losses(image: ImageLogits, batch: Batch, ignore: int) -> Tensor:
    """Return the cross-entropy (B,) of the image head: the mean over cameras and labelled voxels visible in each."""
    labels = labels_at_voxels(batch, ignore)
    cameras = image.visible.shape[1]
    seen = torch.where(image.visible, labels[:, None].expand(-1, cameras, -1), ignore)
    return cross_entropy(image.logits.transpose(1, 2).flatten(2), seen.flatten(1), ignore)


def lovasz_labels(logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Return the Lovász-softmax loss (B,) of rows with one label each.

    logits (B,K,N), labels (B,N) int64. To sort a batch as a whole, pass it as one sample.
    """
    valid = labels != ignore
    foreground = _one_hot(labels, valid, logits.shape[1])
    background = valid[:, None].float() - foreground
    probability = logits.softmax(1)
    errors = foreground + probability * (1 - 2 * foreground)
    return _lovasz(errors, foreground, background)


def lovasz_counts(logits: Tensor, counts: Tensor) -> Tensor:
    """Return the Lovász-softmax loss (B,) over points that are counted by voxel.

    logits (B,K,M) of each voxel; counts (B,K,M), the labelled points of each class in each voxel.
    """
    probability = logits.softmax(1)
    others = counts.sum(1, keepdim=True) - counts
    nothing = torch.zeros_like(counts)
    errors = torch.cat((1 - probability, probability), 2)  # (B,K,2M): points of the class, then points of other classes
    return _lovasz(errors, torch.cat((counts, nothing), 2), torch.cat((nothing, others), 2))


def _lovasz(errors: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Return the mean over the classes present of sum_k e_k (J_k - J_{k-1}), e sorted descending.

    All (B,K,N). ``foreground`` and ``background`` count the points of the class and of other classes with each error.
    Rows without points have no weight. No operation synchronises with the device.
    """
    with torch.no_grad():
        order = errors.argsort(dim=2, descending=True)
        total = foreground.sum(2, keepdim=True)
        hit = foreground.gather(2, order).cumsum(2)
        union = total + background.gather(2, order).cumsum(2)
        jaccard = 1 - (total - hit) / union.clamp(min=1)
        jaccard[..., 1:] -= jaccard[..., :-1].clone()
        weight = torch.empty_like(errors).scatter_(2, order, jaccard)
        present = (total > 0).squeeze(2)
    each = (errors * weight).sum(2)
    return (each * present).sum(1) / present.sum(1).clamp(min=1)


def point_counts(batch: Batch, num_classes: int, ignore: int) -> Tensor:
    """Count the labelled points of each class in each occupied voxel, (B,K,M) float32, without padded points."""
    labels, rows = batch.point_labels, batch.point2voxel
    size = batch.voxel_coords.shape[1]
    valid = labels != ignore  # padded points have the ignore label
    flat = torch.where(valid, labels, 0) * size + rows
    counts = torch.zeros(labels.shape[0], num_classes * size, device=labels.device)
    return counts.scatter_add_(1, flat, valid.float()).unflatten(1, (num_classes, size))


def labels_at_voxels(batch: Batch, ignore: int) -> Tensor:
    """Return the voxel labels at ``batch.voxel_coords``, (B,M) int64; padded rows have the label ``ignore``."""
    inside = torch.arange(batch.voxel_coords.shape[1], device=batch.voxel_coords.device) < batch.voxel_lengths[:, None]
    labels = batch.voxel_labels.flatten(1).gather(1, flat_index(batch.voxel_coords, batch.voxel_labels.shape[1:]))
    return torch.where(inside, labels.long(), ignore)


def flat_index(cells: Tensor, shape: Tuple[int, ...]) -> Tensor:
    """Return the row-major index of cells (..., 3) in a grid of ``shape`` (X,Y,Z)."""
    return (cells[..., 0] * shape[1] + cells[..., 1]) * shape[2] + cells[..., 2]


def _one_hot(labels: Tensor, valid: Tensor, num_classes: int) -> Tensor:
    """Return labels (B,N) as one-hot (B,K,N) float; rows that are not valid are zero."""
    hot = torch.zeros(labels.shape[0], num_classes, labels.shape[1], device=labels.device)
    return hot.scatter_(1, torch.where(valid, labels, 0)[:, None], valid[:, None].float())
