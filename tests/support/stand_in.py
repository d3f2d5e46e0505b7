"""A stand-in for a checkout of the reference: its file names and blank first lines, and none of its content."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

import programs
import pytest
import torch
from engine_tools import ROOT
from tiny_nuscenes import write_tiny

from tpvformer.compat import export_reference
from tpvformer.compat.mmcv_config import from_reference
from tpvformer.model import TPVFormer

PATCH = ROOT / "TPVFormer.patch"
GOLDEN = ROOT / "tests/golden_data/config"
SCRIPTS = ("train.py", "eval.py", "visualization/vis_frame.py", "visualization/vis_scene.py")
# what stands below the blank line: it must never run, except where somebody imports the file
REST = "\nimport a_framework_that_is_not_installed\n\nraise SystemExit('the old program ran')\n"
LAUNCHER = "\n# no program is named above, so bash starts it\npython train.py --py-config $1 --work-dir $2\n"


def git(folder: Path, *command: str, check: bool = True) -> programs.Done:
    """Git with nobody's settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env.update(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull, LC_ALL="C")
    done = programs.run(["git", *command], cwd=folder, env=env)
    assert done.returncode == 0 or not check, done.stderr
    return done


def commit(folder: Path, message: str) -> str:
    """Commit everything; the new commit's name."""
    git(folder, "add", "--all")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    git(folder, *who, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD").stdout.strip()


def make(folder: Path, rest: str = REST) -> str:
    """A repository in ``folder`` with one commit, whose name is returned."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in SCRIPTS:
        _write(folder / name, "\n" + rest)
    _write(folder / "requirements.txt", "a-framework==0.1\nanother==2.3\n")
    _write(folder / "launcher.sh", LAUNCHER)
    _write(folder / "README.md", "a stand-in\n")
    _write(folder / ".gitignore", "data/\nckpts/\n__pycache__/\n")
    for name in ("tpvformer04", "tpvformer10"):
        _write(folder / name / "__init__.py", "x = 1\n")
        _write(folder / name / "modules/encoder.py", "y = 2\n")
    (folder / "launcher.sh").chmod(0o755)
    git(folder, "init", "--quiet")
    return commit(folder, "stand-in")


def tree(name: str) -> Dict[str, Any]:
    """A recorded configuration of the reference, merged, as plain values."""
    return json.loads((GOLDEN / f"{name}.mmcv.json").read_text())


def write_config(file: Path, values: Dict[str, Any], bases: Sequence[str] = ()) -> Path:
    """Write and return a configuration in the reference's format; keys in ``bases`` go into a ``_base_`` file each."""
    lines: List[str] = [f"_base_ = {[f'./_base_/{base}.py' for base in bases]!r}"] if bases else []
    for name, value in values.items():
        if name in bases:
            _write(file.parent / f"_base_/{name}.py", f"{name} = {value!r}\n")
        else:
            lines.append(f"{name} = {value!r}")
    _write(file, "\n".join(lines) + "\n")
    return file


def furnish(folder: Path, epochs: int = 1) -> None:
    """Configurations, data and weights where the reference expects them: config/tiny.py, data/, ckpts/."""
    values = tree("tiny10")
    values["max_epochs"], values["print_freq"] = epochs, 1
    values["dataset_params"]["version"] = "v1.0-mini"
    write_config(folder / "config/tiny.py", values, ("dataset_params", "optimizer", "train_data_loader"))
    root = folder / "data/nuscenes"
    write_tiny(root, (40, 60, 50))
    infos = pickle.loads((root / "infos.pkl").read_bytes())  # noqa: S301 - written a moment ago
    for split, part in (("train", infos["infos"][:2]), ("val", infos["infos"][1:])):
        (folder / f"data/nuscenes_infos_{split}.pkl").write_bytes(pickle.dumps({"infos": part}, protocol=2))
    write_scenes(root / "v1.0-mini", 3)
    model = TPVFormer(from_reference(values, "tiny", "tiny.py").model)
    state = export_reference(model)
    (folder / "ckpts").mkdir()
    torch.save(state, folder / "ckpts/published.pth")
    backbone = {name: value for name, value in state.items() if name.startswith("img_backbone.")}
    torch.save({"state_dict": backbone}, folder / "ckpts/r101_dcn_fcos3d_pretrain.pth")


def write_scenes(tables: Path, frames: int) -> None:
    """The tables of scenes for a tiny data set: two key frames a scene."""
    samples = [{"token": f"sample{i}", "scene_token": f"s{i // 2}"} for i in range(frames)]
    scenes = [{"token": f"s{i}", "name": f"scene-000{i}"} for i in range((frames + 1) // 2)]
    _write(tables / "sample.json", json.dumps(samples))
    _write(tables / "scene.json", json.dumps(scenes))


def snapshot(folder: Path) -> Dict[str, Any]:
    """Mode and content of every file outside .git."""
    return {
        file.relative_to(folder).as_posix(): (file.stat().st_mode, file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".git" not in file.relative_to(folder).parts
    }


def link_python(folder: Path) -> str:
    """A folder whose ``python`` is the interpreter of the tests, to put on PATH."""
    folder.mkdir(exist_ok=True)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return str(folder)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def published(name: str) -> Dict[str, Any]:
    """A published configuration in the reference's format, from its recorded numbers and the form of a tiny one."""
    numbers = json.loads((GOLDEN / f"{name}.json").read_text())
    values = tree(f"tiny{numbers['family']}")
    head, dim = values["model"]["tpv_head"], numbers["dim"]
    layers = head["encoder"]["transformerlayers"]
    if isinstance(layers, list):
        kinds = {"self_cross": layers[0], "self": layers[-1]}
        head["encoder"]["transformerlayers"] = [copy.deepcopy(kinds[kind]) for kind in numbers["layers"]]
    new: Dict[str, Any] = {axis: numbers[axis] for axis in ("tpv_h", "tpv_w", "tpv_z", "num_heads")}
    new.update({f"{axis}_": numbers[axis] for axis in ("tpv_h", "tpv_w", "tpv_z")})
    new.update(h=numbers["tpv_h"], w=numbers["tpv_w"], z=numbers["tpv_z"])
    new.update(row_num_embed=numbers["tpv_h"], col_num_embed=numbers["tpv_w"], num_feats=numbers["pos_dim"])
    new.update(embed_dims=dim, in_dims=dim, out_dims=dim, out_channels=dim, hidden_dims=numbers["decoder_hidden"])
    new.update(feedforward_channels=numbers["ffn_dim"], depth=numbers["backbone_depth"], grid_size=numbers["grid_size"])
    new.update(num_layers=len(numbers["layers"]), num_z_anchors=numbers["num_points_in_pillar"])
    new.update(num_points_in_pillar=numbers["num_points_in_pillar"], nbr_class=numbers["nbr_class"])
    if numbers["family"] == "10":
        new.update(num_anchors=numbers["hybrid_attn_anchors"], init_mode=numbers["hybrid_attn_init"])
        new.update(num_points_in_pillar_cross_view=numbers["num_points_in_pillar_cross_view"])
    points = {"TPVCrossViewHybridAttention": numbers.get("hybrid_attn_points")}

    def renew(node: Any) -> None:
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            if isinstance(node, dict) and key in new:
                node[key] = new[key]
            elif key == "num_points":
                node[key] = points.get(node.get("type"), numbers["num_points"])
            elif isinstance(value, (dict, list)):
                renew(value)

    renew(values)
    return values
