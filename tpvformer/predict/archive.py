"""Write and read the archives of ``tpvformer predict``: one .npz file a frame, whose arrays docs/rig.md lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Dict, Mapping, Optional, Tuple, get_args

from tpvformer.data.types import Frame, Sample  # and PyTorch, before OpenCV: see "static TLS" in docs/ascend.md

# isort: split
import cv2
import numpy as np

from tpvformer.config.grids import Axes
from tpvformer.config.words import either
from tpvformer.data.detection.boxes import Boxes
from tpvformer.data.transforms import frame_of_grid
from tpvformer.errors import DataError
from tpvformer.files import atomic_file
from tpvformer.geometry import transform_points
from tpvformer.labels import Classes
from tpvformer.predict.box_arrays import PREDICTED, TRUE, box_arrays, observed, read_boxes, read_names
from tpvformer.predict.checked_arrays import CheckedArrays, jpeg_width
from tpvformer.predict.remembered import Sight, seen_only_before
from tpvformer.viz.frame_prediction import CameraView, FramePrediction

if TYPE_CHECKING:
    from tpvformer.config import Config
    from tpvformer.predict.encoded_frame import FrameClasses

STORED_WIDTH, STORED_QUALITY = 800, 80  # of the pictures kept beside a result: pixels, JPEG quality
MAX_VOXELS = 1 << 24
MAX_POINTS = 1 << 22
MAX_CAMERAS = 32


def archive_arrays(
    frame: Frame,
    sample: Sample,
    classes: FrameClasses,
    config: Config,
    scene: str = "",
    number: int = 0,
    sight: Optional[Sight] = None,
) -> Dict[str, np.ndarray]:
    """Return the arrays of one frame, as docs/rig.md lists them: the prediction, and what a viewer shows beside it.

    ``sight``: of a frame whose model read past frames.
    """
    arrays = _predicted(frame, classes, config)
    if sight is not None:
        arrays["remembered"] = seen_only_before(sight, config.model.grid).astype(np.uint8)
    if classes.boxes is not None:
        arrays.update(box_arrays(in_lidar_frame(classes.boxes, frame, config), PREDICTED))
    arrays.update(_around(frame, sample, config), scene=np.array(scene), number=np.array(number))
    return arrays


def in_lidar_frame(boxes: Boxes, frame: Frame, config: Config) -> Boxes:
    """Return boxes of the grid's frame in the lidar frame."""
    grid = config.model.grid
    return boxes if grid.frame == "lidar" else boxes.transformed(np.linalg.inv(frame_of_grid(frame, grid)))


def _predicted(frame: Frame, classes: FrameClasses, config: Config) -> Dict[str, np.ndarray]:
    grid = config.model.grid
    arrays = {
        "token": np.array(frame.token),
        "voxels": classes.voxel_labels.astype(np.uint8),
        "confidence": classes.confidence,
        "pc_range": np.array(grid.pc_range),
        "frame": np.array(grid.frame),
        "class_names": np.array(config.data.label_classes.names),
    }
    if config.data.classes is not None:
        arrays.update(_class_arrays(config.data.label_classes))
    if len(frame.points):
        arrays.update(points=frame.points, point_labels=classes.point_labels.astype(np.uint8))
    return arrays


def _class_arrays(own: Classes) -> Dict[str, np.ndarray]:
    """Return the colours of a label map of one's own, its evaluated classes, and the class of free space."""
    count = len(own.names)
    return {
        "class_colors": np.array(own.colors[:count], np.uint8),
        "class_evaluated": np.isin(np.arange(count), own.evaluated).astype(np.uint8),
        "class_empty": np.array(own.empty),  # as many as there are classes: none of them
    }


def _classes(arrays: CheckedArrays, names: Tuple[str, ...]) -> Optional[Classes]:
    """Return the classes that ``_class_arrays`` stored; None where an archive has none. Raises DataError."""
    colors = arrays.maybe("class_colors", "whole numbers", (len(names), 3))
    if colors is None:
        return None
    evaluated = arrays.take("class_evaluated", "whole numbers", (len(names),))
    empty = int(arrays.take("class_empty", "whole numbers", ()))
    if empty > len(names) or not evaluated.any():
        raise DataError(f"{arrays.path}: class_colors, class_evaluated or class_empty do not fit; make the file again")
    palette = [(int(r), int(g), int(b)) for r, g, b in colors.astype(np.uint8)]
    if empty == len(names):
        palette.append((255, 255, 255))
    return Classes(names, tuple(np.flatnonzero(evaluated).tolist()), empty, tuple(palette))


