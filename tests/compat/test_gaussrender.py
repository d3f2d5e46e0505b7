"""GaussRender's TPVFormer weights: the names and shapes of its log, and the configurations that its files lead to."""

from __future__ import annotations

import functools
import json
from typing import Dict

import pytest
import torch
from foreign_tools import FOREIGN, recorded
from torch import Tensor

from tpvformer.compat import CheckpointError, load_config
from tpvformer.compat.checkpoints import load_content
from tpvformer.compat.infer_config import infer_config
from tpvformer.compat.keys import is_derived, is_renderer, key_table, reference_names
from tpvformer.compat.wrappers import find_tensors
from tpvformer.model import TPVFormer as Network

LIST = json.loads((FOREIGN / "gaussrender_keys.json").read_text())


@functools.lru_cache(maxsize=None)
def network() -> Network:
    with torch.device("meta"):
        return Network(load_config("tpv_occ3d").model)


def stored(classes: int = 18) -> Dict[str, Tensor]:
    """The recorded tensors and a backbone under the reference's names; they take no memory."""
    table, state = key_table(network().config), network().state_dict()
    backbone = {
        theirs: torch.zeros(()).expand(state[mine].shape)
        for mine, theirs in table.items()
        if mine.startswith("backbone.")
    }
    rest = recorded("gaussrender_keys")
    for entry, shape in (("weight", (classes, 256)), ("bias", (classes,))):
        rest[f"aggregator.classifier.{entry}"] = torch.zeros(()).expand(shape)
    return {**backbone, **rest}


def test_its_names_are_the_reference_s_and_its_shapes_ours() -> None:
    tensors, table, state = stored(), key_table(network().config), network().state_dict()
    names = reference_names(tensors)
    weights = {known: tensors[name] for name, known in names.items() if not is_renderer(known)}
    assert set(weights) == set(table.values())
    assert all(weights[theirs].shape == state[mine].shape for mine, theirs in table.items())
    ignored = [name for name, known in names.items() if is_renderer(known)]
    assert len(ignored) == 6 and all(name.startswith("aggregator.renderer_prep.") for name in ignored)


def test_the_count_of_its_log_is_ours_and_the_renderer_s() -> None:
    """62,604,589 trainable parameters, of which the renderer has 139,037."""
    ours = sum(p.numel() for p in network().parameters() if p.requires_grad)
    more = sum(t.numel() for name, t in stored().items() if name.startswith("aggregator.renderer_prep."))
    assert ours + more == LIST["trainable"]


def test_its_geometry_is_known_as_the_reference_s() -> None:
    names = ["head.encoder.ref_3d_hw", "head.encoder.ref_2d_zh", "head.tpv_mask_hw", "head.tpv_embedding_hw.weight"]
    assert [is_derived(known) for known in reference_names(names).values()] == [True, True, True, False]


def test_the_classes_tell_the_configuration() -> None:
    assert infer_config(stored(), "occ3d_tpv_render.pth") == load_config("tpv_occ3d")
    config = infer_config(stored(17), "surroundocc_tpv_render.pth")
    assert config.data.label_classes.names[0] == "empty" and config.model.num_classes == 17
    assert config.model.grid == load_config("tpv_surroundocc").model.grid
    with pytest.raises(CheckpointError, match="has 19 classes; expected GaussRender's 18 of Occ3D or 17 of Surround"):
        infer_config(stored(19), "x.pth")
    other = {**stored(), "head.level_embeds": torch.zeros(3, 256)}
    with pytest.raises(CheckpointError, match="its shapes make no model"):
        infer_config(other, "x.pth")
    more = {**stored(), "head.cams_embeds": torch.zeros(7, 256)}
    with pytest.raises(CheckpointError, match="its shapes are not those of GaussRender's configuration"):
        infer_config(more, "x.pth")


def test_a_checkpoint_with_its_wrapper_and_optimiser_is_read() -> None:
    content = {"state_dict": {f"module.{name}": t for name, t in stored().items()}, "optimizer": {"state": {}}}
    assert set(find_tensors(content, "w.pth").tensors) == set(stored())
    report = load_content(network(), {**content, "epoch": 20}, "occ3d_tpv_render.pth")
    assert report.kind == "GaussRender" and not report.missing and len(report.ignored) == 6
    assert "6 ignored, no weights of this model: aggregator.renderer_prep" in str(report)


def test_an_unknown_entry_is_still_refused() -> None:
    with pytest.raises(CheckpointError, match="1 entries have no place in this model: head.other.weight"):
        load_content(network(), {**stored(), "head.other.weight": torch.zeros(1)}, "x.pth")
