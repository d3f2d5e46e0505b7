"""Make random inputs for measurements: noise in the cameras of a nuScenes car, and a lidar turn on a street.

Properties that affect speed are realistic: the queries that a camera sees, the points of a voxel, the number of
classes, and sampling positions between pixels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Optional, Tuple

import numpy as np
import torch
from torch import nn

from tpvformer.config import OCCUPANCY_GRIDS, Config
from tpvformer.data.augment import Augmentation
from tpvformer.data.detection.boxes import DETECTION_CLASSES, Boxes
from tpvformer.data.detection.targets import BoxMap, draw_targets
from tpvformer.data.loader import ListRows, collate
from tpvformer.data.nuscenes.occupancy import HAS_MASKS, HAS_RAYS
from tpvformer.data.street.rig import BEAMS, CAMERAS, LIDAR_CHANNEL, LIDAR_TRANSLATION, beam_elevations, sensor_poses
from tpvformer.data.transforms import make_sample
from tpvformer.data.types import CAMERA_BIT, LIDAR_BIT, Batch, DenseLabels, Frame, PastSample, Sample
from tpvformer.model.backbone import ModulatedDeformConv3x3

SIZE = (1600, 900)  # width, height of nuScenes images
POINTS = 34_720  # points of a full lidar turn
STEP = 4.0  # metres that a vehicle drives between two key frames
BOXES = 40  # annotated objects of a frame
GROUND_LABEL = 11  # driveable surface
SECTORS = 60  # horizontal sectors, one obstacle in each
NEAREST, FARTHEST, TALLEST = 5.0, 60.0, 12.0  # metres: distance and height of the obstacles
DEPTH = 1.5  # metres: how far a ray enters an obstacle (foliage, parked cars)


def nuscenes_rig(size: Tuple[int, int], cameras: int = len(CAMERAS)) -> np.ndarray:
    """Return lidar2img (cameras, 4, 4) float64 of a nuScenes car: lidar metres to pixels of a ``size`` (W, H) image."""
    poses = sensor_poses()
    matrices = []
    for i in range(cameras):
        camera = CAMERAS[i % len(CAMERAS)]
        to_pixels = np.eye(4)
        to_pixels[:3, :3] = camera.intrinsic(size)
        matrices.append(to_pixels @ np.linalg.inv(poses[camera.channel]) @ poses[LIDAR_CHANNEL])
    return np.stack(matrices)


def lidar_turn(count: int, rng: np.random.RandomState) -> Tuple[np.ndarray, np.ndarray]:
    """Return a lidar turn among obstacles on flat ground: points (count, 3) float32, metres, lidar frame, and labels.

    Rays without a hit give points near the origin, as in the real files. A turn of 34,720 points falls into about as
    many voxels as a real one; the tests check that.
    """
    turn = np.repeat(np.linspace(0, 2 * math.pi, -(-count // BEAMS), endpoint=False), BEAMS)[:count]
    elevation = np.tile(beam_elevations(), -(-count // BEAMS))[:count]
    sector = (turn / (2 * math.pi) * SECTORS).astype(int)
    wall = np.exp(rng.uniform(math.log(NEAREST), math.log(FARTHEST), SECTORS))[sector] + rng.uniform(0, DEPTH, count)
    top = rng.uniform(0, TALLEST, SECTORS)[sector]
    height = LIDAR_TRANSLATION[2]  # of the sensor above the ground
    with np.errstate(divide="ignore"):
        ground = np.where(elevation < 0, height / np.tan(np.maximum(-elevation, 0)), np.inf)
    hits_wall = (wall < ground) & (height + wall * np.tan(elevation) < top)
    distance = np.where(hits_wall, wall, ground) + rng.uniform(-0.02, 0.02, count)
    nothing = distance > 100
    distance = np.where(nothing, 0.1, distance)
    points = np.stack([distance * np.cos(turn), distance * np.sin(turn), distance * np.tan(elevation)], 1)
    labels = np.where(hits_wall, 1 + sector % 16, GROUND_LABEL)
    return points.astype(np.float32), np.where(nothing, 0, labels).astype(np.uint8)


def random_frame(size: Tuple[int, int], points: int, cameras: int, rng: np.random.RandomState) -> Frame:
    """Return a frame as the reader does, with noise images of ``size`` (W, H) and a lidar turn."""
    cloud, labels = lidar_turn(points, rng)
    images = torch.from_numpy(rng.randint(0, 256, (cameras, size[1], size[0], 3), dtype=np.uint8))
    return Frame("random", images, [c.channel for c in CAMERAS], nuscenes_rig(size, cameras), cloud, labels)


def random_boxes(config: Config, rng: np.random.RandomState) -> Boxes:
    """Return BOXES boxes on the grid, as large as cars."""
    low, high = np.array(config.model.grid.pc_range).reshape(2, 3)
    return Boxes(
        centres=rng.uniform(low, high, (BOXES, 3)).astype(np.float32),
        sizes=rng.uniform((4, 1.7, 1.5), (5, 2, 1.8), (BOXES, 3)).astype(np.float32),
        yaws=rng.uniform(-math.pi, math.pi, BOXES).astype(np.float32),
        velocities=rng.uniform(-5, 5, (BOXES, 2)).astype(np.float32),
        labels=rng.randint(0, len(DETECTION_CLASSES), BOXES),
    )


def random_labels(kind: str, rng: np.random.RandomState) -> DenseLabels:
    """Return dense labels with a tenth of the voxels occupied; masks, if any, observe every second voxel."""
    grid = OCCUPANCY_GRIDS[kind]
    voxels, empty = grid.shape, grid.empty
    occupied = (0, empty) if empty else (1, grid.classes)  # free space is the last class or the first
    classes = np.where(rng.rand(*voxels) < 0.1, rng.randint(*occupied, voxels), empty).astype(np.uint8)
    if kind not in HAS_MASKS:
        return DenseLabels(classes, None)
    return DenseLabels(classes, rng.randint(0, 2, voxels).astype(np.uint8) * np.uint8(LIDAR_BIT | CAMERA_BIT))


def random_batch(config: Config, size: Tuple[int, int], points: int, list_rows: Optional[ListRows] = None) -> Batch:
    """Return a training batch of ``config.data.batch_size`` random frames, made by the pipeline for real frames.

    ``list_rows``: see ``collate``.
    """
    rng = np.random.RandomState(config.train.seed % 2**32)
    samples = []
    for _ in range(config.data.batch_size):
        frame = random_frame(size, points, config.model.num_cams, rng)
        frame = dataclasses.replace(frame, lidar2ego=sensor_poses()[LIDAR_CHANNEL])
        if config.data.occupancy:
            dense = random_labels(config.data.occupancy, rng)
            origins = np.zeros((1, 3)) if config.data.occupancy in HAS_RAYS else None
            frame = dataclasses.replace(frame, dense=dense, ray_origins=origins)
        augment = config.data.augment
        augmentation = None if augment is None else Augmentation(augment, config.model.grid, rng)
        sample = make_sample(frame, config.data, config.model.grid, rng, augmentation)
        if config.model.detection is not None:
            sample.box_targets = draw_targets(random_boxes(config, rng), BoxMap.of(config.model))
        if config.model.history is not None:
            sample.past = tuple(_past(sample, k + 1) for k in range(config.model.history.frames))
        samples.append(sample)
    return collate(samples, config.data.ignore_label, list_rows=list_rows)


def _past(now: Sample, steps: int) -> PastSample:
    """Return a past frame with the images of the present one, half a second and STEP metres a step before it."""
    drawn = ("photometric", "keep_rows", "keep_columns", "crops")
    shared = ("token", "images", *drawn, "grid2img", "image_shape", "camera_slots")
    once, all_steps = torch.eye(4), torch.eye(4)
    once[1, 3], all_steps[1, 3] = STEP, STEP * steps
    return PastSample(
        **{name: getattr(now, name) for name in shared},
        now2past=all_steps,
        seconds=torch.tensor(0.5 * steps),
        motion=once,
        gap=torch.tensor(0.5),
        valid=torch.tensor(True),
    )


def roughen(model: nn.Module) -> None:
    """Give fresh deformable convolutions offsets of about a pixel.

    Fresh ones sample exactly at pixels, which needs less memory traffic than trained ones.
    """
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, ModulatedDeformConv3x3):
            for parameter, deviation in ((module.conv_offset.weight, 1e-3), (module.conv_offset.bias, 1.0)):
                assert parameter is not None
                with torch.no_grad():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)


def pinned(batch: Batch, pin_memory: bool = False, pin_memory_device: str = "") -> Batch:
    """Return the batch as a loader with these options yields it."""
    return dataclasses.replace(batch, pin_device=pin_memory_device).pin_memory() if pin_memory else batch
