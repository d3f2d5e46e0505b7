"""The whole pipeline in seconds on a CPU, with special cases: W != H != Z, batches of two samples with different
numbers of points, images that need padding, a class that does not occur in training (bus, with this seed). The 16
training samples are one step of eight processes.

command   tpvformer synth --out data/debug --scenes 4 --frames 8 --size 152x90 --seed 25
          bash test/train_1p.sh --py_config=config/debug.py
hardware  2 CPU cores, shared with other work
time      5 s for the data, 20 s for two epochs of eight steps with their evaluations
number    none; it shows that everything runs, not that it learns

It uses fp32 on every device, because devices, kernels, resumed runs and exported models are compared with it.
"""

from tpvformer.config import BackboneConfig, Config, DataConfig, GridConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    name="debug",
    model=ModelConfig(
        grid=GridConfig(w=18, h=14, z=5, pc_range=(-48.0, -40.0, -5.0, 48.0, 40.0, 3.0)),
        backbone=BackboneConfig(blocks=(1, 1, 1, 1), base_width=8, frozen_stages=0, norm="batch", bn3_init=0.2),
        dim=16,
        ffn_dim=32,
        decoder_dim=32,
        image_heads=2,
        plane_heads=4,
        position_dims=(6, 6, 4),
        layers=("self_cross", "self"),
        pillar_anchors=(2, 4, 4),
        image_points=(2, 4, 4),
        plane_points=4,
        plane_anchors=4,
        plane_init_anchors=4,
    ),
    data=DataConfig(
        root="data/debug",
        version="v1.0-mini",
        train_infos="data/debug/nuscenes_infos_train.pkl",
        val_infos="data/debug/nuscenes_infos_val.pkl",
        batch_size=2,
        workers=0,
    ),
    optim=OptimConfig(lr=1e-3, backbone_lr_mult=1.0, clip_norm=5.0, warmup_steps=2),
    train=TrainConfig(epochs=2, print_every=1, precision="fp32", load_from=None),
)
