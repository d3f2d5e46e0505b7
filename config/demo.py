"""The demonstration: TPVFormer learns from random weights on a synthetic street, on two CPU cores.

command   make demo
          (tpvformer synth, then bash test/train_1p.sh --py_config=config/demo.py)
hardware  2 cores of an Intel Xeon (AVX-512, AMX), nothing else running, on a shared host
time      6 min 24 s in bf16 (train.precision=auto), of which 4 min 54 s are the launcher's (989 frames, each seen once)
number    62.5 % point mIoU on 111 unseen scenes (61.1 to 63.6 over scenes), 11.8 with the cameras exchanged, 15.3 by
          colour alone; miou_small, of bicycle, pedestrian and cone: 26.3. One run
          (benchmarks/results/2026-11-30_xeon-amx-2core-shared_demo.json). On the street before generator 5, where
          nothing moved: 64.3 in 5 min 29 s on an AMD EPYC (Zen 4), miou_small 35.5

It differs from the published models in size and in its image network: no pre-trained weights are loaded, so batch norm
is trained and nothing is frozen (with the reference's frozen norms every residual branch of a new network stays at
zero). A thousand steps are enough, as measured (benchmarks/results/2026-11-29_amd-epyc-2core_demo_recipe.json), because
the image network has a loss of its own (loss.image), label cells are the planes' cells and half as wide, points are
decoded at the centre of their voxel, the learning rate is high, images are small, and every frame is used once.
"""

from tpvformer.config import (
    BackboneConfig,
    Config,
    DataConfig,
    GridConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

config = Config(
    name="demo",
    model=ModelConfig(
        grid=GridConfig(w=64, h=64, z=8, scale_w=2, scale_h=2, pc_range=(-32.0, -32.0, -2.2, 32.0, 32.0, 1.8)),
        backbone=BackboneConfig(blocks=(2, 2, 2, 1), base_width=32, frozen_stages=0, norm="batch", bn3_init=0.2),
        dim=32,
        ffn_dim=64,
        decoder_dim=64,
        image_heads=2,
        plane_heads=2,
        position_dims=(12, 12, 8),
        layers=("self_cross",) * 2,
        pillar_anchors=(8, 16, 16),
        image_points=(8, 16, 16),
        plane_points=8,
        plane_anchors=8,
        plane_init_anchors=8,
        plane_own_logit=3.0,
        dropout=0.0,
        image_head=True,
    ),
    data=DataConfig(
        root="data/demo",
        version="v1.0-mini",
        train_infos="data/demo/nuscenes_infos_train.pkl",
        val_infos="data/demo/nuscenes_infos_val.pkl",
        even_cells=True,
        photometric=False,
        grid_mask=False,
        workers=1,
    ),
    loss=LossConfig(image=1.0),
    optim=OptimConfig(lr=4e-3, backbone_lr_mult=1.0, clip_norm=5.0, warmup_steps=60),
    train=TrainConfig(epochs=1, print_every=50, recompute="none", load_from=None),
)
