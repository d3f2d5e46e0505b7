"""Finding the weights in a checkpoint of any trainer and removing wrappers' prefixes from their names.

A trainer stores its weights under a key, beside other values. Wrappers (DDP, ``torch.compile``, FSDP, a
LightningModule, an average of weights) put a prefix before each name. Known keys and prefixes are removed; the names of
a model's own modules stay as they are.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Collection, Dict, List, Mapping, NamedTuple, Optional, Sequence

from torch import Tensor

from tpvformer.compat.inert import Inert
from tpvformer.compat.mistaken import entries_of
from tpvformer.errors import CheckpointError
from tpvformer.untrusted.names import shown

# keys of a checkpoint under which its weights may be; the first that exists is used
_CONTAINERS = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights", "params_ema",
    "params", "state_dict_ema", "ema_state_dict", "model_ema", "checkpoint",
)  # fmt: skip
# prefixes of wrappers, at the front of a name or inside it where a submodule was wrapped
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"))
_DEEPEST = 3  # the most nested containers, and the most prefixes of a name
_OF_A_MODEL = frozenset((
    "tpv_head", "tpv_aggregator", "aggregator", "img_backbone", "backbone", "img_neck", "decode_head",
))  # fmt: skip
_USUAL = ("model", "network", "net")  # the network to take where a trainer stores several


class Found(NamedTuple):
    """``tensors`` by their names without wrappers' prefixes; ``beside``: names that are not part of the model."""

    tensors: Dict[str, Tensor]
    beside: List[str]


def find_tensors(content: Mapping[str, Any], source: str) -> Found:
    """Return the weights of an archive, flat or under a key such as ``state_dict``, without ``module.`` and the like.

    Raises CheckpointError where there are none, where an entry is no tensor, and where several models could be meant.
    """
    entries = _entries(content, source)
    strange = [str(key) for key, value in entries.items() if not (isinstance(value, Tensor) or _is_flat(key))]
    tensors = {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if strange or not tensors:
        found = (
            f"{some(strange)} {'is' if len(strange) == 1 else 'are'} no named tensor"
            if strange
            else entries_of(content)
        )
        raise CheckpointError(f"{source}: expected named tensors, flat or under 'state_dict'; {found}")
    names = _without_wrappers(tensors, source)
    averaged = {name.replace(".", "_") for name in names if "." in name}
    counts = [n for n, t in names.items() if "." not in n and (t.numel() == 1 or n[len("ema_") :] in averaged)]
    names = {name: tensor for name, tensor in names.items() if name not in counts}
    return _of_one_model(names, counts, source)


def named_tensors(content: Mapping[str, Any], source: str) -> Dict[str, Tensor]:
    """Return only the tensors of ``find_tensors``."""
    return find_tensors(content, source).tensors


def is_resnet(names: Collection[str]) -> bool:
    """Tell whether the names are those of a bare ResNet, as torchvision, timm and OpenMMLab's model zoo store it."""
    firsts = {name.split(".")[0] for name in names}
    return {"conv1", "bn1", "layer1"} <= firsts


def some(names: Sequence[str], count: int = 3) -> str:
    """Return the first ``count`` names, and how many more there are, for a message."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(shown(name)[:120] for name in names[:count]) + more


def _is_flat(key: Any) -> bool:
    """Tell whether a key cannot be the name of a model's tensor, which has a dot; counters and options have none."""
    return isinstance(key, str) and "." not in key


def _entries(content: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Return the dictionary with the tensors. Raises CheckpointError."""
    for _ in range(_DEEPEST):
        if any(isinstance(value, Tensor) and not _is_flat(key) for key, value in content.items()):
            return content
        within = {key: value for key, value in content.items() if isinstance(value, dict)}
        known = [key for key in _CONTAINERS if within.get(key)]
        for key in _CONTAINERS:
            whole = within.get(key)
            if isinstance(whole, Inert) and not whole and not known:
                raise CheckpointError(
                    f"{source}: its {key!r} is a whole object of {whole.origin}, of which nothing is run; save "
                    "model.state_dict() with the program that wrote it"
                )
        others = [key for key, value in within.items() if any(isinstance(v, Tensor) for v in value.values())]
        if not known and len(others) > 1:
            raise CheckpointError(
                f"{source}: has tensors under {some([str(key) for key in others])}; keep the weights alone, flat or "
                "under 'state_dict'"
            )
        if not (known or others):
            return content
        content = within[(known or others)[0]]
    return content


def _without_wrappers(tensors: Mapping[str, Tensor], source: str) -> Dict[str, Tensor]:
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in tensors}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        both = [name for name, bare in names.items() if bare == twice[0]]
        raise CheckpointError(f"{source}: has {some(both)}, which are one name without wrappers; keep one of them")
    return {bare: tensors[name] for name, bare in names.items()}


def _of_one_model(names: Mapping[str, Tensor], beside: List[str], source: str) -> Found:
    """Remove prefixes until the names are a model's own; names without the prefix are added to ``beside``."""
    for _ in range(_DEEPEST):
        if _is_model(names):
            break
        part = _part_with_a_model(names, source)
        if part is None:
            break
        beside = beside + [name for name in names if not name.startswith(f"{part}.")]
        names = _below(names, part)
    return Found(dict(names), beside)


def _below(names: Mapping[str, Tensor], part: str) -> Dict[str, Tensor]:
    return {name[len(part) + 1 :]: tensor for name, tensor in names.items() if name.startswith(f"{part}.")}


def _is_model(names: Collection[str]) -> bool:
    return is_resnet(names) or any(name.split(".")[0] in _OF_A_MODEL for name in names)


def _part_with_a_model(names: Mapping[str, Tensor], source: str) -> Optional[str]:
    parts = list(dict.fromkeys(name.split(".")[0] for name in names if "." in name))
    holding = [part for part in parts if _leads_to_a_model(_below(names, part), _DEEPEST - 1)]
    usual = [part for part in _USUAL if part in holding]
    if len(holding) > 1 and len(usual) != 1:
        raise CheckpointError(f"{source}: has weights under {some(holding)}; keep those of one model")
    return (usual or holding or [None])[0]


def _leads_to_a_model(names: Mapping[str, Tensor], deep: int) -> bool:
    if _is_model(names):
        return True
    parts = dict.fromkeys(name.split(".")[0] for name in names if "." in name)
    return deep > 0 and any(_leads_to_a_model(_below(names, part), deep - 1) for part in parts)
