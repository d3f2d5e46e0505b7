"""Compare this model with the reference's recorded numbers.

    python tests/support/golden.py CASE_PREFIX CONFIG_JSON    one case: forward, loss, gradients, four AdamW steps
    python tests/support/golden.py keys MANIFEST_JSON CONFIG  names, shapes, frozen flags, deterministic initial values

Prints one row a tensor (max absolute error, relative to its standard deviation, tolerance); exits 1 where one fails.
Tolerances: forward 2e-5 absolute (relative where values exceed 1), loss 2e-6 relative, gradients 1e-3 relative L2,
AdamW trajectory 2e-3 relative, visible queries equal, argmax equal unless the two best logits are closer than 1e-5.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from golden_rules import IMAGE_MEAN, fill_value  # noqa: E402
from golden_table import GRADIENT, LOSS, TIE, TRAJECTORY, Table, report  # noqa: E402

from tpvformer.compat import load_config  # noqa: E402
from tpvformer.compat.keys import derived_names, key_table, reference_order  # noqa: E402
from tpvformer.config import BackboneConfig, GridConfig, ModelConfig, OptimConfig  # noqa: E402
from tpvformer.data.voxels.voxelize import grid_index, occupied_voxels, vote  # noqa: E402
from tpvformer.engine.losses import cross_entropy, lovasz_labels  # noqa: E402
from tpvformer.engine.optim import build_optimizer, clip_gradients  # noqa: E402
from tpvformer.model import TPVFormer  # noqa: E402
from tpvformer.model.grid import PLANES  # noqa: E402

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def model_config(numbers: Dict[str, Any]) -> ModelConfig:
    """The plain numbers of a recorded case -> our ModelConfig."""
    occupancy = numbers["family"] == "04"
    grid = GridConfig(
        w=numbers["tpv_w"], h=numbers["tpv_h"], z=numbers["tpv_z"],
        scale_w=numbers["scale_w"], scale_h=numbers["scale_h"], scale_z=numbers["scale_z"],
        pc_range=tuple(numbers["point_cloud_range"]),
    )  # fmt: skip
    backbone = BackboneConfig(
        blocks=BLOCKS[numbers["backbone_depth"]],
        dcn_stages=tuple(numbers["dcn_stages"]),
        frozen_stages=numbers["frozen_stages"],
    )
    pos = numbers["pos_dim"]
    if occupancy:
        plane = {"position_dims": (pos, pos), "plane_heads": 8, "plane_points": numbers["self_attn_points"]}
    else:
        sweeps = set(numbers["num_points_in_pillar_cross_view"])
        if len(sweeps) != 1:
            raise ValueError(f"planes with different numbers of cross-view anchors {sweeps} are not supported")
        plane = {
            "position_dims": tuple(pos),
            "plane_heads": numbers["num_heads"],
            "plane_points": numbers["hybrid_attn_points"],
            "plane_anchors": sweeps.pop(),
            "plane_init_anchors": numbers["hybrid_attn_anchors"],
            "plane_init_mode": numbers["hybrid_attn_init"],
        }
    return ModelConfig(
        grid=grid, backbone=backbone, view_attn="hw" if occupancy else "cross_view", num_classes=numbers["nbr_class"],
        num_cams=numbers["num_cams"], num_levels=numbers["num_levels"], dim=numbers["dim"], ffn_dim=numbers["ffn_dim"],
        decoder_dim=numbers["decoder_hidden"], image_heads=numbers["num_heads"], layers=tuple(numbers["layers"]),
        pillar_anchors=tuple(numbers["num_points_in_pillar"]), image_points=tuple(numbers["num_points"]), **plane,
    )  # fmt: skip


def filled_model(cfg: ModelConfig) -> TPVFormer:
    """A model whose every stored tensor follows the deterministic rule, in eval mode."""
    model = TPVFormer(cfg)
    state = model.state_dict()
    for ours, theirs in key_table(cfg).items():
        state[ours] = torch.from_numpy(np.asarray(fill_value(theirs, state[ours].shape)))
    model.load_state_dict(state)
    return model.eval()


class Case:
    """A recorded case on disk: arrays, their strides, and the run that must reproduce them."""

    def __init__(self, prefix: str, numbers: Dict[str, Any]) -> None:
        self.arrays = np.load(prefix + ".npz")
        with open(prefix + ".json", encoding="utf-8") as file:
            self.meta = json.load(file)
        self.numbers = numbers
        self.cfg = model_config(numbers)
        self.model = filled_model(self.cfg)
        self.captured: Dict[str, Tensor] = {}
        raw = self.arrays["in/raw_u8"].astype(np.float32) - IMAGE_MEAN
        self.images = torch.from_numpy(raw.transpose(0, 3, 1, 2).copy())[None]
        self.lidar2img = torch.from_numpy(self.arrays["in/lidar2img"]).float()[None]
        self.points = torch.from_numpy(self.arrays["in/grid_ind"].astype(np.float32)).view(1, -1, 3)
        self.point_labels = torch.from_numpy(self.arrays["in/pt_label"].astype(np.int64)).view(1, -1)
        self.voxel_labels = torch.from_numpy(self.arrays["in/vox_label"].astype(np.int64))[None]

    def strided(self, name: str, tensor: Tensor) -> np.ndarray:
        """Our tensor in the shape in which the case stores it."""
        step = self.meta.get(name, {}).get("step", 1)
        array = tensor.detach().numpy()
        return array.reshape(-1)[::step] if step > 1 else array

    def capture(self) -> None:
        """Record what the case stores on the way through the model, under its names."""
        m, seen = self.model, self.captured

        def keep(name: str) -> Callable[..., None]:
            return lambda module, args, out: seen.__setitem__(name, out)

        m.backbone.layer1.register_forward_pre_hook(lambda module, args: seen.__setitem__("mid/backbone.stem", args[0]))
        for stage in (1, 2, 3, 4):
            getattr(m.backbone, f"layer{stage}").register_forward_hook(keep(f"mid/backbone.layer{stage}"))
        m.backbone.layer3[0].conv2.register_forward_hook(self._keep_convolution)
        m.neck.register_forward_hook(self._keep_pyramid)
        first = m.encoder.layers[0]
        first.plane_attn.register_forward_hook(keep("mid/encoder.0.attn0"))
        first.norms[0].register_forward_hook(keep("mid/encoder.0.norm0"))
        first.image_attn.register_forward_hook(keep("mid/encoder.0.attn1"))
        first.ffn.register_forward_hook(keep("mid/encoder.0.ffn"))
        for k, layer in enumerate(m.encoder.layers):
            layer.register_forward_hook(
                lambda module, args, out, k=k: seen.update(
                    {f"mid/encoder.{k}.{p}": x for p, x in zip(PLANES, out.split(self.cfg.grid.plane_sizes, 1))}
                )
            )

    def _keep_convolution(self, module: torch.nn.Module, args: Tuple[Any, ...], out: Tensor) -> None:
        """What stands before the norm; the model folds the frozen norm into the convolution."""
        norm = self.model.backbone.layer3[0].bn2
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        plain = (out - (norm.bias - norm.running_mean * scale).view(-1, 1, 1)) / scale.view(-1, 1, 1)
        self.captured["mid/backbone.layer3.0.conv2"] = plain

    def _keep_pyramid(self, module: torch.nn.Module, args: Tuple[Any, ...], out: List[Tensor]) -> None:
        for level, x in enumerate(out):
            if x.requires_grad:
                x.retain_grad()
            self.captured[f"mid/fpn.{level}"] = x

    def losses(self, voxel_logits: Tensor, point_logits: Tensor) -> Tuple[Tensor, Tensor]:
        """Lovász-softmax and cross-entropy of the inputs that the case's configuration names."""
        ignore = self.numbers["ignore_label"]
        inputs = {
            "points": (point_logits, self.point_labels),
            "voxel": (voxel_logits.flatten(2), self.voxel_labels.flatten(1)),
        }
        lovasz = lovasz_labels(*inputs[self.numbers["lovasz_input"]], ignore)
        return lovasz.mean(), cross_entropy(*inputs[self.numbers["ce_input"]], ignore).mean()

    def run_forward(self) -> Tuple[Tensor, Tensor]:
        return self.model(self.images, self.lidar2img, self.points)


