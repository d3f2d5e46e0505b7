"""Paint lidar points on the images of one sample, to check data before training: ``tpvformer check-geometry``.

If calibration, images and scans belong together, painted points follow the edges of the objects they lie on. Without
lidar, lines are painted on the ground instead.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Tuple, Union

import numpy as np

from tpvformer.compat.config_file import load_config
from tpvformer.config import OCCUPANCY_GRIDS, Config, DataConfig, GridConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.formats import format_of, has_labels
from tpvformer.data.images.preprocess import MEAN_BGR, network_images
from tpvformer.data.loader import collate
from tpvformer.data.rig.read import NUSCENES_LIDAR
from tpvformer.data.transforms import frame_of_grid
from tpvformer.data.types import Frame, Sample
from tpvformer.errors import ConfigError
from tpvformer.labels import classes_of
from tpvformer.viz.ground import paint_ground
from tpvformer.viz.paint import paint_points
from tpvformer.viz.picture import write_png
from tpvformer.viz.project import inside, project


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
        images, lidar2img = network_view(sample, cfg), sample.grid2img.numpy() @ frame_of_grid(frame, dataset.grid)
    if len(frame.points):
        classes = classes_of(cfg.label_map)
        picture = paint_points(images, frame.points, labels, lidar2img, frame.camera_names, classes)
    else:
        ground2lidar, reach = ground_below(frame, dataset.grid)
        picture = paint_ground(images, lidar2img @ ground2lidar, reach, frame.camera_names)
    write_picture(out, picture)
    return count_points(frame)


def voxel_middles(classes: np.ndarray, cfg: DataConfig) -> Tuple[np.ndarray, np.ndarray]:
    """Return centres (P, 3) float32 in metres and classes (P,) of the voxels (X, Y, Z) of an evaluated class."""
    grid = OCCUPANCY_GRIDS[cfg.occupancy]
    cells = np.argwhere(np.isin(classes, classes_of(cfg.label_map).evaluated))
    low, high = np.array(grid.pc_range[:3]), np.array(grid.pc_range[3:])
    return (low + (cells + 0.5) * (high - low) / grid.shape).astype(np.float32), classes[tuple(cells.T)]


def write_picture(out: Union[str, Path], picture: np.ndarray) -> None:
    """Write a painted picture (H, W, 3) uint8 BGR as PNG. Raises ConfigError if it cannot be written."""
    try:
        write_png(out, picture)
    except OSError as err:
        raise ConfigError(
            f"out is {out}, which cannot be written ({err.strerror}); name a file in a folder of yours"
        ) from err


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--py-config", metavar="CONFIG", help="configuration whose data section is used (default: the default settings)"
    )
    parser.add_argument(
        "--infos", "--rig", metavar="PATH", help="info file; rig file or its folder (default: the configuration's)"
    )
    parser.add_argument(
        "--root", metavar="DIR", help="folder of samples/, or of the files themselves (default: the configuration's)"
    )
    parser.add_argument("--version", help="name of the table folder below the root (default: the configuration's)")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="which set (default: %(default)s)")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="number of the frame (default: %(default)s)")
    parser.add_argument("--augment", action="store_true", help="paint the images as training shows them")
    parser.add_argument("--out", default="out/geometry.png", metavar="FILE", help="the picture (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    config = load_config(args.py_config) if args.py_config else Config(name="check-geometry")
    given = {"root": args.root, "version": args.version, f"{args.split}_infos": args.infos}
    data = replace(config.data, **{name: value for name, value in given.items() if value is not None})
    labelled = has_labels(data, args.split)
    dataset = FrameDataset(
        data, config.model.grid, args.split, config.train.seed, require_labels=labelled, require_scans=False
    )
    report = check_geometry(dataset, data, args.index, args.out, args.augment)
    print("\n".join(report.lines()))
    if dataset.camera_note:
        print(f"  {dataset.camera_note}")
    colours = "coloured by class" if labelled else "coloured by distance, because there are no lidarseg tables"
    print(f"  {args.out}: {colours if report.points else 'lines on the ground every 10 m, because there is no lidar'}")
    if format_of(dataset.infos, data.format).labels == "voxels":
        print("  lidar scans are not read; the points are the middles of labelled voxels, hidden ones too")
    return 0