def _around(frame: Frame, sample: Sample, config: Config) -> Dict[str, np.ndarray]:
    """Return small images, their projections, and the voxels that hold points."""
    grid, pictures = config.model.grid, frame.pictures()
    lidar2grid = np.eye(4) if grid.frame == "lidar" else frame_of_grid(frame, grid)
    points = transform_points(frame.points, lidar2grid)
    inside = ((points >= grid.pc_range[:3]) & (points < grid.pc_range[3:])).all(1)  # others were moved to the border
    arrays = {
        "lidar2grid": lidar2grid,
        "camera_names": np.array(frame.camera_names),
        "lidar2img": frame.lidar2img,
        "image_sizes": np.array([(picture.shape[1], picture.shape[0]) for picture in pictures]),
    }
    if len(points):
        arrays["scanned"] = np.unique(sample.grid_index.numpy()[inside], axis=0).astype(np.uint16)
    for i, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        if width > STORED_WIDTH:
            size = (STORED_WIDTH, max(1, round(height * STORED_WIDTH / width)))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        arrays[f"image_{i}"] = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, STORED_QUALITY))[1].ravel()
    return arrays


def truth_arrays(
    frame: Frame, classes: FrameClasses, scanned: Optional[np.ndarray], config: Config, point_labels: bool
) -> Dict[str, np.ndarray]:
    """Return the labels of the data set: of voxels, with ``point_labels`` of points, and the boxes, if it has them.

    Labels of voxels that points voted for are kept only where there are points; ``scanned`` is the array of that name.
    """
    voxels = classes.true_voxels.astype(np.uint8)
    if frame.dense is None:
        voted = np.full_like(voxels, config.data.fill_label)
        at = tuple(np.zeros((3, 0), np.int64) if scanned is None else scanned.T.astype(np.int64))
        voted[at] = voxels[at]
        voxels = voted
    arrays = {"true_voxels": voxels}
    if point_labels and len(frame.points):
        arrays["true_point_labels"] = frame.labels
    return {**arrays, **box_arrays(observed(frame.boxes), TRUE)}


def archive_path(folder: Path, token: str) -> Path:
    """Return the archive of a frame in ``folder``. Raises DataError for a token that cannot be a file's name."""
    if not _names_a_file(token):
        raise DataError(f"sample {token}: its token cannot be the name of a file; give it another in its info file")
    return folder / f"{token}.npz"


def _names_a_file(token: str) -> bool:
    return bool(token) and not token.startswith(".") and not set(token) & set("/\\\0")


def write_archive(path: Path, arrays: Dict[str, np.ndarray]) -> None:
    """Write what ``archive_arrays`` and ``truth_arrays`` returned. Raises ConfigError where it cannot be written."""
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)  # ty: ignore[invalid-argument-type]  # its stub takes them for options


