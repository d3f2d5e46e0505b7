"""Define the sections of a configuration as frozen dataclasses: model, data, loss, optimiser, the run itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Dict, Literal, Optional, Tuple, get_args

from tpvformer.config.augment import AugmentConfig
from tpvformer.config.detection import DetectionConfig
from tpvformer.config.formats import formats
from tpvformer.config.grids import OCCUPANCY_GRIDS, GridConfig
from tpvformer.config.history import HistoryConfig
from tpvformer.config.label_maps import LabelMapConfig, check_label_map, is_map_file, read_label_map
from tpvformer.config.parts import Part, multiples
from tpvformer.config.ranges import check_model_size, check_section
from tpvformer.config.words import check_words, either
from tpvformer.errors import ConfigError
from tpvformer.labels import LABEL_MAPS, Classes, raw_to_class
from tpvformer.untrusted.names import is_file_name, short

# the fields that are one of a few words; check_words checks them
Norm = Literal["frozen", "batch"]
Plane = Literal["hw", "zh", "wz"]
ViewAttention = Literal["cross_view", "hw"]
Layer = Literal["self_cross", "self"]
Mask = Literal["", "camera", "lidar"]
LossInput = Literal["points", "voxel"]
LovaszInput = Literal["points", "voxel", "none"]
PrecisionSetting = Literal["auto", "fp32", "bf16", "fp16"]
Recompute = Literal["none", "cheap", "blocks"]
OnFault = Literal["stop", "skip"]
Writer = Literal["tensorboard", "wandb"]


@dataclass(frozen=True)
class BackboneConfig:
    """Configure the Caffe-style bottleneck ResNet with DCNv2 in ``dcn_stages`` (stages are numbered 1 to 4)."""

    blocks: Tuple[int, ...] = (3, 4, 23, 3)
    base_width: int = 64
    dcn_stages: Tuple[int, ...] = (3, 4)
    frozen_stages: int = 1  # 0: the stem learns; 1: stem and stage 1 are fixed
    norm: Norm = "frozen"  # "frozen": running statistics, fixed affine (the reference); "batch": ordinary batch norm
    bn3_init: float = 0.0  # scale of a fresh residual branch; a frozen norm with 0 can only be trained from weights

    def __post_init__(self) -> None:
        check_section("model.backbone", self)
        check_words("model.backbone", self)

    @property
    def out_channels(self) -> Tuple[int, int, int]:
        """Channels of stages 2, 3 and 4."""
        return (self.base_width * 8, self.base_width * 16, self.base_width * 32)


@dataclass(frozen=True)
class ModelConfig:
    """Configure a model of either family. ``view_attn`` is "cross_view" (lidar segmentation) or "hw" (occupancy)."""

    grid: GridConfig = field(default_factory=GridConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    planes: Tuple[Plane, ...] = ("hw", "zh", "wz")  # or ("hw",), a bird's-eye view to compare with: view_attn "hw"
    view_attn: ViewAttention = "cross_view"
    num_classes: int = 17
    num_cams: int = 6
    num_levels: int = 4
    dim: int = 64
    ffn_dim: int = 128
    decoder_dim: int = 128
    image_heads: int = 4
    plane_heads: int = 4
    position_dims: Tuple[int, ...] = (24, 24, 16)  # cross_view: channels of h, w, z; hw: of row, column
    layers: Tuple[Layer, ...] = ("self_cross",) * 3 + ("self",) * 2
    pillar_anchors: Tuple[int, ...] = (4, 32, 32)  # image anchors a query of hw, zh, wz has along its pillar
    image_points: Tuple[int, ...] = (4, 32, 32)  # sampling points a level of hw, zh, wz
    plane_points: int = 16  # sampling points a plane
    plane_anchors: int = 16  # cross_view: anchors a query has on the other planes
    plane_init_anchors: int = 16  # cross_view: anchors that the initial offsets assume (8 in dim96)
    plane_init_mode: int = 0  # cross_view: direction rule of the initial offsets
    plane_own_logit: float = 10.0  # cross_view: initial logit of a query's own plane
    dropout: float = 0.1
    image_head: bool = False  # a layer that training alone uses, for loss.image
    detection: Optional[DetectionConfig] = None  # a head for 3-D boxes; it needs loss.detection (docs/detection.md)
    history: Optional[HistoryConfig] = None  # queries read the planes of past frames too (docs/time.md)

    def __post_init__(self) -> None:
        def need(ok: bool, text: str) -> None:
            if not ok:
                raise ConfigError(f"model: {text}")

        check_section("model", self)
        need(
            self.view_attn in get_args(ViewAttention),
            f"view_attn is {short(self.view_attn)}; expected {either(get_args(ViewAttention))}",
        )
        need(
            self.planes in (get_args(Plane), get_args(Plane)[:1]),
            f"planes is {short(self.planes)}; expected all of {', '.join(get_args(Plane))} in this order, or hw alone",
        )
        need(
            self.view_attn == "hw" or len(self.planes) == 3,
            "view_attn 'cross_view' lets planes read each other, but planes is ('hw',) alone; set view_attn to 'hw'",
        )
        parts = {"cross_view": 3, "hw": 2}[self.view_attn]
        need(
            len(self.position_dims) == parts and sum(self.position_dims) == self.dim,
            f"position_dims {short(self.position_dims)} must be {parts} numbers that add up to dim {self.dim}",
        )
        need(self.dim % self.image_heads == 0, f"dim {self.dim} is not divisible by image_heads {self.image_heads}")
        need(self.dim % self.plane_heads == 0, f"dim {self.dim} is not divisible by plane_heads {self.plane_heads}")
        need(
            all(p % a == 0 for p, a in zip(self.image_points, self.pillar_anchors)),
            f"image_points {short(self.image_points)} must be multiples of pillar_anchors {short(self.pillar_anchors)}",
        )
        need(
            all(kind in get_args(Layer) for kind in self.layers),
            f"layers {short(self.layers)} may hold {' and '.join(map(repr, get_args(Layer)))} only",
        )
        need(
            self.view_attn == "hw" or self.plane_points % self.plane_anchors == 0,
            f"plane_points {self.plane_points} must be a multiple of plane_anchors {self.plane_anchors}",
        )
        need(
            self.plane_init_mode == 0 or self.view_attn == "hw" or self.plane_heads == 6,
            f"plane_init_mode 1 needs 6 plane_heads, not {self.plane_heads}",
        )
        check_model_size(self)


@dataclass(frozen=True)
class DataConfig:
    """Configure the data set and its preprocessing. Paths are relative to the working directory, or URLs."""

    # "semantickitti": the three infos below name sequences, such as "00 01 02"; or the name of a data set of one's own
    # that a program has registered (docs/finetune.md)
    format: str = "nuscenes"
    root: str = "data/nuscenes"  # holds samples/ (nuscenes) or sequences/ (semantickitti)
    version: str = "v1.0-trainval"  # folder of nuScenes' tables
    train_infos: str = "data/nuscenes_infos_train.pkl"
    val_infos: str = "data/nuscenes_infos_val.pkl"
    test_infos: str = "data/nuscenes_infos_test.pkl"  # no labels are published for these
    # "nuscenes": classes 0..16; "nuscenes-noIgnore", "occ3d": 17 is empty space; "surroundocc", "semantickitti": 0 is;
    # or a YAML, JSON or CSV file with classes of one's own (docs/finetune.md), which becomes data.classes
    label_map: str = "nuscenes"
    classes: Optional[LabelMapConfig] = None
    ignore_label: int = 0
    fill_label: int = 0  # label of a voxel without points
    # label cells divide the range by n and points are decoded in their middle, as with dense labels always; False: by
    # n - 1 and at the lower corner, as in the published models of points (data/voxels/voxelize.py)
    even_cells: bool = False
    # dense voxel labels: "occ3d", "surroundocc", "semantickitti"; empty: the majority of a voxel's points
    occupancy: str = ""
    occupancy_root: str = "data/occ3d/gts"  # folder of their files
    occupancy_mask: Mask = ""  # voxels that training looks at: "camera", "lidar" (occ3d has these masks), empty: all
    image_scale: float = 1.0
    image_cache: str = ""  # folder for decoded images, 26 MB a sample of nuScenes; empty: decoded each time
    photometric: bool = True
    grid_mask: bool = True
    mirror: bool = False  # training: half of the samples have their images mirrored, and the projection with them
    augment: Optional[AugmentConfig] = None  # training: scenes and images are turned, scaled, mirrored (docs/data.md)
    # training: frames with rare classes are read more often, others less; an epoch stays as long (docs/data.md)
    class_balanced: bool = False
    on_bad_sample: OnFault = "stop"  # or "skip": in training another sample stands in, train.max_skipped times at most
    batch_size: int = 1  # a rank
    # processes that read samples, a rank; null: by its cores and by how long a sample takes (docs/train.md)
    workers: Optional[int] = None

    def __post_init__(self) -> None:
        check_section("data", self)
        check_words("data", self)
        if self.format not in formats():
            raise ConfigError(
                f"data.format is {short(self.format)}; expected {either(formats())}, or a data set that this program "
                "registers (docs/finetune.md)"
            )
        self._check_label_map()
        if self.occupancy not in ("", *OCCUPANCY_GRIDS):
            raise ConfigError(
                f"data.occupancy is {short(self.occupancy)}; expected one of {', '.join(OCCUPANCY_GRIDS)}, or nothing"
            )
        names = (self.format, self.occupancy, *(() if self.classes else (self.label_map,)))
        kitti = [name == "semantickitti" for name in names]
        if any(kitti) and not all(kitti):
            raise ConfigError(
                f"data.format is {self.format}, data.label_map {self.label_map}, data.occupancy "
                f"{short(self.occupancy)}; expected semantickitti in all three or in none"
            )
        if self.occupancy_mask and self.occupancy != "occ3d":
            raise ConfigError("data.occupancy_mask is set, but only data.occupancy=occ3d has masks; leave it empty")

    def _check_label_map(self) -> None:
        """Read the file that ``label_map`` names into ``classes``, and check what both hold. Raises ConfigError."""
        if is_map_file(self.label_map):
            name = PurePath(self.label_map).stem
            if name in LABEL_MAPS or not is_file_name(name):
                raise ConfigError(
                    f"data.label_map {short(self.label_map)}: {short(name)} is the name of a built-in map; write "
                    f"data.label_map={name} for that one, or give the file another name"
                )
            object.__setattr__(self, "classes", read_label_map(self.label_map, self.format))
            object.__setattr__(self, "label_map", name)
        elif self.label_map in LABEL_MAPS:
            object.__setattr__(self, "classes", None)
        elif self.classes is None:
            known = either([*LABEL_MAPS], "a .yaml, .json or .csv file")
            raise ConfigError(f"data.label_map is {short(self.label_map)}; expected {known}")
        else:
            check_label_map(self.classes, f"data.classes of {short(self.label_map)}")

    @property
    def label_classes(self) -> Classes:
        """Return the classes of the label map."""
        return LABEL_MAPS[self.label_map] if self.classes is None else self.classes.known

    @property
    def raw_to_class(self) -> Tuple[int, ...]:
        """Return the class of each raw label of points; empty where a label map of one's own has none."""
        return raw_to_class(self.label_map) if self.classes is None else self.classes.raw

    @property
    def cells_are_even(self) -> bool:
        """Whether the label cells are those of the planes: dense labels know no others."""
        return self.even_cells or bool(self.occupancy)

    def infos(self, split: str) -> str:
        """Return the info file (or sequences) of "train", "val" or "test"."""
        files = {"train": self.train_infos, "val": self.val_infos, "test": self.test_infos}
        if split not in files:
            raise ConfigError(f"split is {split!r}; expected one of {', '.join(files)}")
        return files[split]