def check_inputs(case: Case, table: Table) -> None:
    """Voxel indices and voted labels from the raw points."""
    if "in/xyz" not in case.arrays.files:
        return
    grid = case.cfg.grid
    index = grid_index(case.arrays["in/xyz"], grid.shape, grid.pc_range)
    table.equal("in/grid_ind", int((index != case.arrays["in/grid_ind"].reshape(-1, 3)).sum()))
    cells, rows = occupied_voxels(index, grid.shape)
    voted = vote(case.arrays["in/pt_label"].reshape(-1), rows, cells, grid.shape, case.numbers["fill_label"])
    table.equal("in/vox_label", int((voted != case.arrays["in/vox_label"]).sum()))


def check_geometry(case: Case, table: Table) -> None:
    """Projected reference pixels and visibility."""
    height, width = case.images.shape[-2:]
    for name, projection in zip(PLANES, case.model.encoder.project(case.lidar2img, (height, width))):
        anchors = projection.anchors[0][:, None]  # (cam, bs, query, anchor, xy)
        key = f"mid/ref_cam.{name}"
        if key in case.arrays.files:
            theirs = case.arrays[key]
            ours = case.strided(key, anchors)
            if ours.shape == projection.anchors[0][:, None].shape:  # stored whole
                inside = projection.visible[0][:, None].numpy()
                table.forward(f"{key} (in the image)", ours[inside], theirs[inside])
            # Outside, the depth may be next to zero or clamped to 1e-5 m: up to 1e6, so compare with the spread.
            table.forward(f"{key} (all, by spread)", ours / theirs.std(), theirs / theirs.std())
        seen = projection.query_visible[0]
        key = f"mid/mask.{name}"
        if key in case.arrays.files:
            shape = case.meta[key]["shape"]
            theirs = np.unpackbits(case.arrays[key])[: int(np.prod(shape))].reshape(shape).astype(bool)
            table.equal(f"{key} (queries)", int((seen.numpy() != theirs.any(-1)[:, 0]).sum()))
        if f"mid/visible.{name}" in case.meta:
            counts = seen.sum(1).tolist()
            table.equal(f"mid/visible.{name}", int(counts != case.meta[f"mid/visible.{name}"]))


