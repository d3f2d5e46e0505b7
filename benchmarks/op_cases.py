"""The operations at the sizes of config/tpv_lidarseg_dim64.py, with inputs like those of a trained model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, List, Tuple, Union

import torch
from measure import Variant
from rebatch import RebatchedImageAttention
from torch import Tensor
from torch.func import functional_call

from tpvformer import ops
from tpvformer.compat import load_config
from tpvformer.config import ModelConfig
from tpvformer.data.images.preprocess import padded_shape
from tpvformer.engine.bench.inputs import SIZE, nuscenes_rig
from tpvformer.model.encoder import TPVEncoder
from tpvformer.model.image_attention import ImageCrossAttention
from tpvformer.model.projection import Projection
from tpvformer.ops import reference

DIM64 = Path(__file__).parents[1] / "config" / "tpv_lidarseg_dim64.py"
Function = Callable[..., Tensor]


@dataclasses.dataclass
class Case:
    """An operation: ``ours`` and the plain ``baseline`` take ``leaves`` (float32) and ``given`` by keyword.

    In bf16 the leaves named in ``half`` are stored as bf16; a layer runs under autocast instead.
    """

    name: str
    size: str
    leaves: Dict[str, Tensor]
    given: Dict[str, Any]
    ours: Function
    baseline: Function
    half: Tuple[str, ...] = ()
    autocast: bool = False

    def variant(self, function: Function, dtype: torch.dtype, rounded: bool = False) -> Variant:
        """Make a variant in a type: float64 for all tensors, bf16 for ``half``. ``rounded``: leaves rounded to bf16."""
        leaves = {}
        for name, tensor in self.leaves.items():
            kept = dtype if dtype == torch.float64 or name in self.half else torch.float32
            value = tensor.bfloat16() if rounded and name in self.half else tensor
            leaves[name] = value.to(kept).detach().clone(memory_format=torch.preserve_format).requires_grad_()
        given = {name: _cast(value, dtype) for name, value in self.given.items()}
        device = next(iter(leaves.values())).device.type

        def run() -> Tensor:
            half: ContextManager[Any] = contextlib.nullcontext()
            if self.autocast and dtype == torch.bfloat16:
                half = torch.autocast(device, dtype=dtype)
            with half:
                return function(**leaves, **given)

        return Variant(run, leaves, _tensors(given))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Convert floating-point tensors in nested tuples to float64 if ``dtype`` is float64; leave others unchanged."""
    if isinstance(value, Tensor):
        return value.double() if dtype == torch.float64 and value.is_floating_point() else value
    if isinstance(value, Projection):
        return Projection(*(_cast(v, dtype) for v in value))
    return type(value)(_cast(v, dtype) for v in value) if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> List[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def small(cfg: ModelConfig) -> ModelConfig:
    """Return the same model on a small grid, for quick runs."""
    return dataclasses.replace(cfg, grid=dataclasses.replace(cfg.grid, w=20, h=16, z=4))


class Cases:
    """Make the cases. ``quick``: small ones; ``images``: the batch of the deformable convolutions."""

    NAMES = ("plane attention", "cross-view attention", "image attention layer", "deform conv stage 3",
             "deform conv stage 4")  # fmt: skip

    def __init__(self, device: torch.device, quick: bool = False, images: int = 1) -> None:
        self._device, self._quick, self._images = device, quick, images
        full = load_config(DIM64).model
        self._cfg = small(full) if quick else full
        self._size = (200, 112) if quick else SIZE
        self._generator = torch.Generator().manual_seed(0)

    def make(self, name: str) -> Case:
        """Make a case of NAMES. Raises ValueError for another name."""
        makers = (self._plane, self._cross_view, self._image_layer, self._stage3, self._stage4)
        if name not in self.NAMES:
            raise ValueError(f"{name!r} is no operation here; known: {', '.join(self.NAMES)}")
        return makers[self.NAMES.index(name)]()

    def _normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self._generator) * scale).to(self._device)

    def _planes(self) -> Tuple[Dict[str, Tensor], Tensor, Tuple[Tuple[int, int], ...]]:
        cfg = self._cfg
        q, heads, points = cfg.grid.num_queries, cfg.plane_heads, cfg.plane_points
        leaves = {
            "value": self._normal(1, q, heads, cfg.dim // heads),
            "offsets": self._normal(1, q, heads, 3, points, 2, scale=2.0),
            "weights": self._normal(1, q, heads, 3 * points).softmax(-1).view(1, q, heads, 3, points),
        }
        anchors = TPVEncoder(cfg).plane_anchors.to(self._device)  # (Q,3,A,2)
        return leaves, anchors, cfg.grid.plane_shapes

    def _sampled(self) -> str:
        cfg = self._cfg
        channels = cfg.dim // cfg.plane_heads
        samples = f"{cfg.plane_points} points x {cfg.plane_heads} heads x {channels} channels"
        return f"{cfg.grid.num_queries} queries x 3 planes x {samples}"

    def _plane(self) -> Case:
        leaves, anchors, shapes = self._planes()
        sizes = torch.tensor([[w, h] for h, w in shapes], device=self._device)
        centre = anchors.repeat_interleave(self._cfg.plane_points // anchors.shape[2], dim=2)
        # the leaf is the location itself; the name "offset..." marks it as a sampling position for ``errors``
        locations = centre[:, None] + leaves.pop("offsets") / sizes[:, None]
        leaves = {"value": leaves["value"], "offset_as_location": locations, "weights": leaves["weights"]}

        def call(function: Function) -> Function:
            return lambda value, offset_as_location, weights: function(value, shapes, offset_as_location, weights)

        ours, baseline = call(ops.ms_deform_attn), call(reference.ms_deform_attn)
        return Case(self.NAMES[0], self._sampled(), leaves, {}, ours, baseline, half=("value",))

    def _cross_view(self) -> Case:
        leaves, anchors, shapes = self._planes()
        given = {"anchors": anchors, "level_shapes": shapes}
        ours, baseline = ops.cross_view_attention, reference.cross_view_attention
        return Case(self.NAMES[1], self._sampled(), leaves, given, ours, baseline, half=("value",))

    def _image_layer(self) -> Case:
        cfg, device = self._cfg, self._device
        height, width = padded_shape(self._size[1], self._size[0])
        encoder = TPVEncoder(cfg).to(device)
        rig = torch.from_numpy(nuscenes_rig(self._size, cfg.num_cams)).float().to(device)[None]
        layers: Dict[str, ImageCrossAttention] = {}
        for name, kind in (("ours", ImageCrossAttention), ("baseline", RebatchedImageAttention)):
            layers[name] = kind(cfg).to(device).eval()  # dropout would make them differ
        leaves = {name: p.detach() for name, p in layers["ours"].named_parameters()}
        for name, tensor in leaves.items():  # the output of an untrained layer is the same for every query
            if name.endswith("weight") and name.startswith(("offsets", "logits")):
                tensor.copy_(self._normal(*tensor.shape, scale=0.05 if name.startswith("offsets") else 0.1))
        shapes = [(height // 8, width // 8)]
        while len(shapes) < cfg.num_levels:
            shapes.append((math.ceil(shapes[-1][0] / 2), math.ceil(shapes[-1][1] / 2)))
        tokens = sum(h * w for h, w in shapes)
        inputs = {"x": self._normal(1, cfg.grid.num_queries, cfg.dim)}
        inputs["tokens"] = self._normal(1, cfg.num_cams, tokens, cfg.dim)
        given = {"level_shapes": tuple(shapes), "projections": encoder.project(rig, (height, width))}

        def call(layer: ImageCrossAttention) -> Function:
            def run(x: Tensor, tokens: Tensor, level_shapes: Any, projections: Any, **parameters: Tensor) -> Tensor:
                return functional_call(layer, parameters, (x, tokens, level_shapes, projections))

            return run

        size = f"{cfg.num_cams} cameras {height}x{width}, {cfg.grid.num_queries} queries, {cfg.num_levels} levels"
        ours, baseline = call(layers["ours"]), call(layers["baseline"])
        return Case(self.NAMES[2], size, {**inputs, **leaves}, given, ours, baseline, autocast=True)

    def _stage3(self) -> Case:
        return self._deform_conv(self.NAMES[3], 32 if self._quick else 256, (6, 10) if self._quick else (58, 100))

    def _stage4(self) -> Case:
        return self._deform_conv(self.NAMES[4], 48 if self._quick else 512, (3, 5) if self._quick else (29, 50))

    def _deform_conv(self, name: str, channels: int, size: Tuple[int, int]) -> Case:
        n = self._images
        leaves = {
            "x": self._normal(n, channels, *size).relu().contiguous(memory_format=torch.channels_last),
            "offset": self._normal(n, 18, *size),
            "mask": self._normal(n, 9, *size).sigmoid(),
            "weight": self._normal(channels, channels, 3, 3, scale=(9 * channels) ** -0.5),
        }
        common: Dict[str, Union[int, None]] = {"bias": None, "stride": 1, "padding": 1, "dilation": 1}
        common.update(groups=1, deform_groups=1)
        about = f"{n} x {channels} channels x {size[0]}x{size[1]}"
        ours, baseline = ops.modulated_deform_conv2d, reference.modulated_deform_conv2d
        return Case(name, about, leaves, common, ours, baseline, half=("x", "weight"))
