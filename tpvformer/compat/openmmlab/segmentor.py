"""TPVFormer with the interface of an mmsegmentation model.

Its modules have the reference's names (tpv_head, img_backbone, img_neck, tpv_aggregator), which ``paramwise_cfg``
matches. The state dict has all of the reference's names in its order, with the stored geometry.
"""

from __future__ import annotations

import warnings
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from tpvformer.compat.checkpoints import compare_geometry
from tpvformer.compat.keys import derived_names, is_derived, key_table, modern_name, reference_order
from tpvformer.compat.mmcv_model import read_model
from tpvformer.compat.mmcv_node import Facts, Node
from tpvformer.config import LossConfig
from tpvformer.errors import ConfigError
from tpvformer.model import TPVFormer

_PARTS = {"encoder": "tpv_head", "backbone": "img_backbone", "neck": "img_neck", "aggregator": "tpv_aggregator"}
_LOSS_KEYS = ("lovasz_input", "ce_input", "ignore_label")


class TPVFormerSegmentor(nn.Module):
    """Registered as ``TPVFormer``; the arguments are those of the reference's ``model`` dictionary.

    ``train_cfg`` (optional) defines the loss of ``train_step``: ``lovasz_input`` and ``ce_input``, "points" or "voxel",
    and ``ignore_label``, as in the reference's configuration files. Raises ConfigError for a key or value that is not
    supported. ``use_grid_mask`` has no effect: apply that augmentation in the pipeline.
    """

    def __init__(
        self,
        use_grid_mask: bool = False,
        train_cfg: Optional[Mapping[str, Any]] = None,
        test_cfg: Any = None,
        **model: Any,
    ) -> None:
        super().__init__()
        node = Node({"type": "TPVFormer", **model}, "model", Facts("TPVFormer"))
        config = read_model(node)
        node.done()
        if use_grid_mask:
            warnings.warn("TPVFormer: use_grid_mask has no effect here; mask images in the pipeline", stacklevel=2)
        net = TPVFormer(config)
        self._net = (net,)  # in a tuple, so that it is not registered: its modules are, below
        for ours, theirs in _PARTS.items():
            self.add_module(theirs, getattr(net, ours))
        self.config, self.test_cfg = config, test_cfg
        self.train_cfg = _read_losses(train_cfg)
        names = {_part_name(ours): theirs for ours, theirs in key_table(config).items()}
        self._stored = names  # name here -> name in the state dict
        self._own = {theirs: mine for mine, theirs in names.items()}
        self._register_state_dict_hook(_store)
        self._register_load_state_dict_pre_hook(self._load)

    @property
    def net(self) -> TPVFormer:
        """The model itself; its parameters are this module's."""
        return self._net[0]

    def init_weights(self) -> None:
        """Do nothing: the constructor has already drawn from the reference's distributions."""

    def forward(
        self,
        img: Tensor,
        img_metas: Sequence[Mapping[str, Any]],
        points: Optional[Tensor] = None,
        **kwargs: Any,
    ) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """Return logits of voxels (B,K,X,Y,Z), and of points (B,K,n,1,1) where points are given.

        img (B,N,3,H,W), BGR minus the mean colour; img_metas: a dictionary for each sample, with ``lidar2img``, N
        matrices 4x4 from lidar metres to pixels of ``img``; points (B,n,3), in voxels. ``return_loss`` and other
        arguments of mmseg's runners are ignored: ``train_step`` returns the losses.
        """
        prediction = self.net(img, _calibration(img, img_metas), points)
        if prediction.point_logits is None:
            return prediction.voxel_logits
        return prediction.voxel_logits, prediction.point_logits[..., None, None]

    def losses(self, data: Mapping[str, Any]) -> Dict[str, Tensor]:
        """Return ``loss_lovasz`` and ``loss_ce``, means over the samples.

        data: forward's arguments, ``point_labels`` (B,n) where a loss is on points, ``voxel_labels`` (B,X,Y,Z) where
        one is on voxels. Raises ConfigError without a ``train_cfg``.
        """
        from tpvformer.engine.losses import cross_entropy, lovasz_labels

        if self.train_cfg is None:
            raise ConfigError(f"model.train_cfg is missing; expected a dict with {', '.join(_LOSS_KEYS)}")
        cfg, ignore = self.train_cfg
        kinds = {cfg.lovasz_input, cfg.ce_input}
        points = data["points"] if "points" in kinds else None
        prediction = self.net(data["img"], _calibration(data["img"], data["img_metas"]), points)
        of: Dict[str, Tuple[Tensor, Tensor]] = {}
        if prediction.point_logits is not None:
            of["points"] = prediction.point_logits, data["point_labels"].long()
        if "voxel" in kinds:
            of["voxel"] = prediction.voxel_logits.flatten(2), data["voxel_labels"].flatten(1).long()
        return {
            "loss_lovasz": lovasz_labels(*of[cfg.lovasz_input], ignore).mean(),
            "loss_ce": cross_entropy(*of[cfg.ce_input], ignore).mean(),
        }

    def train_step(self, data_batch: Mapping[str, Any], optimizer: Any = None, **kwargs: Any) -> Dict[str, Any]:
        """Return ``loss``, ``log_vars`` as floats and ``num_samples``, as mmcv's runners expect it."""
        parts = self.losses(data_batch)
        loss = torch.stack(list(parts.values())).sum()
        logged = {name: float(value.detach()) for name, value in {**parts, "loss": loss}.items()}
        return {"loss": loss, "log_vars": logged, "num_samples": len(data_batch["img_metas"])}

    def val_step(self, data_batch: Mapping[str, Any], optimizer: Any = None, **kwargs: Any) -> Dict[str, Any]:
        """Return what ``train_step`` returns."""
        return self.train_step(data_batch, optimizer)

    def _load(self, state_dict: Dict[str, Any], prefix: str, *_: Any) -> None:
        """Rename a state dict's entries to the names here, for loading. Stored geometry is compared, not loaded."""
        geometry = {}
        for key in [name for name in state_dict if name.startswith(prefix)]:
            stored = modern_name(key[len(prefix) :])
            if stored in self._own:
                state_dict[prefix + self._own[stored]] = state_dict.pop(key)
            elif is_derived(stored):
                geometry[stored] = state_dict.pop(key).cpu()
        for sentence in compare_geometry(geometry, self.net):
            warnings.warn(sentence, stacklevel=2)