def check_forward(case: Case, table: Table) -> Tensor:
    """Everything the case stores between images and loss."""
    case.capture()
    voxel_logits, point_logits = case.run_forward()
    parts = case.losses(voxel_logits, point_logits)
    loss = parts[0] + parts[1]
    case.captured.update({"out/logits_vox": voxel_logits, "out/logits_pts": point_logits})
    for key in case.arrays.files:
        if key.startswith(("mid/mask", "mid/ref_cam", "in/", "grad/", "step", "loss/")):
            continue
        if key.startswith("out/argmax_"):
            logits = case.captured[key.replace("argmax", "logits")]
            best = logits.topk(2, dim=1)
            differs = case.strided(key, best.indices[:, 0]) != case.arrays[key]
            tie = case.strided(key, best.values[:, 0] - best.values[:, 1]) < TIE
            table.equal(key, int((differs & ~tie).sum()))
        elif key in case.captured:
            ours = case.captured[key]
            if key == "mid/encoder.0.attn0":  # the occupancy family's view attention is stored for plane hw alone
                ours = ours[:, : case.meta[key]["shape"][1]]
            table.forward(key, case.strided(key, ours), case.arrays[key])
        else:
            print(f"{key:78s} is not compared FAIL")
            table.failed.append(key)
    if "loss/lovasz_ce_total" in case.arrays.files:
        for name, ours, theirs in zip(("lovasz", "ce", "total"), (*parts, loss), case.arrays["loss/lovasz_ce_total"]):
            table.scalar(f"loss/{name}", ours.item(), float(theirs), LOSS)
    return loss


