"""Paint lidar points on the images of one sample, to check data before training.

If calibration, images and scans belong together, painted points follow the edges of the objects they lie on. Without
lidar, lines are painted on the ground instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

import numpy as np

from tpvformer.config import OCCUPANCY_GRIDS, Config, DataConfig, GridConfig
from tpvformer.data.augment import augmented_frame
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import format_of, has_labels
from tpvformer.data.frames import read_frame
from tpvformer.data.images.preprocess import MEAN_BGR, network_images
from tpvformer.data.loader import collate
from tpvformer.data.nuscenes.infos.build import build_scene
from tpvformer.data.nuscenes.infos.read import record_of
from tpvformer.data.nuscenes.lidarseg import LabelFiles, label_table
from tpvformer.data.nuscenes.tables import Progress
from tpvformer.data.rig.read import NUSCENES_LIDAR
from tpvformer.data.transforms import frame_of_grid
from tpvformer.data.types import Frame, Sample
from tpvformer.errors import ConfigError
from tpvformer.geometry import inside, lattice, project
from tpvformer.labels import raw_to_class
from tpvformer.viz.ground import paint_ground
from tpvformer.viz.paint import paint_points
from tpvformer.viz.picture import write_png


@dataclass(frozen=True)
class GeometryReport:
    """Count the points in the stored images: depth above 1 m, 0 <= u < width, 0 <= v < height."""

    token: str
    points: int
    in_image: Dict[str, int]  # by camera name
    seen_by_any: int
    seen_by_two_or_more: int
    lost: int = 0  # points of the file without finite coordinates, left out
    no_scan: str = ""  # why the frame has no points

    def lines(self) -> List[str]:
        """Return the report as lines of text."""
        rows = [f"sample {self.token}: {self.points} points, {len(self.in_image)} cameras"]
        rows += [f"  without points: {self.no_scan}"] if self.no_scan else []
        rows += [f"  {self.lost} more points have no finite coordinates and are left out"] if self.lost else []
        rows += [f"  {name:<16} {count:>6} points in the image" for name, count in self.in_image.items()]
        rows.append(f"  seen by any camera {self.seen_by_any}, by two or more {self.seen_by_two_or_more}")
        return rows


def count_points(frame: Frame) -> GeometryReport:
    """Count the frame's points in each camera."""
    seen = []
    for image, matrix in zip(frame.pictures(), frame.lidar2img):
        pixels, depth = project(frame.points, matrix)
        seen.append(inside(pixels, depth, image.shape[0], image.shape[1]))
    cameras = np.sum(seen, axis=0)
    return GeometryReport(
        token=frame.token,
        points=len(frame.points),
        in_image={name: int(mask.sum()) for name, mask in zip(frame.camera_names, seen)},
        seen_by_any=int((cameras > 0).sum()),
        seen_by_two_or_more=int((cameras > 1).sum()),
        lost=frame.lost_points,
        no_scan=frame.no_scan,
    )


def network_view(sample: Sample, cfg: DataConfig) -> List[np.ndarray]:
    """Return the images as the network receives them, as uint8 BGR."""
    images = network_images(collate([sample], cfg.ignore_label), cfg)[0].permute(0, 2, 3, 1).numpy()
    shown = np.clip(images + np.asarray(MEAN_BGR, np.float32), 0, 255)
    return list(np.rint(shown).astype(np.uint8))


def ground_below(frame: Frame, grid: GridConfig) -> Tuple[np.ndarray, Tuple[float, ...]]:
    """Return the transform (4, 4) from the ground below the grid's origin to lidar metres, and the reach of the grid.

    The ground frame is in metres to the right, forwards and upwards. The reach is left, behind, right, front. Without
    lidar2ego the lidar's height is that of nuScenes.
    """
    x0, y0, _, x1, y1, _ = grid.pc_range
    reach = (-y1, x0, -y0, x1) if grid.frame == "ego" else (x0, y0, x1, y1)
    if frame.lidar2ego is None:
        below = np.eye(4)
        below[2, 3] = -NUSCENES_LIDAR[2, 3]
        return below, reach
    ground2ego = NUSCENES_LIDAR.copy()
    ground2ego[:3, 3] = (0, 0, 0) if grid.frame == "ego" else (*frame.lidar2ego[:2, 3], 0)
    return np.linalg.inv(frame.lidar2ego) @ ground2ego, reach


