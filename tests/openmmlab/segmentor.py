"""tpvformer.compat.openmmlab: the reference's configuration through mmseg's builder, mmcv's runner and checkpoints."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any, Dict

import torch
from report import main, outcome, quiet

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from rig_tools import ring_of_cameras  # noqa: E402 - the suite's own helper, found by the line above

TRAIN = {"lovasz_input": "points", "ce_input": "voxel", "ignore_label": 0}


def _sample(model: Any) -> Dict[str, Any]:
    """One random sample, as mmcv's collate would give it."""
    generator = torch.Generator().manual_seed(3)
    w, h, z = model.config.grid.shape
    cameras = [matrix.numpy() for matrix in ring_of_cameras(96, 160)]
    labels = model.config.num_classes
    return {
        "img": torch.rand(1, 6, 3, 96, 160, generator=generator),
        "img_metas": [{"lidar2img": cameras, "img_shape": [(96, 160, 3)] * 6}],
        "points": torch.rand(1, 80, 3, generator=generator) * torch.tensor([w, h, z]).float(),
        "point_labels": torch.randint(0, labels, (1, 80), generator=generator),
        "voxel_labels": torch.randint(0, labels, (1, w, h, z), generator=generator),
    }


def segmentor(tree: str, folder: str) -> Dict[str, Any]:
    """``tree``: JSON of a configuration in the reference's format; files are written to ``folder``."""
    from mmcv import Config
    from mmcv.runner import EpochBasedRunner, build_optimizer, load_checkpoint
    from mmseg.models import build_segmentor

    content = json.loads(Path(tree).read_text())
    file = Path(folder) / "config.py"
    lines = [f"{key} = {value!r}" for key, value in content.items()]
    file.write_text("\n".join(lines + ["custom_imports = dict(imports=['tpvformer.compat.openmmlab'])"]))
    cfg = Config.fromfile(str(file))  # imports what it names
    torch.manual_seed(0)
    model = build_segmentor(cfg.model, train_cfg=TRAIN)
    model.init_weights()

    from tpvformer.compat import export_reference, load_weights
    from tpvformer.compat.mmcv_config import from_reference
    from tpvformer.model import TPVFormer

    torch.manual_seed(0)
    ours = TPVFormer(from_reference(content, "lane", tree).model).eval()
    sample = _sample(model)
    result: Dict[str, Any] = {"keys": list(model.state_dict()), "same_config": model.config == ours.config}
    stored = export_reference(ours)
    result["same_weights"] = all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())

    def compare() -> float:
        model.eval()
        with torch.no_grad():
            voxels, points = model(sample["img"], sample["img_metas"], points=sample["points"], return_loss=False)
            wanted = ours(sample["img"], ring_of_cameras(96, 160)[None], sample["points"])
        assert torch.equal(model(sample["img"], sample["img_metas"]), voxels)
        gaps = voxels - wanted.voxel_logits, points[..., 0, 0] - wanted.point_logits
        result["shapes"] = [list(voxels.shape), list(points.shape)]
        return max(float(gap.abs().max()) for gap in gaps)

    result["gap"] = compare()

    optimizer = build_optimizer(model, cfg.optimizer)
    learning = {id(p) for name, p in model.named_parameters() if name.startswith("img_backbone") and p.requires_grad}
    rates = [group["lr"] for group in optimizer.param_groups if id(group["params"][0]) in learning]
    result["backbone_lr"] = sorted(set(rates))
    losses = []
    runner = EpochBasedRunner(model, optimizer=optimizer, work_dir=folder, logger=quiet("lane"), max_epochs=3, meta={})
    runner.register_training_hooks(
        {"policy": "fixed"}, {"type": "OptimizerHook", "grad_clip": {"max_norm": cfg.grad_max_norm}}, {"interval": 1}
    )
    step = model.train_step
    model.train_step = lambda *args, **kwargs: losses.append(step(*args, **kwargs)) or losses[-1]
    runner.run([[sample]], [("train", 1)])
    del model.train_step
    result["losses"] = [entry["log_vars"] for entry in losses]

    report = load_weights(ours, Path(folder) / "epoch_3.pth")
    result["read_as"], result["trained_gap"] = report.kind, compare()
    other = build_segmentor(cfg.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(other, str(Path(folder) / "epoch_3.pth"), strict=True, logger=quiet("lane"))
        other.load_state_dict(model.state_dict())
    result["loaded"] = all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values()))
    sample["img_metas"][0]["img_shape"] = [(90, 160, 3)] * 6
    result["unpadded"] = outcome(lambda: model(sample["img"], sample["img_metas"]))
    result["no_train_cfg"] = outcome(lambda: other.train_step(sample))
    result["unknown_key"] = outcome(lambda: build_segmentor({**cfg.model, "pretraind": None}))
    return result


def layers() -> Dict[str, Any]:
    """MultiScaleDeformableAttention and DCNv2: ours by their registered names against mmcv's classes."""
    from mmcv.cnn import build_conv_layer
    from mmcv.cnn.bricks.transformer import build_attention
    from mmcv.ops import ModulatedDeformConv2dPack, MultiScaleDeformableAttention

    import tpvformer.compat.openmmlab  # noqa: F401

    shapes = torch.tensor([[8, 10], [4, 5], [2, 3]])
    tokens = int(shapes.prod(1).sum())
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    result: Dict[str, Any] = {"attention": {}}
    for batch_first in (False, True):
        for numbers in (2, 4):
            options = {"embed_dims": 32, "num_heads": 4, "num_levels": 3, "batch_first": batch_first, "dropout": 0.0}
            torch.manual_seed(0)
            theirs = MultiScaleDeformableAttention(**options)
            torch.manual_seed(0)
            ours = build_attention({"type": "MultiScaleDeformableAttention", **options})
            start = max(
                float((a - b).abs().max()) for a, b in zip(theirs.state_dict().values(), ours.state_dict().values())
            )
            for p in theirs.parameters():
                torch.nn.init.normal_(p, std=0.3)
            ours.load_state_dict(theirs.state_dict())
            given = [torch.randn(2, 7, 32), torch.randn(2, tokens, 32), torch.randn(2, 7, 32)]
            query, value, position = given if batch_first else [t.transpose(0, 1) for t in given]
            inputs = {
                "query": query,
                "value": value,
                "query_pos": position,
                "level_start_index": starts,
                "reference_points": torch.rand(2, 7, 3, numbers),
                "spatial_shapes": shapes,
                "key_padding_mask": torch.rand(2, tokens) > 0.8,
            }
            gap = float((theirs(**inputs) - ours(**inputs)).abs().max())
            result["attention"][f"batch_first {batch_first}, {numbers} numbers"] = [start, gap]
            result["module"] = type(ours).__module__
    theirs = ModulatedDeformConv2dPack(8, 4, 3, stride=2, padding=1, deform_groups=2)
    ours = build_conv_layer({"type": "DCNv2", "deform_groups": 2}, 8, 4, 3, stride=2, padding=1)
    torch.nn.init.normal_(theirs.conv_offset.weight, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    result["dcn"] = [float((theirs(x) - ours(x)).abs().max()), type(ours).__module__, type(theirs).__module__]
    return result


if __name__ == "__main__":
    main({"segmentor": segmentor, "layers": layers})
