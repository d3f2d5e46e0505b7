"""A mirrored scene gives mirrored logits: the conventions of data and model about x, y, planes and motion agree.

The network is the real one. Its weights are made symmetric: what it stores for a place is stored for the mirrored
places too, and it samples the planes at offsets that come in all four signs. Images are read at offsets of any kind,
which a mirrored scene does not change.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, Tuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tpvformer.config import (
    AugmentConfig,
    BackboneConfig,
    Config,
    DataConfig,
    GridConfig,
    HistoryConfig,
    LossConfig,
    ModelConfig,
)
from tpvformer.data.augment import scene_matrix
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.loader import collate
from tpvformer.data.street.write import write_dataset
from tpvformer.data.types import Batch
from tpvformer.engine.forward import predict
from tpvformer.engine.losses import total_loss
from tpvformer.model import TPVFormer
from tpvformer.model.image_attention import ImageCrossAttention
from tpvformer.model.plane_attention import CrossViewAttention, HWAttention

GRID = GridConfig(w=10, h=8, z=4, pc_range=(-32.0, -24.0, -5.0, 32.0, 24.0, 3.0))
CROSS = ModelConfig(
    grid=GRID, backbone=BackboneConfig(blocks=(1, 1, 1, 1), base_width=8, dcn_stages=(4,), bn3_init=0.2), dim=16,
    ffn_dim=16, decoder_dim=16, image_heads=2, plane_heads=4, position_dims=(6, 6, 4), layers=("self_cross",) * 2,
    pillar_anchors=(2, 3, 3), image_points=(4, 6, 6), plane_points=8, plane_anchors=2, plane_init_anchors=2,
    dropout=0.0, history=HistoryConfig(),
)  # fmt: skip
HW = dataclasses.replace(CROSS, view_attn="hw", position_dims=(8, 8), plane_points=4)
Flips = Tuple[bool, bool]
SIGNS = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street") / "set"
    write_dataset(folder, 2, (96, 54), 5, 2, workers=1)
    return folder


def config_of(street: Path, model: ModelConfig) -> Config:
    files = {f"{split}_infos": str(street / f"nuscenes_infos_{split}.pkl") for split in ("train", "val")}
    data = DataConfig(
        root=str(street), version="v1.0-mini", even_cells=True, photometric=False, grid_mask=False, **files
    )
    return Config("flips", model=model, data=data, loss=LossConfig())


def both_ways(table: Tensor, *axes: int) -> Tensor:
    """The mean of a table and of its mirror images along each of the axes."""
    for axis in axes:
        table = (table + table.flip(axis)) / 2
    return table


def symmetric(cfg: ModelConfig) -> TPVFormer:
    """A random model that knows no left, right, front or rear."""
    torch.manual_seed(0)
    model = TPVFormer(cfg).eval()
    grid, encoder = cfg.grid, model.encoder
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        for name, table in encoder.position.named_parameters():
            if name != "z":
                table.copy_(both_ways(table, 0))
        across = ((0, 1), (1,), (0,))  # rows and columns are y, x; z, y; x, z
        for table, shape, axes in zip(encoder.plane_queries.values(), grid.plane_shapes, across):
            table.copy_(both_ways(table.view(*shape, -1), *axes).flatten(0, 1))
        for module in model.modules():
            if isinstance(module, (CrossViewAttention, HWAttention)):
                alike_in_all_signs(module, cfg)
            elif isinstance(module, ImageCrossAttention):
                alike_at_all_anchors(module, cfg)
    return model


def alike_in_all_signs(attention: Any, cfg: ModelConfig) -> None:
    """Four points an anchor, at (a, b) with all signs and one weight; what depends on the query is that weight."""
    several = isinstance(attention, CrossViewAttention)
    for offsets, logits in zip(*((part if several else [part]) for part in (attention.offsets, attention.logits))):
        first = offsets.bias.view(-1, 4, 2)[:, :1].abs() + 0.3
        groups = cfg.plane_points // 4
        if several:  # the anchors of a query lie along an axis that may be mirrored
            first = first.view(-1, groups, 1, 2)[:, :1].expand(-1, groups, 1, 2).reshape(-1, 1, 2)
        offsets.bias.copy_((first * SIGNS).flatten())
        offsets.weight.zero_()
        for values in (logits.weight, logits.bias):
            if several:
                own = values.view(-1, cfg.plane_points + 1, *values.shape[1:])
                own[:, :-1] = own[:, :1].clone()
            else:
                own = values.view(-1, cfg.plane_points, *values.shape[1:])
                own[:] = own[:, :1].clone()


def alike_at_all_anchors(attention: ImageCrossAttention, cfg: ModelConfig) -> None:
    """The anchors of planes zh and wz lie along x and y: what is read at one is read at all."""
    for plane in (1, 2):
        anchors = cfg.pillar_anchors[plane]
        points = cfg.image_points[plane] // anchors
        for linear, numbers in ((attention.offsets[plane], 2), (attention.logits[plane], 1)):
            assert isinstance(linear, nn.Linear)
            for values in (linear.weight, linear.bias):
                own = values.view(-1, anchors, points * numbers, *values.shape[1:])
                own[:] = own[:, :1].clone()


def batch_of(config: Config, flips: Flips) -> Batch:
    """The second frame of a drive with its past, mirrored by the augmentation of the first epoch that draws ``flips``,
    or as it is."""
    x, y = flips
    section = AugmentConfig(flip_x=x, flip_y=y) if x or y else None
    data = FrameDataset(dataclasses.replace(config.data, augment=section), config.model.grid, "val", 0, past=1)
    for epoch in range(64):
        data.set_epoch(epoch)
        sample = data.sample(1, augment=True)
        if section is None or np.array_equal(sample.augmented, scene_matrix(data.grid, 0.0, 1.0, x, y)):
            assert sample.past[0].valid
            return collate([sample], config.data.ignore_label)
    raise AssertionError("no epoch draws these flips")


def logits_of(model: TPVFormer, batch: Batch, config: Config) -> Tensor:
    with torch.no_grad():
        return predict(model, batch, config, dense=True).voxel_logits


def mirrored(logits: Tensor, flips: Flips) -> Tensor:
    """Logits (B,K,X,Y,Z) of the mirrored voxels."""
    return logits.flip([axis for axis, flip in zip((2, 3), flips) if flip])


class Case(NamedTuple):
    """A symmetric network and a scene as it is, with its logits."""

    config: Config
    network: TPVFormer
    plain: Batch
    logits: Tensor


@pytest.fixture(scope="module", params=[CROSS, HW], ids=["cross_view", "hw"])
def case(request: pytest.FixtureRequest, street: Path) -> Case:
    config, network = config_of(street, request.param), symmetric(request.param)
    plain = batch_of(config, (False, False))
    return Case(config, network, plain, logits_of(network, plain, config))


def loss_of(case: Case, batch: Batch) -> float:
    with torch.no_grad():
        prediction = predict(case.network, batch, case.config)
        return total_loss(prediction, batch, case.config.loss, case.config.data).item()


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)], ids=["x", "y", "both"])
def test_logits_of_a_mirrored_scene_are_the_mirrored_logits(case: Case, flips: Flips) -> None:
    other = batch_of(case.config, flips)
    assert torch.equal(case.plain.images, other.images) and not torch.equal(case.plain.grid2img, other.grid2img)
    after = logits_of(case.network, other, case.config)
    assert (after - mirrored(case.logits, flips)).abs().max() < 1e-3
    assert (after - case.logits).abs().max() > 0.1, "the scene is not symmetric itself"
    assert loss_of(case, other) == pytest.approx(loss_of(case, case.plain), rel=1e-4)


def test_what_is_wrong_is_noticed(case: Case) -> None:
    """A projection, a motion or labels that are not mirrored, and a network that is not symmetric."""
    config, network, plain, flips = case.config, case.network, case.plain, (True, False)
    other, expected = batch_of(config, flips), mirrored(case.logits, flips)
    still = dataclasses.replace(other.past[0], motion=plain.past[0].motion)
    for wrong in (dataclasses.replace(other, grid2img=plain.grid2img), dataclasses.replace(other, past=[still])):
        assert (logits_of(network, wrong, config) - expected).abs().max() > 0.01
    mixed = dataclasses.replace(other, point_labels=plain.point_labels.flip(1), voxel_labels=plain.voxel_labels)
    assert abs(loss_of(case, mixed) - loss_of(case, other)) > 1e-2
    torch.manual_seed(0)
    fresh = TPVFormer(config.model).eval()
    off = logits_of(fresh, other, config) - mirrored(logits_of(fresh, plain, config), flips)
    assert off.abs().max() > 0.01