def _store(module: TPVFormerSegmentor, state: Dict[str, Any], prefix: str, _: Any) -> None:
    """Rename the entries of a state dict to the reference's names, in its order, and add its geometry."""
    values = {theirs: state.pop(prefix + mine) for mine, theirs in module._stored.items()}
    geometry = module.net.encoder.reference_buffers()
    values.update({name: geometry[name.rsplit(".", 1)[-1]] for name in derived_names(module.config)})
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]  # mmcv also stores non-persistent buffers
    for name in reference_order(module.config):
        state[prefix + name] = values[name]


def _part_name(ours: str) -> str:
    part, _, rest = ours.partition(".")
    return f"{_PARTS[part]}.{rest}"


def _read_losses(train_cfg: Optional[Mapping[str, Any]]) -> Optional[Tuple[LossConfig, int]]:
    if not train_cfg:
        return None
    if set(train_cfg) != set(_LOSS_KEYS):
        raise ConfigError(f"model.train_cfg has {', '.join(sorted(train_cfg))}; expected {', '.join(_LOSS_KEYS)}")
    if train_cfg["lovasz_input"] == "none":
        raise ConfigError("model.train_cfg.lovasz_input is 'none'; expected 'points' or 'voxel'")
    losses = LossConfig(lovasz_input=train_cfg["lovasz_input"], ce_input=train_cfg["ce_input"])
    return losses, int(train_cfg["ignore_label"])


def _calibration(img: Tensor, img_metas: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return lidar2img (B,N,4,4) of all samples."""
    if len(img_metas) != img.shape[0]:
        raise ValueError(f"{len(img_metas)} img_metas for {img.shape[0]} samples; expected one each")
    size = tuple(img.shape[-2:])
    samples: List[Tensor] = []
    for meta in img_metas:
        for shape in meta.get("img_shape", ()):
            if isinstance(shape, (tuple, list)) and tuple(shape[:2]) != size:
                raise ValueError(f"img_shape says {tuple(shape[:2])}; expected {size}, the padded size of img")
        samples.append(torch.stack([torch.as_tensor(matrix) for matrix in meta["lidar2img"]]))
    return torch.stack(samples).to(img.device, torch.float32)
