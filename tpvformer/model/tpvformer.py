"""Define TPVFormer: images and calibration to classes of voxels and points (Huang et al., arXiv:2302.07817)."""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from tpvformer.config import ModelConfig
from tpvformer.model import activation_checkpoint as recompute
from tpvformer.model.aggregator import BEVAggregator, TPVAggregator
from tpvformer.model.backbone import Bottleneck, ResNet
from tpvformer.model.detection import DetectionHead, DetectionMaps
from tpvformer.model.detection_history import DetectionHistory
from tpvformer.model.encoder import FFN, Past, TPVEncoder
from tpvformer.model.history import PlaneHistory, check_history, hw_past, remember, unknown
from tpvformer.model.history_attention import HistoryReader
from tpvformer.model.image_attention import ImageCrossAttention
from tpvformer.model.image_head import ImageHead, ImageLogits
from tpvformer.model.neck import FPN
from tpvformer.model.plane_attention import CrossViewAttention, HWAttention


class Prediction(NamedTuple):
    """Hold voxel_logits (B,K,X,Y,Z), or (B,K,M) at chosen voxels, and point_logits (B,K,P), or None without points."""

    voxel_logits: Tensor
    point_logits: Optional[Tensor]


class FullPrediction(NamedTuple):
    """Hold a Prediction and the outputs of the other heads that the model has; None for a head that it lacks.

    ``history`` is that of a model with ``model.history``, as this frame sees it, itself included.
    """

    voxel_logits: Tensor
    point_logits: Optional[Tensor]
    image: Optional[ImageLogits]  # each camera's logits of the chosen voxels; in training only
    detection: Optional[DetectionMaps]
    history: Optional[PlaneHistory] = None


