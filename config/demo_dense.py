"""The demonstration with free space: the demo's network learns dense labels, so that it knows what is empty.

command   tpvformer synth --out data/demo_dense --scenes 1100 --frames 1 --size 224x128 --seed 1 --occupancy
          tpvformer train --py-config config/demo_dense.py --work-dir output/demo_dense --set loss.render=10
hardware  two cores of an AMD EPYC with AVX2, fp32, with a second training and other programs beside it
time      20 min 31 s (18 min 16 s of CPU time), with a second evaluation (train.ema); 19 min 19 s without the loss
number    on 111 unseen scenes, seeds 0 and 1: RayIoU 40.1, 35.5; SC IoU 60.3, 59.5; SSC mIoU 27.6, 25.2. Without
          --set loss.render=10, the same otherwise: RayIoU 36.9, 31.6; SC IoU 60.9, 58.8; SSC mIoU 29.1, 27.4
          (benchmarks/results/2026-11-30_epyc-avx2-2core-shared_recipe.json). All are of the grid below alone

Labels are Occ3D's of the street (tpvformer synth --occupancy), in the ego frame. The grid is a part of theirs: voxels
of 0.4 m within 25.6 m of the vehicle. The street's labels are complete, so the loss looks at voxels that no camera
observes, too. Training starts from the weights inside the package, except for the last layer, which has a class more.
The render loss (engine/losses/render.py) raises RayIoU and lowers the others (docs/recipe.md), so it is off
unless it is asked for. The weights demo_dense inside the package have it, and are an average (train.ema=0.98).
"""

from dataclasses import replace

from tpvformer.compat import load_config
from tpvformer.config import GridConfig, LossConfig

_demo = load_config("config/demo.py")
_data = "data/demo_dense"
config = replace(
    _demo,
    name="demo_dense",
    model=replace(
        _demo.model,
        grid=GridConfig(
            w=64,
            h=64,
            z=8,
            scale_w=2,
            scale_h=2,
            scale_z=2,
            pc_range=(-25.6, -25.6, -1.0, 25.6, 25.6, 5.4),
            frame="ego",
        ),
        num_classes=18,
        image_head=False,
    ),
    data=replace(
        _demo.data,
        root=_data,
        train_infos=f"{_data}/nuscenes_infos_train.pkl",
        val_infos=f"{_data}/nuscenes_infos_val.pkl",
        label_map="occ3d",
        ignore_label=255,  # none
        fill_label=17,
        occupancy="occ3d",
        occupancy_root=f"{_data}/gts",
    ),
    loss=LossConfig(lovasz_input="none", ce_input="voxel", affinity=True),
    optim=replace(_demo.optim, lr=3e-3),
    train=replace(_demo.train, load_from="demo"),
)
