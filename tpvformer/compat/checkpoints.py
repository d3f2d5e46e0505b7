"""Loading weights of our own files, the reference's, mmdetection3d's port of it and detectors'; saving the reference's.

Every entry of a file is mapped, or ignored for a stated reason, or an error. Nothing is matched by guessing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Protocol, Sequence, Tuple

import torch
from torch import Tensor

from tpvformer.compat.average import chosen
from tpvformer.compat.backbone import backbone_of
from tpvformer.compat.keys import (
    derived_names,
    is_derived,
    is_gaussrender,
    is_port,
    is_renderer,
    is_whole,
    key_table,
    reference_names,
    reference_order,
)
from tpvformer.compat.tensors import PathLike, read_archive, write_tensors
from tpvformer.compat.wrappers import find_tensors, some
from tpvformer.config import ModelConfig
from tpvformer.errors import CheckpointError

FORMAT = "tpvformer"  # the value of "format" in our training checkpoints
OWN = "own_model"  # key of the model section in those of a checkout's own model (--own-model)
_GEOMETRY_TOLERANCE = 1e-4  # in normalised image or grid coordinates; real differences are whole cells
_CLASSIFIERS = ("aggregator.classifier", "image_head.classifier")  # the layers whose size is the number of classes


class Model(Protocol):
    """The attributes of a TPVFormer that this module uses."""

    config: ModelConfig
    encoder: Any  # offers reference_buffers() -> Dict[str, Tensor]

    def state_dict(self) -> Dict[str, Tensor]: ...

    def named_parameters(self) -> Iterator[Tuple[str, Tensor]]: ...


@dataclass
class Report:
    """How every entry of a file was treated. Names are the file's without wrappers' prefixes; those of ``missing``,
    ``zeroed`` and ``renewed`` are ours."""

    source: str
    kind: str  # "tpvformer", "reference", "mmdetection3d", "GaussRender" or "backbone"
    mapped: List[str] = field(default_factory=list)  # those of ``renewed`` included
    ignored: List[str] = field(default_factory=list)  # known, and not weights of this model: geometry, detector head
    dropped: List[str] = field(default_factory=list)  # a neck of another width or length
    missing: List[str] = field(default_factory=list)  # keep the values they had
    zeroed: List[str] = field(default_factory=list)  # offsets of deformable convolutions that the file lacks
    renewed: List[str] = field(default_factory=list)  # of another number of classes; keep the values they had
    warnings: List[str] = field(default_factory=list)
    which: str = ""  # of a run's file with an average: the weights that were loaded, in words

    def lines(self) -> List[str]:
        """Return the report's lines, without the warnings."""
        lines = [f"{self.source} ({self.kind} weights): {len(self.mapped) - len(self.renewed)} tensors loaded"]
        lines += [f"  {self.which}"] if self.which else []
        for what, names in (
            ("ignored, no weights of this model", self.ignored),
            ("dropped, the neck has another shape", self.dropped),
            ("missing, left as they were", self.missing),
            ("offsets of deformable convolutions start at 0, for the file has none", self.zeroed),
            ("start afresh, the file has another number of classes", self.renewed),
        ):
            if names:
                lines.append(f"  {len(names)} {what}: {some(names)}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines() + [f"  warning: {text}" for text in self.warnings])


def load_weights(model: Model, path: PathLike, fresh: Sequence[str] = (), which: Optional[str] = None) -> Report:
    """Load the weights of a file into ``model``, in place, and report how each entry was treated.

    Accepted: our checkpoints and safetensors; the reference's state dict; mmdetection3d's port of it; the weights of a
    detector, a classifier or a bare ResNet with this backbone. Each may be flat or under a key such as ``state_dict``,
    with or without wrappers' prefixes (``module.``). Raises CheckpointError with the entries that are unknown, missing,
    of another shape or not finite; the model is then unchanged.

    ``fresh`` is for the start of a training: it names heads, such as "detection". One that the file lacks keeps its
    weights, one that the model lacks is left out, and a layer of classes keeps its weights if the file has another
    number of classes. ``which`` is "ema" or "raw" for a run's checkpoint that has an average of the
    weights too; None: the average where there is one.
    """
    return load_content(model, read_archive(path), str(path), fresh=fresh, which=which)


def load_content(
    model: Model,
    content: Dict[str, Any],
    source: str,
    allow_nonfinite: bool = False,
    fresh: Sequence[str] = (),
    which: Optional[str] = None,
) -> Report:
    """Load weights as ``load_weights`` does, from what ``read_archive`` returned; ``source`` is its name in messages.

    Weights that are not finite are an error too, or with ``allow_nonfinite`` a warning in the report.
    """
    if OWN in content:
        raise CheckpointError(
            f"{source}: holds weights of a checkout's own model, which its own code alone can run; add --own-model to "
            "train or eval, at the root of that checkout, or name weights of this package's model"
        )
    weights, line = chosen(content, source, which, content.get("format") == FORMAT)
    tensors, beside = find_tensors(weights, source)
    state = model.state_dict()
    if is_whole(tensors):
        values, report = _from_reference(tensors, model, source)
    elif any(name.startswith("aggregator.") for name in tensors):
        values, report = _from_ours(tensors, state, source, fresh)
    else:
        values, report = _from_detector(tensors, model, content, source)
    report.ignored += beside
    report.which = line
    if fresh:
        report.renewed = _other_classes(values, state)
        values = {name: value for name, value in values.items() if name not in report.renewed}
    report.missing = [name for name in state if name not in values and name not in report.renewed]
    _refuse_missing(source, report, [part for part in fresh if not any(n.startswith(f"{part}.") for n in values)])
    _refuse_shapes(source, values, state)
    _refuse_whole_numbers(source, values, state)
    strange = nonfinite(values)
    if strange:
        text = f"{len(strange)} tensors hold NaN or infinite numbers: {some(strange)}"
        if not allow_nonfinite:
            raise CheckpointError(f"{source}: {text}; take a checkpoint from before the training diverged")
        report.warnings.append(text)
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
    return report


def export_reference(model: Model) -> Dict[str, Tensor]:
    """Return CPU copies of the weights under the reference's names, in its order, with the geometry that it stores.

    Raises CheckpointError for a model with the plane hw alone, with a detection head or with weights that read the
    past, which the reference lacks.
    """
    if len(model.config.planes) == 1:
        raise CheckpointError(
            "the reference has no model with the plane hw alone, hence no names for its weights; "
            "tpvformer convert SOURCE FOLDER keeps them under ours"
        )
    cfg = model.config
    reads_past = cfg.history is not None and cfg.view_attn == "cross_view"
    if cfg.detection is not None or reads_past:
        what = "head for boxes" if cfg.detection is not None else "attention to the past"
        raise CheckpointError(
            f"the reference has no {what}, hence no names for its weights; "
            "tpvformer convert SOURCE FOLDER keeps them under ours"
        )
    state = model.state_dict()
    out = {theirs: state[ours] for ours, theirs in key_table(model.config).items()}
    geometry = model.encoder.reference_buffers()
    out.update({name: geometry[_last(name)] for name in derived_names(model.config)})
    return {name: out[name].detach().cpu().clone().contiguous() for name in reference_order(model.config)}


def save_reference(model: Model, path: PathLike) -> None:
    """Write ``export_reference`` to ``path``: flat, as the published files are; safetensors by its ending."""
    write_tensors(export_reference(model), path)


def nonfinite(values: Dict[str, Tensor]) -> List[str]:
    """Return the names of floating-point tensors that hold NaN or an infinite number."""

    def strange(tensor: Tensor) -> bool:
        wide = tensor if tensor.element_size() > 1 else tensor.float()  # isfinite is not implemented for 8-bit floats
        return not bool(torch.isfinite(wide).all())

    return [name for name, tensor in values.items() if tensor.is_floating_point() and strange(tensor)]


def _from_ours(
    tensors: Dict[str, Tensor], state: Dict[str, Tensor], source: str, fresh: Sequence[str]
) -> Tuple[Dict[str, Tensor], Report]:
    """Return the tensors of our own file, without those of the heads in ``fresh`` that the model lacks."""
    heads = {name.split(".")[0] for name in state}
    left = [name for name in tensors if name.split(".")[0] in fresh and name.split(".")[0] not in heads]
    values = {name: value for name, value in tensors.items() if name not in left}
    _refuse_unknown(source, [name for name in values if name not in state])
    return values, Report(source, "tpvformer", mapped=list(values), ignored=left)


def _other_classes(values: Dict[str, Tensor], state: Dict[str, Tensor]) -> List[str]:
    """Return the names of a classifier's tensors that differ from the model's in the number of classes alone."""
    return [
        name
        for name, value in values.items()
        if name.rsplit(".", 1)[0] in _CLASSIFIERS
        and value.dim() == state[name].dim()
        and value.shape != state[name].shape
        and value.shape[1:] == state[name].shape[1:]
    ]


def _from_reference(tensors: Dict[str, Tensor], model: Model, source: str) -> Tuple[Dict[str, Tensor], Report]:
    kind = "mmdetection3d" if is_port(tensors) else "GaussRender" if is_gaussrender(tensors) else "reference"
    report = Report(source, kind)
    ours = {theirs: mine for mine, theirs in key_table(model.config).items()}
    values: Dict[str, Tensor] = {}
    unknown: List[str] = []
    for name, known in reference_names(tensors).items():
        if known in ours:
            values[ours[known]] = tensors[name]
            report.mapped.append(name)
        elif is_derived(known) or is_renderer(known):
            report.ignored.append(name)
        else:
            unknown.append(name)
    _refuse_unknown(source, unknown)
    report.warnings = compare_geometry({name: tensors[name] for name in report.ignored}, model)
    return values, report


def _from_detector(
    tensors: Dict[str, Tensor], model: Model, content: Dict[str, Any], source: str
) -> Tuple[Dict[str, Tensor], Report]:
    ours = {theirs: mine for mine, theirs in key_table(model.config).items()}
    found = backbone_of(tensors, ours, model.state_dict(), content, source)
    report = Report(source, "backbone", found.mapped, found.ignored, found.dropped, zeroed=found.zeroed)
    report.warnings = found.warnings
    return found.values, report


def compare_geometry(stored: Dict[str, Tensor], model: Model) -> List[str]:
    """Return a warning for each stored geometry that differs from the model's own, which is used in any case."""
    computed = model.encoder.reference_buffers()
    warnings = []
    for name, theirs in stored.items():
        mine = computed.get(_last(name))
        if mine is None:
            continue
        if theirs.shape != mine.shape:
            warnings.append(f"{name} is {tuple(theirs.shape)} in the file, {tuple(mine.shape)} by this configuration")
            continue
        mine = mine.detach().cpu().float()
        coarse = torch.finfo(theirs.dtype).eps if theirs.is_floating_point() else 0.0  # rounding of half precision
        gaps = (theirs.float() - mine).abs()
        if not bool((gaps <= _GEOMETRY_TOLERANCE + coarse * mine.abs()).all()):
            gap = float(gaps.max())
            warnings.append(f"{name} differs from this configuration's by up to {gap:.3g}; the configuration's is used")
    return warnings


def _refuse_unknown(source: str, names: Sequence[str], mend: str = "was it made with another configuration?") -> None:
    if names:
        raise CheckpointError(f"{source}: {len(names)} entries have no place in this model: {some(names)}; {mend}")


def _refuse_missing(source: str, report: Report, fresh: Sequence[str]) -> None:
    """Raise CheckpointError for missing tensors, except of the parts ``fresh``.

    Batch counters may be absent; a detector needs only the backbone.
    """
    lacking = [name for name in report.missing if not name.endswith(".num_batches_tracked")]
    if report.kind == "backbone":
        lacking = [name for name in lacking if name.startswith("backbone.")]
    lacking = [name for name in lacking if name.split(".")[0] not in fresh]
    if lacking:
        raise CheckpointError(
            f"{source}: {len(lacking)} tensors of this model are not in the {report.kind} file: {some(lacking)}; "
            "was it made with another configuration?"
        )


def _refuse_shapes(source: str, values: Dict[str, Tensor], state: Dict[str, Tensor]) -> None:
    wrong = [name for name, value in values.items() if value.shape != state[name].shape]
    if wrong:
        name = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{source}: {name} is {tuple(values[name].shape)} in the file and {tuple(state[name].shape)} in the "
            f"model{more}; use the configuration it was trained with"
        )


def _refuse_whole_numbers(source: str, values: Dict[str, Tensor], state: Dict[str, Tensor]) -> None:
    """Raise CheckpointError for integer weights: quantised weights mean nothing without their scales."""
    wrong = [n for n, value in values.items() if state[n].is_floating_point() and not value.is_floating_point()]
    if wrong:
        raise CheckpointError(
            f"{source}: {len(wrong)} weights are no floating-point numbers: {some(wrong)} ({values[wrong[0]].dtype}); "
            "expected float32, float16, bfloat16 or float64, quantised weights cannot be taken"
        )


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
