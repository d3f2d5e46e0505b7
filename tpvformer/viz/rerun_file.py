"""A .rrd file for the Rerun viewer (rerun.io), where its package is installed; it is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from tpvformer.files import replacing
from tpvformer.geometry import inside, lattice, project, segments_in_image
from tpvformer.viz.boxes import Boxes, Lines, arrows, box_colors, certain, moved
from tpvformer.viz.frame_prediction import CameraView, FramePrediction, believed, shown


def write_rerun(path: Path, results: Sequence[FramePrediction]) -> None:
    """Write the frames on the timeline "frame": predicted and true voxels and boxes, points, cameras with
    points and boxes on them.

    Raises ValueError where rerun is not installed or too old.
    """
    try:
        import rerun as rr  # ty: ignore[import-not-found]  # optional
    except ImportError:
        raise ValueError(f"{path}: needs Rerun's package (pip install rerun-sdk), 0.23 or later") from None
    if not hasattr(rr.RecordingStream, "set_time"):
        raise ValueError(f"{path}: rerun-sdk {rr.__version__} is installed; expected 0.23 or later")
    kinds = shown(results[0].class_names, results[0].frame, results[0].classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = rr.RecordingStream("tpvformer")
    with replacing(path, ".rrd") as partial:
        stream.save(str(partial))
        context = [(i, name, kinds.classes.colors[i]) for i, name in enumerate(kinds.classes.names)]
        stream.log("/", rr.AnnotationContext(context), static=True)
        for i, result in enumerate(results):
            stream.set_time("frame", sequence=i)
            _log(rr, stream, "world/predicted", result, result.voxels, believed(result, kinds))
            if result.true_voxels is not None:
                there = np.isin(result.true_voxels, kinds.drawn)
                _log(rr, stream, "world/true", result, result.true_voxels, there)
            stream.log("world/lidar", rr.Points3D(result.grid_points(), class_ids=result.point_labels, radii=0.06))
            boxes, true_boxes = (moved(some, result.lidar2grid) for some in (result.boxes, result.true_boxes))
            _log_boxes(rr, stream, "world/boxes", boxes, result, box_colors(result.box_names))
            white = np.full((len(result.box_names), 3), 255, np.uint8)
            _log_boxes(rr, stream, "world/true_boxes", true_boxes, result, white)
            lines = result.box_lines(False)
            for camera in result.cameras:
                _log_camera(rr, stream, camera, result, lines)
        stream.flush()
        stream.disconnect()


def _log(rr, stream, name: str, result: FramePrediction, voxels: np.ndarray, there: np.ndarray) -> None:
    low, pitch = lattice(result.pc_range, voxels.shape)
    centers = low + (np.argwhere(there) + 0.5) * pitch
    half = np.broadcast_to(pitch / 2, centers.shape)
    boxes = rr.Boxes3D(centers=centers, half_sizes=half, class_ids=voxels[there], fill_mode="solid", show_labels=False)
    stream.log(name, boxes)


def _log_boxes(rr, stream, name: str, boxes: Optional[Boxes], result: FramePrediction, colors: np.ndarray) -> None:
    """Log the boxes, in the grid's frame, with ``colors`` (K, 3) by class, and arrows of those that move."""
    if boxes is None:
        return
    kept = boxes.take(certain(boxes))
    half_turns = kept.yaws / 2
    turned = np.stack([0 * half_turns, 0 * half_turns, np.sin(half_turns), np.cos(half_turns)], 1)  # x, y, z, w
    scores = [""] * len(kept) if kept.scores is None else [f" {score:.2f}" for score in kept.scores]
    labels = [result.box_names[label] + score for label, score in zip(kept.labels, scores)]
    solid = {"centers": kept.centres, "half_sizes": kept.sizes / 2, "quaternions": turned}
    stream.log(name, rr.Boxes3D(**solid, colors=colors[kept.labels], labels=labels, show_labels=False))
    moving, rows = arrows(kept)
    start, end = moving[:, 0, 0], moving[:, 0, 1]
    stream.log(f"{name}/velocities", rr.Arrows3D(origins=start, vectors=end - start, colors=colors[kept.labels[rows]]))


def _log_camera(rr, stream, camera: CameraView, result: FramePrediction, lines: Lines) -> None:
    name = f"cameras/{camera.name}"
    stream.log(name, rr.EncodedImage(contents=camera.jpeg, media_type="image/jpeg"))
    pixels, depth = project(result.points, camera.lidar2img)
    seen = inside(pixels, depth, camera.size[1], camera.size[0])
    scaled = pixels[seen] * (camera.stored_width / camera.size[0])
    stream.log(f"{name}/points", rr.Points2D(scaled, class_ids=result.point_labels[seen], radii=2))
    if result.boxes is not None or result.true_boxes is not None:
        ends, rows = segments_in_image(lines.segments, camera.lidar2img, camera.size)
        scaled = ends * (camera.stored_width / camera.size[0])
        stream.log(f"{name}/boxes", rr.LineStrips2D(scaled, colors=lines.colors[rows]))