def check_geometry(
    dataset: FrameDataset, cfg: DataConfig, index: int, out: Union[str, Path], augment: bool = False
) -> GeometryReport:
    """Count the points of sample ``index`` in its images and write the painted images to ``out``.

    Points have the colour of their class, or of their distance if no labels were read. Without lidar, the centres of
    labelled voxels replace the points; without dense labels, lines are painted on the ground. ``augment`` paints the
    training view instead of the stored images. Raises ConfigError and DataError.
    """
    if not 0 <= index < len(dataset):
        raise ConfigError(
            f"index is {index}; the infos hold {len(dataset)} samples, so expected 0 to {len(dataset) - 1}"
        )
    frame = dataset.load_frame(index)
    labels = frame.labels if dataset.has_labels else None
    if not dataset.has_points and frame.dense is not None:
        points, labels = voxel_middles(frame.dense.classes, cfg)
        frame = replace(frame, points=points)
    images, lidar2img = frame.pictures(), frame.lidar2img
    if augment:
        sample = dataset.sample(index, augment=True)
        lidar2grid = augmented_frame(frame_of_grid(frame, dataset.grid), sample.augmented)
        images, lidar2img = network_view(sample, cfg), sample.grid2img.numpy() @ lidar2grid
    if len(frame.points):
        classes = cfg.label_classes
        picture = paint_points(images, frame.points, labels, lidar2img, frame.camera_names, classes)
    else:
        ground2lidar, reach = ground_below(frame, dataset.grid)
        picture = paint_ground(images, lidar2img @ ground2lidar, reach, frame.camera_names)
    write_picture(out, picture)
    return count_points(frame)


def voxel_middles(classes: np.ndarray, cfg: DataConfig) -> Tuple[np.ndarray, np.ndarray]:
    """Return centres (P, 3) float32 in metres and classes (P,) of the voxels (X, Y, Z) of an evaluated class."""
    grid = OCCUPANCY_GRIDS[cfg.occupancy]
    cells = np.argwhere(np.isin(classes, cfg.label_classes.evaluated))
    low, pitch = lattice(grid.pc_range, grid.shape)
    return (low + (cells + 0.5) * pitch).astype(np.float32), classes[tuple(cells.T)]


def write_picture(out: Union[str, Path], picture: np.ndarray) -> None:
    """Write a painted picture (H, W, 3) uint8 BGR as PNG. Raises ConfigError if it cannot be written."""
    try:
        write_png(out, picture)
    except OSError as err:
        raise ConfigError(
            f"out is {out}, which cannot be written ({err.strerror}); name a file in a folder of yours"
        ) from err


def paint_frame(config: Config, split: str, index: int, out: Union[str, Path], augment: bool) -> List[str]:
    """Paint frame ``index`` of the configured ``split`` as ``check_geometry`` does; return lines about it.

    Raises ConfigError and DataError.
    """
    labelled = has_labels(config.data, split)
    dataset = FrameDataset(
        config.data, config.model.grid, split, config.train.seed, require_labels=labelled, require_scans=False
    )
    report = check_geometry(dataset, config.data, index, out, augment)
    lines = report.lines() + ([f"  {dataset.camera_note}"] if dataset.camera_note else [])
    colours = "coloured by class" if labelled else "coloured by distance, because there are no lidarseg tables"
    lines.append(
        f"  {out}: {colours if report.points else 'lines on the ground every 10 m, because there is no lidar'}"
    )
    if format_of(dataset.infos, config.data.format).labels == "voxels":
        lines.append("  lidar scans are not read; the points are the middles of labelled voxels, hidden ones too")
    return lines


def paint_sample(
    root: Path, version: str, token: str, out: Union[str, Path], progress: Optional[Progress] = None
) -> List[str]:
    """Paint the points of one sample of a nuScenes download, without info files; return lines about it.

    Points have the colour of their class, or of their distance if there are no lidarseg tables. Raises ConfigError and
    DataError.
    """
    record = record_of(*build_scene(root, version, token, progress))
    file = None
    if label_table(root, version) is not None:
        file = LabelFiles(root, version).find(record.token, Path(record.scan).name)
    frame = read_frame(record, root, file, raw_to_class("nuscenes"))
    labels = None if file is None else frame.labels
    images = list(frame.images.numpy())
    write_picture(out, paint_points(images, frame.points, labels, frame.lidar2img, frame.camera_names))
    colours = "distance, because there are no lidarseg tables" if labels is None else "class"
    return [*count_points(frame).lines(), f"  {out}: coloured by {colours}"]
