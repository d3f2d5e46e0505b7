"""What was seen a moment ago and is hidden now is found, where the vehicle was as it says; by weights set by hand.

A thing stands in front of the only camera, which looks forward. Then the vehicle has passed it. The weights copy what
a query samples, from the images and from the past, and a voxel is "a thing" where all three of its planes have one.
"""

from __future__ import annotations

import dataclasses
from typing import List, Optional, Tuple

import pytest
import torch
from model_cases import CROSS
from torch import Tensor

from tpvformer.config import GridConfig, HistoryConfig
from tpvformer.model import TPVFormer
from tpvformer.model.history import PlaneHistory, remember
from tpvformer.model.history_attention import HistoryAttention
from tpvformer.model.projection import project

THING, SIZE, STRIDES = 4, (128, 192), (4, 8, 16, 32)
GRID = GridConfig(w=32, h=32, z=4, pc_range=(-16.0, -16.0, -2.0, 16.0, 16.0, 2.0))  # voxels of 1 m
CFG = dataclasses.replace(
    CROSS,
    grid=GRID,
    layers=("self_cross",),
    num_cams=1,
    history=HistoryConfig(frames=1),
    pillar_anchors=(4, 32, 32),
    image_points=(4, 32, 32),
    plane_points=32,
    plane_anchors=32,
    plane_init_anchors=32,
)
# voxels of a thing in the frame of the past, and how the vehicle moved since: degrees to the left, metres x and y
CASES: List[Tuple[Tuple[int, int, int], Tuple[float, float, float]]] = [
    ((16, 21, 1), (0.0, 0.0, 8.0)),
    ((15, 22, 2), (25.0, 0.0, 9.0)),
    ((18, 23, 1), (-30.0, -1.0, 12.0)),
    ((14, 24, 2), (60.0, 0.5, 10.0)),
    ((16, 25, 1), (-60.0, 0.0, 14.0)),
    ((19, 26, 2), (10.0, 2.0, 13.0)),
]


def by_hand() -> TPVFormer:
    model = TPVFormer(CFG).eval()
    assert model.history is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        (layer,), (attention,) = model.encoder.layers, model.history.layers
        assert isinstance(attention, HistoryAttention)
        for norm in layer.norms:
            norm.weight.fill_(1.0)
        for linear in (layer.image_attn.value, layer.image_attn.output, *attention.value, *attention.output):
            linear.weight.copy_(torch.eye(CFG.dim))
        for plane in range(3):  # each plane reads itself, at the place of the anchor
            of_planes = attention.logits[plane].bias.view(CFG.plane_heads, 3, CFG.plane_points + 1)
            of_planes[:, plane, -1] = 50.0
        first, _, last = model.aggregator.decoder
        first.weight[0, 0] = last.weight[0, 0] = model.aggregator.classifier.weight[THING, 0] = 1.0
        model.aggregator.classifier.bias[0] = 2.5 * (CFG.dim - 1) ** 0.5  # between two planes and three
    return model


def camera() -> Tensor:
    """One camera (1, 4, 4) at the origin that looks along y, 90 degrees wide."""
    height, width = SIZE
    focal = width / 2
    return torch.tensor([[[focal, width / 2, 0, 0], [0, height / 2, -focal, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]])


def centre(voxel: Tuple[int, int, int]) -> Tensor:
    return torch.tensor(GRID.pc_range[:3]) + torch.tensor(voxel) + 0.5


def now2past(degrees: float, x: float, y: float) -> Tensor:
    turn, made = torch.tensor(degrees).deg2rad(), torch.eye(4)
    made[:2, :2] = torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]])
    made[:2, 3] = torch.tensor([x, y])
    return made


def maps(things: List[Tensor]) -> List[Tensor]:
    """The image features of a batch: in the finest map, channel 0 is 1 where the sample's thing is, if it is seen."""
    found = [torch.zeros(len(things), 1, CFG.dim, SIZE[0] // s, -(-SIZE[1] // s)) for s in STRIDES]
    for i, thing in enumerate(things):
        if seen(thing):
            u, v, depth = (camera()[0] @ torch.cat([thing, torch.ones(1)]))[:3]
            found[0][i, 0, 0, int(v / depth) // STRIDES[0], int(u / depth) // STRIDES[0]] = 1.0
    return found


def seen(point: Tensor) -> bool:
    low, high = torch.tensor(GRID.pc_range[:3]), torch.tensor(GRID.pc_range[3:])
    places = ((point - low) / (high - low)).view(1, 1, 3)
    return bool(project(places, torch.tensor(GRID.pc_range), camera()[None], SIZE).visible)


def encode(model: TPVFormer, things: List[Tensor], history: Optional[PlaneHistory] = None) -> Tensor:
    images = torch.zeros(len(things), 1, 3, *SIZE)
    with torch.no_grad():
        return model.planes_from(maps(things), images, camera().repeat(len(things), 1, 1, 1), history=history)


def classes_at(model: TPVFormer, planes: Tensor, points: List[Tensor]) -> List[int]:
    """The predicted class of the voxel that each sample's point lies in."""
    voxels = model.aggregator.dense(model.aggregator.plane_maps(planes)).argmax(1)
    low = torch.tensor(GRID.pc_range[:3])
    return [int(found[tuple((point - low).floor().long())]) for found, point in zip(voxels, points)]


def test_a_thing_that_is_hidden_now_is_found_where_it_was_seen() -> None:
    model, moves = by_hand(), [now2past(*move) for _, move in CASES]
    before = [centre(voxel) for voxel, _ in CASES]
    now = [(torch.linalg.inv(move) @ torch.cat([place, torch.ones(1)]))[:3] for place, move in zip(before, moves)]
    assert all(map(seen, before)) and not any(map(seen, now)), "seen first, hidden then"
    past = encode(model, before)
    assert classes_at(model, past, before) == [THING] * len(CASES), "while it is seen, any model finds it"

    def found(motions: Optional[Tensor]) -> int:
        seconds = torch.full((len(CASES),), 0.5)
        history = None if motions is None else remember(past, None, 1).moved(motions, seconds)
        return classes_at(model, encode(model, now, history), now).count(THING)

    right = torch.stack(moves)
    assert found(None) == 0, "without a past there is nothing to find it by"
    assert found(right) == len(CASES)
    assert found(right.roll(1, 0)) <= 1, "with the motions of others it is looked for elsewhere"
    assert found(torch.eye(4).repeat(len(CASES), 1, 1)) <= 1, "and so it is with a vehicle that seems to stand"


@pytest.mark.parametrize("frame", ["before", "now"])
def test_few_voxels_are_taken_for_the_thing(frame: str) -> None:
    """The weights do not find it by saying so everywhere."""
    model, (voxel, move) = by_hand(), CASES[1]
    planes = encode(model, [centre(voxel)])
    if frame == "now":
        history = remember(planes, None, 1).moved(now2past(*move)[None], torch.tensor([0.5]))
        planes = encode(model, [torch.tensor([0.0, -5.0, 0.0])], history)
    voxels = model.aggregator.dense(model.aggregator.plane_maps(planes)).argmax(1)
    assert 0 < int((voxels == THING).sum()) < 0.03 * voxels.numel()
