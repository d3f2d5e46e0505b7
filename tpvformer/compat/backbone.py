"""The image backbone from the weights of a detector, a classifier or a bare ResNet, and its style.

ResNets in PyTorch's and in caffe's style have the same names and shapes. PyTorch's expects RGB images with ImageNet's
standard deviations and has its strides in the 3x3 convolutions; caffe's expects BGR images with deviation 1 and has its
strides in the first 1x1 convolutions. Caffe's converters store the first norm with mean 0 and variance 1, because its
statistics are folded into weight and bias (mmdetection's tools/model_converters/detectron2pytorch.py; detectron2's
FrozenBatchNorm2d). Training with batch norm, as torchvision does, leaves other statistics. OpenMMLab's checkpoints also
contain the text of their configuration, which names the style.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import torch
from torch import Tensor

from tpvformer.compat.keys import modern_name
from tpvformer.compat.wrappers import is_resnet, some
from tpvformer.errors import CheckpointError

_BACKBONE_PREFIXES = ("img_backbone.", "backbone.")
# where a camera model, or torchvision's and DETR's, has the ResNet within what it calls its backbone
_WITHIN = ("backbone.img_backbone.", "backbone.body.", "backbone.0.body.")
_NECK_PREFIXES = ("img_neck.", "neck.")
_STYLE = re.compile(r"""\bstyle['"]?\s*[=:]\s*['"](pytorch|caffe)['"]""")
_FOLDED = 1e-3  # tolerance on mean 0 and variance 1 of a folded norm (some files store a variance of 1 - 1e-5)
FITS = "the reference's r101_dcn_fcos3d_pretrain.pth or OpenMMLab's resnet50_msra-5891d200.pth"


class Backbone(NamedTuple):
    """The backbone's tensors by our names, and the lists of entries that ``Report`` has."""

    values: Dict[str, Tensor]
    mapped: List[str]
    ignored: List[str]
    dropped: List[str]
    zeroed: List[str]  # ours
    warnings: List[str]


def backbone_of(
    tensors: Mapping[str, Tensor], ours: Mapping[str, str], shapes: Mapping[str, Tensor], notes: Any, source: str
) -> Backbone:
    """Return the image backbone of a detector or a bare ResNet, and its neck where all of our neck's shapes match.

    ``ours``: the reference's names to ours. ``shapes``: our state dict. ``notes``: all that the file has.
    Raises CheckpointError where the file's backbone has entries that this one lacks, and where there is no backbone.
    """
    bare = is_resnet(tensors) and not any(name.startswith(_BACKBONE_PREFIXES) for name in tensors)
    within = next((prefix for prefix in _WITHIN if any(name.startswith(prefix) for name in tensors)), None)
    known = {name: modern_name(_renamed(name, bare, within)) for name in tensors}
    backbone = {name: theirs for name, theirs in known.items() if theirs.startswith("img_backbone.")}
    neck = {name: theirs for name, theirs in known.items() if theirs.startswith("img_neck.")}
    unknown = [name for name, theirs in backbone.items() if theirs not in ours] if backbone else list(tensors)
    if unknown:
        raise CheckpointError(
            f"{source}: {len(unknown)} entries have no place in this model: {some(unknown)}; expected our own, the "
            "reference's, a detector's img_backbone/img_neck names, or a ResNet's of this configuration's depth"
        )
    if len(set(backbone.values())) < len(backbone):
        raise CheckpointError(f"{source}: has a backbone under two prefixes: {some(list(backbone))}; keep one of them")
    values = {ours[theirs]: tensors[name] for name, theirs in backbone.items()}
    mapped = list(backbone)
    offsets = [mine for theirs, mine in ours.items() if theirs.startswith("img_backbone.") and ".conv_offset." in mine]
    zeroed = offsets if not set(offsets) & set(values) else []
    values.update({name: torch.zeros_like(shapes[name], device="cpu") for name in zeroed})
    given = {theirs: tensors[name] for name, theirs in neck.items()}
    wanted = [theirs for theirs in ours if theirs.startswith("img_neck.")]
    if all(theirs in given and given[theirs].shape == shapes[ours[theirs]].shape for theirs in wanted):
        values.update({ours[theirs]: given[theirs] for theirs in wanted})
        mapped += [name for name, theirs in neck.items() if theirs in wanted]
    rest = [name for name in tensors if name not in backbone and name not in neck]
    dropped = [name for name in neck if name not in set(mapped)]
    warning = _style_warning({theirs: tensors[name] for name, theirs in backbone.items()}, notes)
    return Backbone(values, mapped, rest, dropped, zeroed, [] if warning is None else [warning])


def _renamed(name: str, bare: bool, within: Optional[str]) -> str:
    """``backbone.``/``neck.`` (a detector's own names) -> ``img_backbone.``/``img_neck.`` (inside a camera model)."""
    if within is not None and name.startswith("backbone."):  # other entries of the container are no image backbone
        return _BACKBONE_PREFIXES[0] + name[len(within) :] if name.startswith(within) else name
    if bare and re.match(r"(conv1|bn1|layer\d)\.", name):
        return _BACKBONE_PREFIXES[0] + name
    for prefixes in (_BACKBONE_PREFIXES, _NECK_PREFIXES):
        for prefix in prefixes:
            if name.startswith(prefix):
                return prefixes[0] + name[len(prefix) :]
    return name


def _style_warning(backbone: Mapping[str, Tensor], notes: Any) -> Optional[str]:
    """Return a warning where the weights appear to be in PyTorch's style; None otherwise."""
    style = _noted_style(notes)
    mean, variance = (backbone.get(f"img_backbone.bn1.running_{kind}") for kind in ("mean", "var"))
    if style == "caffe" or (style is None and (mean is None or variance is None or _is_folded(mean, variance))):
        return None
    if style is not None:
        seen = "the configuration within names style='pytorch'"
    else:
        assert mean is not None and variance is not None
        seen = (
            f"its first norm has statistics of its own (mean {float(mean.min()):.3g} to {float(mean.max()):.3g}, "
            f"variance {float(variance.min()):.3g} to {float(variance.max()):.3g}), which caffe's converters leave at "
            "0 and 1"
        )
    return (
        f"this looks like a ResNet in PyTorch's style (torchvision, timm, BEVFormer-tiny, RetinaNet): {seen}; such "
        "weights expect RGB images with ImageNet's deviations and strides in 3x3 convolutions, this backbone reads BGR "
        f"images with deviation 1 and strides in 1x1, so training starts badly; weights in caffe's style fit: {FITS}"
    )


def _is_folded(mean: Tensor, variance: Tensor) -> bool:
    far = max(float(mean.float().abs().max()), float((variance.float() - 1).abs().max())) if mean.numel() else 0.0
    return far <= _FOLDED


def _noted_style(notes: Any) -> Optional[str]:
    """Return "pytorch" or "caffe" from the configuration that OpenMMLab stores beside its weights; None without it."""
    meta = notes.get("meta") if isinstance(notes, dict) else None
    texts = [meta.get(key) for key in ("config", "cfg")] if isinstance(meta, dict) else []
    found = {style for text in texts if isinstance(text, str) for style in _STYLE.findall(text)}
    return found.pop() if len(found) == 1 else None
