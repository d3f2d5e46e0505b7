"""Read SemanticKITTI: sequences with one colour camera and a voxel grid of labels (Behley et al., ICCV 2019,
arXiv:1904.01416; calibration as the KITTI odometry benchmark has it).

These files below ``data.root`` are read::

    sequences/08/calib.txt              P2: 3x4, camera 0 -> pixels of image_2; Tr: 3x4, lidar -> camera 0
    sequences/08/image_2/000005.png     colour, 1226x370 or a little more
    sequences/08/voxels/000005.bin      its name selects a frame (every fifth); its content is not used
    sequences/08/voxels/000005.label    uint16 for each of 256x256x32 voxels, C order (x, y, z)
    sequences/08/voxels/000005.invalid  one bit a voxel, first voxel in the highest bit: never observed

lidar frame: x forward, y left, z up. Lidar scans are not read, so a frame has no points.
"""

from __future__ import annotations

from pathlib import Path
from typing import List, Tuple, Union

import numpy as np
from torch import Tensor

from tpvformer.config import OCCUPANCY_GRIDS
from tpvformer.data.record import Record
from tpvformer.data.types import DenseLabels
from tpvformer.errors import DataError
from tpvformer.geometry import is_degenerate
from tpvformer.labels import KITTI_RAW, KITTI_UNKNOWN

CAMERA = "image_2"
CROP = (370, 1220)  # rows, columns: the images of all sequences are cut to it, so that they can share a batch
VOXELS = OCCUPANCY_GRIDS["semantickitti"].shape
_COUNT = int(np.prod(VOXELS))
NO_LABEL = 254  # in a table of classes: a raw label that SemanticKITTI does not define
_CLASS_OF = np.full(1 << 16, NO_LABEL, np.uint8)
_CLASS_OF[list(KITTI_RAW)] = list(KITTI_RAW.values())


def load_sequences(root: Union[str, Path], sequences: str) -> List[Record]:
    """Return the frames of ``sequences`` ("00 01 02") that have voxels, in order; a record's scene is its sequence.

    Raises DataError for a sequence that is missing, has no voxels, lacks an image or has an unusable calibration.
    """
    records: List[Record] = []
    for sequence in sequences.split():
        folder = Path(root, "sequences", sequence)
        if not folder.is_dir():
            raise DataError(
                f"{folder} is no folder; set data.root ({root}) to the folder that holds sequences/, and the "
                "data.*_infos to sequences such as '00 01 02'"
            )
        lidar2img = read_calibration(folder / "calib.txt")[None]
        frames = sorted(path.stem for path in (folder / "voxels").glob("*.bin"))
        if not frames:
            raise DataError(f"{folder / 'voxels'} holds no *.bin; unpack SemanticKITTI's voxel data there")
        images = {path.name for path in (folder / CAMERA).glob("*.png")}
        for frame in frames:
            token, image = f"{sequence}/{frame}", folder / CAMERA / f"{frame}.png"
            if image.name not in images:
                raise DataError(f"sample {token}: {image} is missing; unpack KITTI odometry's colour images there")
            records.append(Record(token, "", (CAMERA,), (str(image),), lidar2img, sequence, crop=CROP))
    if not records:
        raise DataError("no sequence is named; set the data.*_infos to some, such as '00 01 02'")
    return records


def read_calibration(path: Path) -> np.ndarray:
    """Read lidar2img (4, 4) float64 = P2 @ Tr: homogeneous lidar metres -> (u * depth, v * depth, depth, 1), pixels.

    All of P2 is used: its last column is the offset of camera 2 from camera 0 (6 cm). Without it, points 10 m away
    move by 4 pixels. Raises DataError for lines that are missing or do not hold 12 numbers.
    """
    try:
        lines = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path} cannot be read ({err}); copy KITTI odometry's calibration there") from err
    matrices = []
    for name in ("P2", "Tr"):
        try:
            numbers = np.array(lines[name].split(), np.float64).reshape(3, 4)
        except (KeyError, ValueError) as err:
            raise DataError(f"{path}: expected a line '{name}:' with 12 numbers; copy the file again") from err
        matrices.append(np.vstack([numbers, [0, 0, 0, 1]]))
    lidar2img: np.ndarray = matrices[0] @ matrices[1]
    if is_degenerate(lidar2img[None]).any():
        raise DataError(f"{path}: P2 and Tr do not make a usable projection; copy the file again")
    return lidar2img


def crop(images: Tensor, token: str, size: Tuple[int, int] = CROP) -> Tensor:
    """Return the upper left ``size`` (rows, columns) of images (N, H, W, 3); their projections stay as they are.

    Raises DataError for smaller images.
    """
    height, width = images.shape[1:3]
    if height < size[0] or width < size[1]:
        raise DataError(
            f"sample {token}: the image is {width}x{height}; expected {size[1]}x{size[0]} or more, as KITTI odometry "
            "publishes it, because calib.txt holds for that size alone"
        )
    return images[:, : size[0], : size[1]].contiguous()


def read_voxels(path: Path, token: str, class_of: np.ndarray = _CLASS_OF) -> DenseLabels:
    """Read the classes (X, Y, Z) of a ``.label`` file; 255 where ``.invalid`` marks a voxel or its label has no class.

    class_of (65536,) uint8: the class of each raw label, ``NO_LABEL`` for one that the data set does not define.
    Raises DataError for files that are missing, of another size, or hold a label that the data set does not define.
    """
    raw = np.frombuffer(_read(path, 2 * _COUNT, token), "<u2")
    bits = np.frombuffer(_read(path.with_suffix(".invalid"), _COUNT // 8, token), np.uint8)
    classes = class_of[raw]
    if (classes == NO_LABEL).any():
        raise DataError(
            f"sample {token}: {path} holds label {raw[classes == NO_LABEL][0]}, which SemanticKITTI does not define; "
            "expected its raw labels, not remapped ones: copy the file again"
        )
    classes[np.unpackbits(bits).astype(bool)] = KITTI_UNKNOWN
    return DenseLabels(classes.reshape(VOXELS), None)


def _read(path: Path, size: int, token: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as err:
        raise DataError(
            f"sample {token}: {path} cannot be read ({err.strerror}); unpack SemanticKITTI's voxel data there"
        ) from err
    if len(content) != size:
        raise DataError(
            f"sample {token}: {path} has {len(content)} bytes; expected {size} for {'x'.join(map(str, VOXELS))} "
            "voxels, so it is cut short or of another grid: copy it again"
        )
    return content