def check_gradients(case: Case, table: Table, loss: Tensor) -> None:
    """The norm of every parameter's gradient and the stored samples."""
    case.model.zero_grad()
    loss.backward()
    ours_by_reference = {v: k for k, v in key_table(case.cfg).items()}
    parameters = dict(case.model.named_parameters())
    total = case.meta["grad_norm_total"]
    noise = 1e-6 * total
    frozen = {ours_by_reference[name] for name in case.meta.get("requires_grad_false", [])}
    if "requires_grad_false" in case.meta:
        table.equal("frozen parameters", len(frozen ^ {n for n, p in parameters.items() if not p.requires_grad}))
    unused = {n for n, p in parameters.items() if p.requires_grad and p.grad is None}
    unused_there = {ours_by_reference[n] for n in case.meta.get("requires_grad_but_none", [])}
    table.equal("parameters without gradient", len(unused ^ unused_there))
    for name, norm in case.meta["grad_norm"].items():
        if norm is not None and name in ours_by_reference and parameters[ours_by_reference[name]].grad is not None:
            grad = parameters[ours_by_reference[name]].grad
            table.scalar(f"|grad| {name}", grad.norm().item(), norm, GRADIENT, noise)
    for key in case.arrays.files:
        if key.startswith("grad/@fpn."):
            grad = case.captured["mid/fpn." + key.rsplit(".", 1)[1]].grad
        elif key.startswith("grad/"):
            grad = parameters[ours_by_reference[key[len("grad/") :]]].grad
        else:
            continue
        theirs = case.arrays[key]
        table.gradient(key, case.strided(key, grad), theirs, noise)


def check_steps(case: Case, table: Table) -> None:
    """Four AdamW steps with clipping: loss and gradient norm before each, and the values after the first."""
    numbers = case.numbers
    optim = OptimConfig(
        lr=numbers["lr"], weight_decay=numbers["weight_decay"], backbone_lr_mult=numbers["backbone_lr_mult"],
        clip_norm=numbers["grad_max_norm"],
    )  # fmt: skip
    optimizer = build_optimizer(case.model, optim, torch.device("cpu"))
    ours_by_reference = {v: k for k, v in key_table(case.cfg).items()}
    for step, (loss_theirs, norm_theirs) in enumerate(case.arrays["step/loss_gradnorm"]):
        loss = torch.stack(case.losses(*case.run_forward())).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = clip_gradients(optimizer, optim.clip_norm)
        optimizer.step()
        table.scalar(f"step {step} loss", loss.item(), float(loss_theirs), TRAJECTORY)
        table.scalar(f"step {step} gradient norm", float(norm), float(norm_theirs), TRAJECTORY)
        if step == 0:
            parameters = dict(case.model.named_parameters())
            for key in (k for k in case.arrays.files if k.startswith("step1/")):
                value = parameters[ours_by_reference[key[len("step1/") :]]]
                table.trajectory(key, case.strided(key, value), case.arrays[key])


def run_case(prefix: str, config: str) -> int:
    with open(config, encoding="utf-8") as file:
        numbers = json.load(file)
    torch.manual_seed(0)
    case = Case(prefix, numbers)
    table = Table()
    check_inputs(case, table)
    check_geometry(case, table)
    loss = check_forward(case, table)
    if "grad_norm" in case.meta:  # large cases may be recorded forward only
        check_gradients(case, table, loss)
    if "step/loss_gradnorm" in case.arrays.files:
        check_steps(case, table)
    return report(table)