@dataclass(frozen=True)
class LossConfig:
    """Configure the losses. Inputs are "points" or "voxel"; ``lovasz_input`` "none" leaves
    Lovász-softmax out."""

    lovasz_input: LovaszInput = "points"
    ce_input: LossInput = "voxel"
    class_weights: Tuple[float, ...] = ()  # of cross-entropy on voxels, one a class; empty: all the same
    affinity: bool = False  # the two scene-class affinity losses on voxels; see engine/losses/affinity.py
    segmentation: float = 1.0  # weight of the losses of points and voxels; 0: boxes alone, labels are not needed
    detection: float = 0.0  # weight of the losses of 3-D boxes; needs model.detection (engine/losses/detection.py)
    image: float = 0.0  # weight of the cross-entropy of single cameras; needs model.image_head (model/image_head.py)
    render: float = 0.0  # weight of the render loss; needs data.occupancy (engine/losses/render.py)
    render_rays: int = 256  # of each camera and from above, a sample and step
    render_samples: int = 64  # places at which a camera's ray reads the voxels
    # of points and voxels, within loss.segmentation
    ce_weight: float = 1.0  # weight of cross-entropy
    lovasz_weight: float = 1.0  # weight of Lovász-softmax
    focal: float = 0.0  # focusing parameter gamma of cross-entropy, such as 2; 0: off (engine/losses/entropy.py)
    label_smoothing: float = 0.0  # share of cross-entropy's target that all classes have alike, such as 0.1; 0: off

    def __post_init__(self) -> None:
        check_section("loss", self)
        if self.lovasz_input not in get_args(LovaszInput):
            words = " or ".join(map(repr, get_args(LovaszInput)))
            raise ConfigError(f"loss.lovasz_input is {short(self.lovasz_input)}; expected {words}")
        check_words("loss", self)
        if (self.class_weights or self.affinity) and self.ce_input != "voxel":
            raise ConfigError("loss.class_weights and loss.affinity are for voxels; set loss.ce_input to voxel")
        lovasz = self.lovasz_weight if self.lovasz_input != "none" else 0.0
        if self.segmentation and not (self.ce_weight or lovasz or self.affinity):
            raise ConfigError(
                "loss.ce_weight is 0 and there is no other loss of points and voxels; set it or loss.lovasz_weight "
                "above 0, or loss.segmentation=0 for boxes alone"
            )


