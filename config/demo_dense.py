"""The demonstration with free space: the demo's network learns dense labels, so that it knows what is empty.

command   tpvformer synth --out data/demo_dense --scenes 1100 --frames 1 --size 224x128 --seed 1 --occupancy
          bash test/train_1p.sh --py_config=config/demo_dense.py
hardware  two CPU cores
time      not run
number    not run. Metrics on unseen streets: sc_iou, ssc_miou and ray_iou, of the grid below alone

Labels are Occ3D's of the street (tpvformer synth --occupancy), in the ego frame. The grid is a part of theirs: voxels
of 0.4 m within 25.6 m of the vehicle. The street's labels are complete, so the loss looks at voxels that no camera
observes, too. Training starts from the weights inside the package, except for the last layer, which has a class more.

With the render loss (engine/losses/render.py), the same otherwise:
          tpvformer train --py-config config/demo_dense.py --work-dir output/demo_dense_render --set loss.render=10
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
