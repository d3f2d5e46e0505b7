"""List every command with an example, as ``tpvformer`` without arguments prints it."""

from __future__ import annotations

from typing import Tuple

TOUR: Tuple[Tuple[str, str], ...] = (
    ("a first look, without data or training", "tpvformer demo"),
    ("is this machine ready?", "tpvformer doctor"),
    ("do the kernels compute the same here?", "tpvformer selfcheck"),
    ("a synthetic data set", "tpvformer synth --out data/demo --scenes 10 --size 224x128"),
    ("info files of a nuScenes download", "tpvformer data infos --root data/nuscenes"),
    ("look at calibration and points", "tpvformer check-geometry --rig rig.json --out rig.png"),
    ("train", "tpvformer train --py-config tpv_lidarseg_dim64"),
    ("score a checkpoint", "tpvformer eval --ckpt-path output/demo/best.pth"),
    ("the outcome of a run", "tpvformer results --work-dir output/demo"),
    ("curves, tables and worst frames of a run", "tpvformer report --work-dir output/demo"),
    ("classes of your own cameras' voxels", "tpvformer predict --ckpt-path output/demo --rig rig.json"),
    ("a page to look at results, in any browser", "tpvformer view out/*.npz --html out.html"),
    ("a picture of a frame", "tpvformer picture --ckpt-path output/demo/best.pth"),
    ("weights as a folder to share", "tpvformer convert output/demo my-model"),
    ("a model for onnxruntime", "tpvformer export --ckpt-path my-model --onnx model.onnx"),
    ("where a step's time goes", "tpvformer bench --py-config tpv_lidarseg_dim64"),
    ("completion in the shell", "tpvformer completion bash"),
    ("somebody's training script for mmcv 1.x", "tpvformer run train.py --py-config config/mine.py"),
    ("drop-in files for OpenMMLab 1.x", "tpvformer overlay check"),
)

_ACTIONS = {  # sub-commands that are not in TOUR
    "data check": "tpvformer data check --root data/nuscenes",
    "data drive": "tpvformer data drive --rig calibration.json --images drive --poses poses.csv --out rig.json",
}


def tour() -> str:
    """Return the list, one line a command."""
    width = max(len(what) for what, _ in TOUR)
    lines = [f"  {what:<{width}}  {example}" for what, example in TOUR]
    return "\n".join(["TPVFormer: car cameras to 3D semantics. tpvformer COMMAND --help says more.", *lines])


def example_of(command: str) -> str:
    """Return an example call of a command, or of a sub-command such as "data check"."""
    if command in _ACTIONS:
        return _ACTIONS[command]
    return next(example for _, example in TOUR if f"{example} ".startswith(f"tpvformer {command} "))