@dataclass(frozen=True)
class OptimConfig:
    """Configure AdamW and the reference's cosine schedule with linear warm-up, both counted in optimiser steps."""

    lr: float = 2e-4
    weight_decay: float = 0.01
    backbone_lr_mult: float = 0.1
    clip_norm: float = 35.0
    warmup_steps: int = 500
    warmup_lr: float = 1e-5
    min_lr: float = 1e-6
    # parts of the model, named as in train.freeze, with their own multiple of lr: "encoder:0.5,detection:2";
    # that of the backbone takes the place of backbone_lr_mult
    lr_mults: str = ""
    # backbone and encoder: each stage or layer has this multiple of the rate of the one after it (docs/train.md)
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        check_section("optim", self)
        multiples(self.lr_mults)

    @property
    def part_mults(self) -> Dict[str, float]:
        """Return the multiple of ``lr`` of the backbone and of each part in ``lr_mults``."""
        return {"backbone": self.backbone_lr_mult, **multiples(self.lr_mults)}


@dataclass(frozen=True)
class TrainConfig:
    """Configure the training run."""

    epochs: int = 24
    print_every: int = 50
    accumulate: int = 1  # batches a step
    # "bf16", "fp16": image network under autocast; geometry, sums and losses stay fp32, and so does attention where its
    # kernels are not Triton's, which take bf16. fp16 scales the loss.
    # "auto": bf16 where the device multiplies it faster than fp32, else fp32 (docs/train.md)
    precision: PrecisionSetting = "auto"
    tf32: bool = True  # what stays fp32 may round its factors to TF32, on cards that have it (docs/train.md)
    # what the backward pass repeats to save memory: none, cheap or blocks; null: cheap in fp32 on a CPU, else none,
    # but the columns of deformable convolutions if all of them take more than a tenth of a card's memory
    recompute: Optional[Recompute] = None
    # torch.compile of the network in training, of its image part on a CPU; says why where that cannot be had.
    # null: true where launching kernels one by one costs more than running them (docs/verification.md)
    compile: Optional[bool] = None
    seed: int = 0
    # parts whose weights stay as loaded, without dropout; all but "detection": the head learns on finished weights
    freeze: Tuple[Part, ...] = ()
    # decay of the average of the weights over the steps (EMA), such as 0.999, which evaluations, best.pth and later
    # commands then use; 0: no average (docs/train.md)
    ema: float = 0.0
    patience: int = 0  # epochs without a better primary metric, after which the run ends; 0: it never ends early
    drop_past: float = 0.1  # share of the samples that train without their past frames; for model.history
    load_from: Optional[str] = "ckpts/r101_dcn_fcos3d_pretrain.pth"
    # checkpoints within an epoch (docs/resume.md): each so many steps, each so many minutes, 0: never
    save_every_steps: int = 0
    save_every_minutes: float = 10.0
    keep_checkpoints: int = 3  # of the newest ones all are kept, of the older ones those of whole epochs
    # when something goes wrong (docs/resume.md)
    on_nonfinite: OnFault = "stop"  # a loss or gradient that is not finite; or "skip": the step changes no weight
    max_skipped: int = 10  # steps, and bad samples, that a run may leave out
    hang_minutes: float = 30.0  # without a step, until the run writes all stacks and ends; 0: never
    writers: Tuple[Writer, ...] = ()  # curves besides metrics.jsonl: "tensorboard", "wandb" (docs/report.md)

    def __post_init__(self) -> None:
        check_section("train", self)
        check_words("train", self)
