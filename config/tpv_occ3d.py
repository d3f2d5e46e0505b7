"""Dense occupancy on Occ3D-nuScenes: 256 channels, three planes of a 100x100x8 grid in the ego frame, read at
200x200x16: 62.8 M parameters.

command   bash test/train_8p.sh --py_config=config/tpv_occ3d.py
          (labels of github.com/Tsinghua-MARS-Lab/Occ3D unpacked into data/occ3d/gts, nuScenes into data/nuscenes)
hardware  8 devices, one sample each
time      24 epochs of 3516 steps
number    not run by this project. Quoted for other configurations of TPVFormer, mIoU of 17 classes within the camera
          mask: 27.83 (arXiv:2304.14365), 39.3 for a TPVFormer lift trained within the camera mask (COTR,
          arXiv:2312.01919). Training within the mask changes the mIoU by about 10, so compare only equal settings.
weights   ckpts/r101_dcn_fcos3d_pretrain.pth initialises the image backbone and, as the width is 256, the FPN

Differences from tpv04_occupancy: the grid, whose planes are read at the labels' resolution over the labels' range, and
the labels, of which none is ignored. The configurations behind the quoted numbers are not published. With
``data.occupancy_mask`` "camera" the loss leaves unobserved voxels out; with "" they count as free.
"""

import dataclasses

from tpvformer.compat import load_config

_tpv04 = load_config("tpv04_occupancy")
config = dataclasses.replace(
    _tpv04,
    name="tpv_occ3d",
    model=dataclasses.replace(
        _tpv04.model,
        grid=dataclasses.replace(
            _tpv04.model.grid,
            scale_w=2,
            scale_h=2,
            scale_z=2,
            pc_range=(-40.0, -40.0, -1.0, 40.0, 40.0, 5.4),
            frame="ego",
        ),
    ),
    data=dataclasses.replace(
        _tpv04.data,
        label_map="occ3d",
        ignore_label=255,  # none: class 0, "others", is taught and evaluated
        occupancy="occ3d",
        occupancy_root="data/occ3d/gts",
        occupancy_mask="camera",
    ),
)