def run_keys(manifest: str, config: str) -> int:
    """Names, shapes, dtypes, frozen flags and deterministic initial values of one configuration."""
    with open(manifest, encoding="utf-8") as file:
        entries = json.load(file)["state_dict"]
    if config.endswith(".json"):
        with open(config, encoding="utf-8") as file:
            cfg = model_config(json.load(file))
    else:
        cfg = load_config(config).model
    torch.manual_seed(0)
    model = TPVFormer(cfg)
    return report(compare_keys(model, entries, Path(manifest)))


def compare_keys(model: TPVFormer, entries: Dict[str, Any], manifest: Path) -> Table:
    table = Table()
    pairs = key_table(model.config)
    state, parameters = model.state_dict(), dict(model.named_parameters())
    table.equal("our names: table and model", len(set(pairs) ^ set(state)))
    table.equal("the table is one to one", len(pairs) - len(set(pairs.values())))
    table.equal("the reference's names", len(set(reference_order(model.config)) ^ set(entries)))
    table.equal("the reference's order", int(reference_order(model.config) != list(entries)))
    table.equal("our order", int(list(pairs) != list(state)))
    for ours, theirs in pairs.items():
        entry, tensor = entries.get(theirs), state[ours]
        if entry is None:
            continue
        frozen = ours in parameters and not parameters[ours].requires_grad
        same = (
            list(tensor.shape) == entry["shape"]
            and str(tensor.dtype) == f"torch.{entry['dtype']}"
            and (ours in parameters) == (entry["kind"] == "parameter")
            and (entry["kind"] != "parameter" or frozen == (not entry["requires_grad"]))
        )
        if not same:
            print(f"{ours}: {tuple(tensor.shape)} {tensor.dtype} frozen={frozen}, expected {entry}")
        table.equal(theirs, int(not same))
    buffers = model.encoder.reference_buffers()
    for name in derived_names(model.config):
        table.equal(name, int(list(buffers[name.rsplit(".", 1)[1]].shape) != entries[name]["shape"]))
    biases = manifest.with_name(f"init_bias_{manifest.stem}.npz")
    if biases.exists():
        stored = np.load(biases)
        ours_by_reference = {v: k for k, v in pairs.items()}
        for name in stored.files:
            ours = state[ours_by_reference[name]].numpy().reshape(stored[name].shape)
            table.forward(f"init {name}", ours, stored[name])
    statistics = manifest.with_name(f"init_stats_{manifest.stem}.json")
    if statistics.exists():
        with open(statistics, encoding="utf-8") as file:
            check_statistics(table, json.load(file), pairs, state)
    return table


def check_statistics(table: Table, stored: Dict[str, Any], pairs: Dict[str, str], state: Dict[str, Tensor]) -> None:
    """Mean, spread and bound of the random initial values: equal up to what chance allows."""
    for ours, theirs in pairs.items():
        if theirs not in stored or not state[ours].is_floating_point():
            continue
        x, (mean, std, absmax) = state[ours].double(), stored[theirs]
        n = x.numel()
        # two independent draws: the means differ by about std*sqrt(2/n), the spreads by less than that
        slack = 6 * std * (2 / n) ** 0.5 + 1e-7
        ours_std = x.std(unbiased=False).item()
        ok = abs(x.mean().item() - mean) <= slack and abs(ours_std - std) <= max(slack, 1e-6)
        if n > 1000:
            ok = ok and 0.6 <= (x.abs().max().item() + 1e-12) / (absmax + 1e-12) <= 1.7
        error = abs(ours_std - std)
        table.row(f"init spread {theirs}", error, error / (std + 1e-30), slack, ok)


def main(arguments: List[str]) -> int:
    if len(arguments) == 3 and arguments[0] == "keys":
        return run_keys(arguments[1], arguments[2])
    if len(arguments) == 2 and arguments[0] not in ("-h", "--help"):
        return run_case(*arguments)
    print(__doc__)
    return 0 if arguments and arguments[0] in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