def frame_prediction(stored: Mapping[str, np.ndarray], path: Optional[Path] = None) -> FramePrediction:
    """Return the frame that the arrays of an archive hold; messages name ``path``, or the token without one.

    The arrays may be a stranger's. Raises DataError for one that is missing or does not fit.
    """
    path = Path(str(stored.get("token", ""))) if path is None else path
    arrays = CheckedArrays(path, stored)
    voxels = arrays.take("voxels", "whole numbers", (None, None, None), required=True).astype(np.uint8)
    if not 0 < voxels.size <= MAX_VOXELS:
        raise DataError(f"{path}: voxels have shape {voxels.shape}; expected 1 to {MAX_VOXELS} of them")
    names = arrays.take("class_names", "text", (None,), required=True)
    if len(names) > 256:
        raise DataError(f"{path}: has {len(names)} class_names; expected 256 at most")
    pc_range = arrays.take("pc_range", "numbers", (6,), required=True).astype(np.float64)
    if not (pc_range[:3] < pc_range[3:]).all():
        raise DataError(f"{path}: pc_range is {pc_range.tolist()}; expected low x, y, z, then higher x, y, z")
    frame = arrays.text("frame", "lidar")
    if frame not in get_args(Axes):
        raise DataError(f"{path}: frame is {frame[:40]!r}; expected {either(get_args(Axes))}")
    points = arrays.take("points", "numbers", (None, 3), np.empty((0, 3))).astype(np.float32)
    if len(points) > MAX_POINTS:
        raise DataError(f"{path}: holds {len(points)} points; expected {MAX_POINTS} at most")
    labels = arrays.take("point_labels", "whole numbers", (len(points),), np.empty(0), required=bool(len(points)))
    for kind, values in (("voxels", voxels), ("point_labels", labels)):
        if values.size and values.max() >= len(names):
            raise DataError(f"{path}: {kind} hold class {int(values.max())}, but there are {len(names)} class_names")
    kinds = tuple(str(name)[:80] for name in names)
    shape = voxels.shape
    confidence = arrays.maybe("confidence", "numbers", shape)
    true_voxels = arrays.maybe("true_voxels", "whole numbers", shape)
    true_labels = arrays.maybe("true_point_labels", "whole numbers", (len(points),))
    lidar2grid = arrays.take("lidar2grid", "numbers", (4, 4), np.eye(4)).astype(np.float64)
    if abs(np.linalg.det(lidar2grid)) < 1e-6:
        raise DataError(f"{path}: lidar2grid has no inverse; expected a rigid transform")
    box_names = read_names(arrays)
    token = arrays.text("token", path.stem)
    if not _names_a_file(token):
        raise DataError(f"{path}: its token cannot be the name of a file; expected letters, digits and the like")
    return FramePrediction(
        token=token,
        scene=arrays.text("scene", ""),
        number=int(arrays.take("number", "whole numbers", (), np.array(0))),
        voxels=voxels,
        confidence=confidence,
        pc_range=tuple(pc_range.tolist()),
        frame=frame,
        class_names=kinds,
        classes=_classes(arrays, kinds),
        points=points,
        point_labels=labels.astype(np.uint8),
        lidar2grid=lidar2grid,
        cameras=_cameras(arrays),
        scanned=_scanned(arrays, shape),
        remembered=_remembered(arrays, shape),
        true_voxels=None if true_voxels is None else true_voxels.astype(np.uint8),
        true_point_labels=None if true_labels is None else true_labels.astype(np.uint8),
        boxes=read_boxes(arrays, PREDICTED, len(box_names)),
        true_boxes=read_boxes(arrays, TRUE, len(box_names)),
        box_names=box_names,
    )


def _scanned(arrays: CheckedArrays, shape: Tuple[int, ...]) -> Optional[np.ndarray]:
    rows = arrays.maybe("scanned", "whole numbers", (None, 3))
    if rows is None:
        return None
    if len(rows) and (rows.max(axis=0) >= shape).any():
        raise DataError(f"{arrays.path}: scanned names voxels outside of {shape}; make the file again")
    scanned = np.zeros(shape, bool)
    scanned[tuple(rows.T.astype(np.int64))] = True
    return scanned


def _remembered(arrays: CheckedArrays, shape: Tuple[int, ...]) -> Optional[np.ndarray]:
    mask = arrays.maybe("remembered", "whole numbers", shape)
    if mask is None:
        return None
    if mask.size and mask.max() > 1:
        raise DataError(f"{arrays.path}: remembered holds {int(mask.max())}; expected 0 and 1")
    return mask.astype(bool)


def _cameras(arrays: CheckedArrays) -> Tuple[CameraView, ...]:
    names = arrays.maybe("camera_names", "text", (None,))
    if names is None:
        return ()
    if len(names) > MAX_CAMERAS:
        raise DataError(f"{arrays.path}: has {len(names)} cameras; expected {MAX_CAMERAS} at most")
    matrices = arrays.take("lidar2img", "numbers", (len(names), 4, 4)).astype(np.float64)
    sizes = arrays.take("image_sizes", "whole numbers", (len(names), 2)).astype(int)
    views = []
    for i, name in enumerate(names):
        jpeg = arrays.take(f"image_{i}", "whole numbers", (None,)).astype(np.uint8)
        stored = jpeg_width(jpeg)
        if stored == 0 or sizes[i].min() < 1:
            raise DataError(f"{arrays.path}: image_{i} is no JPEG; make the file again")
        views.append(
            CameraView(str(name)[:80], jpeg.tobytes(), (int(sizes[i][0]), int(sizes[i][1])), matrices[i], stored)
        )
    return tuple(views)
