"""A .rrd file for the Rerun viewer (rerun.io), where its package is installed; it is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np

from tpvformer.files import replacing
from tpvformer.geometry import inside, lattice, project
from tpvformer.viz.frame_prediction import CameraView, FramePrediction, believed, shown


def write_rerun(path: Path, results: Sequence[FramePrediction]) -> None:
    """Write the frames on the timeline "frame": predicted and true voxels, points, cameras with points on them.

    Raises ValueError where rerun is not installed or too old.
    """
    try:
        import rerun as rr  # ty: ignore[import-not-found]  # optional
    except ImportError:
        raise ValueError(f"{path}: needs Rerun's package (pip install rerun-sdk), 0.23 or later") from None
    if not hasattr(rr.RecordingStream, "set_time"):
        raise ValueError(f"{path}: rerun-sdk {rr.__version__} is installed; expected 0.23 or later")
    kinds = shown(results[0].class_names, results[0].frame)
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
            for camera in result.cameras:
                _log_camera(rr, stream, camera, result)
        stream.flush()
        stream.disconnect()


def _log(rr, stream, name: str, result: FramePrediction, voxels: np.ndarray, there: np.ndarray) -> None:
    low, pitch = lattice(result.pc_range, voxels.shape)
    centers = low + (np.argwhere(there) + 0.5) * pitch
    half = np.broadcast_to(pitch / 2, centers.shape)
    boxes = rr.Boxes3D(centers=centers, half_sizes=half, class_ids=voxels[there], fill_mode="solid", show_labels=False)
    stream.log(name, boxes)


def _log_camera(rr, stream, camera: CameraView, result: FramePrediction) -> None:
    name = f"cameras/{camera.name}"
    stream.log(name, rr.EncodedImage(contents=camera.jpeg, media_type="image/jpeg"))
    pixels, depth = project(result.points, camera.lidar2img)
    seen = inside(pixels, depth, camera.size[1], camera.size[0])
    scaled = pixels[seen] * (camera.stored_width / camera.size[0])
    stream.log(f"{name}/points", rr.Points2D(scaled, class_ids=result.point_labels[seen], radii=2))