class TPVFormer(nn.Module):
    """Predict classes of voxels and points; both published families, or plane hw alone.

    Sub-modules are in the order of the reference's state dict. ``image_autocast`` runs backbone and neck under autocast
    in that type; all geometry stays fp32. ``image_layout`` is the memory format of the images, which depends on the
    device. ``image_network``, ``plane_network`` and ``place_network`` replace ``image_maps``, ``features_and_planes``
    and ``aggregator`` in ``forward``, and ``pixel_network`` the preprocessing before it, by compiled versions.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_autocast: Optional[torch.dtype] = None
        self.image_layout = torch.channels_last
        self.image_network: Optional[Callable[[Tensor], List[Tensor]]] = None
        self.plane_network: Optional[Callable[..., Tuple[List[Tensor], Tensor]]] = None
        self.place_network: Optional[Callable[..., Tuple[Tensor, Optional[Tensor]]]] = None
        self.pixel_network: Optional[Callable[..., Tensor]] = None
        self.encoder = TPVEncoder(config)
        self.backbone = ResNet(config.backbone)
        self.neck = FPN(config.backbone.out_channels, config.dim, config.num_levels)
        self.aggregator = {3: TPVAggregator, 1: BEVAggregator}[len(config.planes)](config)
        self.image_head = ImageHead(config) if config.image_head else None
        self.detection = DetectionHead(config) if config.detection is not None else None
        reads = config.history is not None and config.view_attn == "cross_view"  # hw reads with the weights it has
        self.history = HistoryReader(config) if reads else None
        compares = config.history is not None and config.detection is not None
        self.detection_history = DetectionHistory(config) if compares else None
        self._frozen: Tuple[nn.Module, ...] = ()

    def freeze(self, parts: Sequence[str]) -> None:
        """Stop the learning of parts, named as in the state dict: no gradients, and always in evaluation mode."""
        modules = [getattr(self, name) for name in parts]
        self._frozen = tuple(module for module in modules if module is not None)
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TPVFormer":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @property
    def product_type(self) -> Optional[torch.dtype]:
        """Return the type of the encoder's products where kernels take it: bf16 if the image network has it."""
        return torch.bfloat16 if self.image_autocast == torch.bfloat16 else None

    def recompute(self, mode: str) -> None:
        """Set what the backward pass recomputes to save memory.

        "none": nothing, except as ``backbone.column_budget`` says. "cheap": sampling offsets and weights, hidden units
        and folded norms. "blocks": all blocks of the backbone and all layers of the encoder, which takes the time of
        another forward pass. Raises ValueError for another mode.
        """
        if mode not in recompute.MODES:
            raise ValueError(f"recompute mode is {mode!r}; expected one of {', '.join(recompute.MODES)}")
        self.encoder.recompute = mode == "blocks"
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.recompute = mode
            elif isinstance(module, (CrossViewAttention, HWAttention, ImageCrossAttention, FFN)):
                module.recompute = mode == "cheap"

    def image_features(
        self, images: Tensor, maps_of: Optional[Callable[[Tensor], List[Tensor]]] = None
    ) -> List[Tensor]:
        """Return ``num_levels`` maps (B,N,C,h_l,w_l), fp32, of images (B,N,3,H,W).

        ``maps_of`` replaces ``image_maps``.
        """
        b, n = images.shape[:2]
        flat = images.flatten(0, 1).contiguous(memory_format=self.image_layout)
        enabled = self.image_autocast is not None
        with torch.autocast(images.device.type, dtype=self.image_autocast or torch.bfloat16, enabled=enabled):
            maps = (maps_of or self.image_network or self.image_maps)(flat)
        return [m.float().unflatten(0, (b, n)) for m in maps]

    def image_maps(self, images: Tensor) -> List[Tensor]:
        """Return ``num_levels`` maps (M,C,h_l,w_l) of images (M,3,H,W): backbone and neck."""
        maps: List[Tensor] = self.neck(self.backbone(images))
        return maps

    def planes(
        self,
        images: Tensor,
        lidar2img: Tensor,
        camera_slots: Optional[Tensor] = None,
        history: Optional[PlaneHistory] = None,
    ) -> Tensor:
        """Return the plane features (B,Q,C), which ``aggregator`` decodes; arguments as for ``forward``."""
        return self.planes_from(self.image_features(images), images, lidar2img, camera_slots, history=history)

    def features_and_planes(
        self,
        images: Tensor,
        lidar2img: Tensor,
        camera_slots: Optional[Tensor],
        rows: Optional[Sequence[Tensor]] = None,
        history: Optional[PlaneHistory] = None,
    ) -> Tuple[List[Tensor], Tensor]:
        """Return ``image_features`` and the plane features (B,Q,C); arguments as for ``forward``."""
        features = self.image_features(images)
        return features, self.planes_from(features, images, lidar2img, camera_slots, rows, history)

    def planes_from(
        self,
        features: List[Tensor],
        images: Tensor,
        lidar2img: Tensor,
        camera_slots: Optional[Tensor] = None,
        rows: Optional[Sequence[Tensor]] = None,
        history: Optional[PlaneHistory] = None,
    ) -> Tensor:
        """Return the plane features (B,Q,C) from given ``image_features``."""
        size = (images.shape[3], images.shape[4])
        pasts = self.pasts(history)
        out: Tensor = self.encoder(features, lidar2img, size, camera_slots, rows, self.product_type, pasts)
        return out

    def pasts(self, history: Optional[PlaneHistory]) -> Optional[Sequence[Past]]:
        """Return what each layer of the encoder reads of a history; None without one."""
        if history is None:
            return None
        if self.history is not None:
            return self.history.look(history)
        return [hw_past(history, self.config, self.encoder.plane_anchors)] * len(self.config.layers)

    def forward(
        self,
        images: Tensor,
        lidar2img: Tensor,
        points: Optional[Tensor] = None,
        lengths: Optional[Tensor] = None,
        voxels: Optional[Tensor] = None,
        camera_slots: Optional[Tensor] = None,
        rows: Optional[Sequence[Tensor]] = None,
        history: Optional[PlaneHistory] = None,
    ) -> Union[Prediction, FullPrediction]:
        """Predict a batch: a FullPrediction where the model has other heads to read, else a Prediction.

        images (B,N,3,H,W): BGR minus the mean colour, padded to a multiple of 32. lidar2img (B,N,4,4): lidar metres to
        pixels of those images, times depth. points (B,P,3): positions in voxels, x, y, z (indices as in the data set).
        lengths (B,): the number of real points of each sample; logits after them are zero. voxels (B,M,3): integer
        voxels to decode instead of the whole grid. camera_slots (B,N): the embedding of each camera; None: the first N
        in order. rows: for each plane the queries (B,N,R) int32 that each camera may see (visible_rows.py); used where
        ``ops.takes_rows``. history: what the samples' scenes looked like before, of a model with ``model.history``;
        None: nothing is known, which is the model without a history. The arguments are not modified. Raises ValueError
        for other shapes.
        """
        self._check(images, lidar2img, points)
        learns_past = self.history is not None or self.detection_history is not None
        if history is None and learns_past and self.training and torch.is_grad_enabled():
            history = unknown(self.config, len(images), images.device)  # every weight takes part in every step
        if history is not None:
            check_history(history, self.config, len(images))
        more = (rows, history) if history is not None else () if rows is None else (rows,)
        features, planes = (self.plane_network or self.features_and_planes)(images, lidar2img, camera_slots, *more)
        voxel_logits, point_logits = (self.place_network or self.aggregator)(planes, points, voxels)
        if point_logits is not None and lengths is not None:
            real = torch.arange(point_logits.shape[2], device=lengths.device) < lengths[:, None]
            point_logits = point_logits * real[:, None]
        image, boxes = None, self.boxes(planes, history)
        if self.training and self.image_head is not None and voxels is not None:
            size = (images.shape[3], images.shape[4])
            image = self.image_head(features[0], voxels, self.encoder.pc_range, lidar2img, size)
        after = None if self.config.history is None else remember(planes, history, self.config.history.frames)
        if image is None and boxes is None and after is None:
            return Prediction(voxel_logits, point_logits)
        return FullPrediction(voxel_logits, point_logits, image, boxes, after)

    def boxes(self, planes: Tensor, history: Optional[PlaneHistory] = None) -> Optional[DetectionMaps]:
        """Return the maps of 3-D boxes from plane features (B,Q,C); None for a model without that head."""
        if self.detection is None:
            return None
        past = None
        if history is not None and self.detection_history is not None:
            past = self.detection_history(planes, history, self.image_autocast)
        maps: DetectionMaps = self.detection(
            self.aggregator.three_planes(planes), self.aggregator.first_layer, self.image_autocast, past
        )
        return maps

    def _check(self, images: Tensor, lidar2img: Tensor, points: Optional[Tensor]) -> None:
        if images.dim() != 5 or images.shape[2] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (batch, cameras, 3, height, width)")
        if images.shape[1] > self.config.num_cams:
            raise ValueError(
                f"{images.shape[1]} cameras were given to a model with {self.config.num_cams} camera embeddings; "
                "set model.num_cams"
            )
        expected = (*images.shape[:2], 4, 4)
        if tuple(lidar2img.shape) != expected:
            raise ValueError(f"lidar2img has shape {tuple(lidar2img.shape)}; expected {expected}")
        if points is not None and (points.dim() != 3 or points.shape[0] != images.shape[0] or points.shape[2] != 3):
            raise ValueError(f"points have shape {tuple(points.shape)}; expected ({images.shape[0]}, points, 3)")
