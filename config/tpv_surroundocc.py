"""Dense occupancy on SurroundOcc's labels: 256 channels, three planes of a 100x100x8 grid read at 200x200x16: 62.8 M
parameters.

command   bash test/train_8p.sh --py_config=config/tpv_surroundocc.py
          (labels of github.com/weiyithu/SurroundOcc unpacked into data/nuscenes_occ, nuScenes into data/nuscenes)
hardware  8 devices, one sample each
time      24 epochs of 3516 steps
number    not run by this project. Quoted for another configuration of TPVFormer trained on these labels: SC IoU 30.86,
          SSC mIoU 17.10; trained on lidar labels: 11.51 and 11.66 (arXiv:2303.09551)
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone and, as the width is 256, the FPN

Differs from tpv04_occupancy in the grid, whose planes are read at the labels' resolution over the labels' range, and in
the labels. The configuration behind the quoted numbers is not published.
"""

import dataclasses

from tpvformer.compat import load_config

_tpv04 = load_config("tpv04_occupancy")
config = dataclasses.replace(
    _tpv04,
    name="tpv_surroundocc",
    model=dataclasses.replace(
        _tpv04.model,
        grid=dataclasses.replace(
            _tpv04.model.grid, scale_w=2, scale_h=2, scale_z=2, pc_range=(-50.0, -50.0, -5.0, 50.0, 50.0, 3.0)
        ),
    ),
    # ignored is 0, noise; what the label files do not list is empty, 17
    data=dataclasses.replace(_tpv04.data, occupancy="surroundocc", occupancy_root="data/nuscenes_occ"),
)
