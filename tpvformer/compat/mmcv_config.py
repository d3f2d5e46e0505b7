"""Conversion of the reference's configuration (nested dictionaries of registered types) to our Config.

Each dictionary is read key by key. A key that is not read is refused by name, and so is a value that our model does not
support. A number that the reference writes in several places must be the same in all of them.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Mapping

from tpvformer.compat.label_table import check_label_table
from tpvformer.compat.mmcv_model import read_model
from tpvformer.compat.mmcv_node import Facts, Node
from tpvformer.config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from tpvformer.errors import ConfigError

# Top-level names of the reference. The last two rows are helper variables of its files, which a dumped file still has.
KNOWN = (
    *("model", "dataset_params", "train_data_loader", "val_data_loader", "unique_label", "optimizer", "grad_max_norm"),
    *("print_freq", "max_epochs", "load_from", "occupancy", "lovasz_input", "ce_input", "scale_rate", "nbr_class"),
    *("point_cloud_range", "grid_size", "scale_h", "scale_w", "scale_z", "num_points", "num_points_in_pillar"),
    *("num_heads", "tpv_encoder_layers", "hybrid_attn_anchors", "hybrid_attn_points", "hybrid_attn_init"),
    *("tpv_h_", "tpv_w_", "tpv_z_", "self_cross_layer", "self_layer"),
)
_LABEL_MAPS = ("nuscenes", "nuscenes-noIgnore")
_OPTIMIZERS = ("AdamW", "NpuFusedAdamW")  # the second is the same rule in one kernel


def from_reference(tree: Mapping[str, Any], name: str, file: str) -> Config:
    """Convert ``tree``, a merged configuration of the reference, to a Config.

    ``name`` becomes the Config's name; messages name ``file``. Raises ConfigError with the dotted name of a key that is
    unknown, missing, contradictory or not supported.
    """
    top = Node(tree, "", Facts(file))
    node = top.child("model")
    grid_mask = node.expect("use_grid_mask", False, True)
    try:
        model = read_model(node)
    except ConfigError as err:
        raise ConfigError(str(err) if str(err).startswith(f"{file}:") else f"{file}: {err}") from err
    node.done()
    top.expect("occupancy", model.view_attn == "hw")
    return _with_model(top, name, model, grid_mask)


def beside_model(tree: Mapping[str, Any], name: str, file: str, model: ModelConfig) -> Config:
    """Convert everything but ``model``, which is given, as ``from_reference`` does.

    GridMask is off, because the reference's models mask their images themselves.
    """
    return _with_model(Node(tree, "", Facts(file)), name, model, grid_mask=False)


def _with_model(top: Node, name: str, model: ModelConfig, grid_mask: bool) -> Config:
    top.note(point_cloud_range="pc_range", nbr_class="num_classes")
    top.note(scale_h="scale_h", scale_w="scale_w", scale_z="scale_z")
    top.expect("unique_label", tuple(range(1, 17)))
    _check_grid_size(top, model)
    weights = top.take("load_from", None)
    return Config(
        name=name,
        model=model,
        data=_data(top, model, grid_mask),
        loss=LossConfig(lovasz_input=top.take("lovasz_input"), ce_input=top.take("ce_input")),
        optim=_optim(top),
        train=TrainConfig(
            epochs=int(top.number("max_epochs")),
            print_every=int(top.number("print_freq", 50)),
            load_from=_relative(str(weights)) if weights else None,
        ),
    )


def _check_grid_size(top: Node, model: ModelConfig) -> None:
    """Check the size of the grid, which is derived here. The reference writes (h, w, z), variants of it (w, h, z)."""
    w, h, z = model.grid.shape
    top.expect("grid_size", (h, w, z), (w, h, z))


def _data(top: Node, model: ModelConfig, grid_mask: bool) -> DataConfig:
    params = top.child("dataset_params")
    params.expect("fixed_volume_space", True)
    for key, edges in (("min_volume_space", model.grid.pc_range[:3]), ("max_volume_space", model.grid.pc_range[3:])):
        params.expect(key, edges)
    table = params.text("label_mapping")
    label_map = PurePosixPath(table).stem
    if label_map not in _LABEL_MAPS:
        params.refuse("label_mapping", label_map, " or ".join(f"{known}.yaml" for known in _LABEL_MAPS))
    check_label_table(table, label_map)
    train, val = top.child("train_data_loader"), top.child("val_data_loader")
    train.expect("shuffle", True)
    val.expect("shuffle", False)
    for loader in (train, val):
        loader.note(1, batch_size="batch_size", num_workers="workers")
    root = _relative(train.text("data_path"))
    if _relative(val.text("data_path")) != root:
        val.refuse("data_path", val.take("data_path"), f"{root!r}, as train_data_loader says")
    data = DataConfig(
        root=root,
        version=params.text("version"),
        train_infos=_relative(train.text("imageset")),
        val_infos=_relative(val.text("imageset")),
        label_map=label_map,
        ignore_label=params.number("ignore_label"),
        fill_label=params.number("fill_label"),
        image_scale=float(top.number("scale_rate", 1.0)),
        grid_mask=grid_mask,
        batch_size=top.facts.whole("batch_size"),
        workers=top.facts.whole("workers"),
    )
    for node in (params, train, val):
        node.done()
    return data


def _optim(top: Node) -> OptimConfig:
    node = top.child("optimizer")
    kind = node.take("type")
    if kind not in _OPTIMIZERS:
        node.refuse("type", kind, " or ".join(_OPTIMIZERS))
    node.expect("betas", (0.9, 0.999))
    node.expect("eps", 1e-8)
    multiplier = 1.0
    if node.take("paramwise_cfg", None) is not None:
        multiplier = _backbone_multiplier(node.child("paramwise_cfg"))
    optim = OptimConfig(
        lr=float(node.number("lr")),
        weight_decay=float(node.number("weight_decay")),
        backbone_lr_mult=multiplier,
        clip_norm=float(top.number("grad_max_norm")),
    )
    node.done()
    return optim


def _backbone_multiplier(node: Node) -> float:
    keys = node.child("custom_keys")
    backbone = keys.child("img_backbone")
    multiplier = float(backbone.number("lr_mult", 1.0))
    for part in (backbone, keys, node):
        part.done()
    return multiplier


def _relative(path: str) -> str:
    """Normalise a path: no leading ``./``, no trailing slash."""
    return str(PurePosixPath(path))
