"""A checkout's own model with the interface of ours: batches of this package in, predictions for its losses out.

Its ``forward`` takes ``points`` (B,n,3) in voxels or None, ``img_metas``, a dictionary for each sample with
``lidar2img`` (N matrices 4x4, lidar metres to pixels of the images) and ``img_shape`` (N times (h,w,3)), and ``img``
(B,N,3,h,w), BGR minus the mean colour. It returns voxel logits (B,K,X,Y,Z), with points also their logits (B,K,n,1,1).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import torch
from torch import Tensor, nn

from tpvformer.compat.average import chosen
from tpvformer.compat.checkpoints import FORMAT, OWN, nonfinite
from tpvformer.compat.keys import modern_name
from tpvformer.compat.own_model import FLAG, OwnSource
from tpvformer.compat.tensors import read_archive
from tpvformer.compat.wrappers import some
from tpvformer.config import ModelConfig
from tpvformer.engine.losses import flat_index
from tpvformer.errors import CheckpointError, ConfigError
from tpvformer.model import Prediction


class OwnModel(nn.Module):
    """Calls the model of a checkout. Weights, sub-modules and hooks are that model's, under its own names.

    ``config`` says which grid and classes are expected. Raises ConfigError for logits of another shape.
    """

    image_layout = torch.contiguous_format

    def __init__(self, model: nn.Module, source: OwnSource, config: ModelConfig) -> None:
        super().__init__()
        self.source, self.config = source, config
        self._called = (model,)  # in a tuple, so that no prefix stands before its names
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.train(model.training)

    @property
    def called(self) -> nn.Module:
        """Return the checkout's own object."""
        return self._called[0]

    def train(self, mode: bool = True) -> "OwnModel":
        self.training = mode
        self.called.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.called.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.called.load_state_dict(*args, **kwargs)

    def forward(
        self,
        images: Tensor,
        lidar2img: Tensor,
        points: Optional[Tensor] = None,
        lengths: Optional[Tensor] = None,
        voxels: Optional[Tensor] = None,
        camera_slots: Optional[Tensor] = None,
    ) -> Prediction:
        """Predict a batch; the arguments are those of ``TPVFormer.forward``.

        Cameras have the embeddings of their order, whatever ``camera_slots`` says, and ``lengths`` is not used.
        """
        count, shape = images.shape[1], (images.shape[3], images.shape[4], 3)
        metas = [{"lidar2img": list(each), "img_shape": [shape] * count} for each in lidar2img.cpu().numpy()]
        given = points.clone() if points is not None and points.shape[1] else None  # the reference's changes them
        returned = self.called(points=given, img_metas=metas, img=images)
        voxel_logits, *rest = returned if isinstance(returned, (tuple, list)) else (returned,)
        grid, classes = self.config.grid.shape, self.config.num_classes
        self._check("voxel logits", voxel_logits, (len(images), classes, *grid))
        point_logits: Optional[Tensor] = None
        if points is not None and given is None:
            point_logits = voxel_logits.new_zeros(len(images), classes, 0)
        elif points is not None:
            point_logits = rest[0].flatten(2) if rest and isinstance(rest[0], Tensor) else None
            self._check("point logits", point_logits, (len(images), classes, points.shape[1]))
        if voxels is not None:
            rows = flat_index(voxels, grid)[:, None].expand(-1, classes, -1)
            voxel_logits = voxel_logits.flatten(2).gather(2, rows)
        return Prediction(voxel_logits, point_logits)

    def _check(self, what: str, found: Any, expected: Any) -> None:
        shape = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        if shape != expected:
            raise ConfigError(
                f"{FLAG}: {type(self.called).__name__} of {self.source.root} returned {what} {shape}; expected "
                f"{expected}, samples, classes and x, y, z (or points), as {self.source.file} states the grid"
            )


def load_own_weights(model: OwnModel, path: Path, whole: bool, which: Optional[str] = None) -> List[str]:
    """Load the entries of a file that have a name and the shape of the model's, in place; return lines for the log.

    The file is a run's with ``--own-model``, or one that the checkout's own loop wrote. With ``whole`` every weight
    must be there, as for an evaluation; without, as for the start of a training, one is enough. ``which``: see
    ``load_weights``. Raises CheckpointError; the model is then unchanged.
    """
    content = read_archive(path)
    ours = content.get("format") == FORMAT
    if ours and OWN not in content:
        raise CheckpointError(
            f"{path}: holds weights of this package's model, and {FLAG} runs the checkout's own; say --no-own-model, "
            "or name weights of that model"
        )
    if whole and ours and json.loads(content[OWN]) != json.loads(model.source.text()):
        raise CheckpointError(
            f"{path}: was trained with another model section than that of {model.source.file}; name the configuration "
            "it was trained with"
        )
    weights, line = chosen(content, str(path), which, ours)
    state: Mapping[str, Tensor] = model.state_dict()
    tensors = {name if name in state else modern_name(name): value for name, value in _named(weights).items()}
    values = {name: value for name, value in tensors.items() if name in state and value.shape == state[name].shape}
    other = [name for name in tensors if name in state and name not in values]
    lacking = [name for name in state if name not in tensors and not name.endswith(".num_batches_tracked")]
    if not values or (whole and (other or lacking)):
        found = f"{len(lacking)} are missing ({some(lacking)})" if lacking else f"of another shape: {some(other)}"
        raise CheckpointError(
            f"{path}: does not fit the checkout's own model, {type(model.called).__name__}: of its {len(state)} "
            f"tensors {found}; use the model code and the configuration that it was trained with"
        )
    strange = nonfinite(values)
    if strange:
        raise CheckpointError(f"{path}: {len(strange)} tensors hold NaN or infinite numbers: {some(strange)}")
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
    lines = [f"{path} (weights of the checkout's own model): {len(values)} tensors loaded", *filter(None, [line])]
    unknown = [name for name in tensors if name not in state]
    for what, names in (
        ("ignored, the model has none of that name", unknown),
        ("dropped, of another shape", other),
        ("missing, left as they were", lacking),
    ):
        if names:
            lines.append(f"  {len(names)} {what}: {some(names)}")
    return lines


def _named(content: Mapping[str, Any]) -> Dict[str, Tensor]:
    """Return a file's tensors, flat or under ``state_dict``, without DDP's prefix."""
    inner = content.get("state_dict")
    entries = inner if isinstance(inner, Mapping) else content
    tensors = {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
    prefix = "module."
    if tensors and all(name.startswith(prefix) for name in tensors):
        return {name[len(prefix) :]: value for name, value in tensors.items()}
    return tensors
