"""One HTML page that shows predictions in space and on the cameras. It needs no network and no other file.

The page is page/viewer.html with the style, the scripts and the frames filled in. A prediction's text is stored as JSON
and shown with ``textContent``, never as HTML. A content security policy allows the page's own script and no requests.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from importlib import resources
from typing import Any, BinaryIO, Dict, Iterator, List, Sequence, Tuple

import numpy as np

from tpvformer.viz.boxes import EDGES, LID, SHOWN_SCORE, SLOW, Boxes, box_colors, corners
from tpvformer.viz.frame_prediction import CameraView, FramePrediction, Shown, shown
from tpvformer.viz.paint import looking_around

SCRIPTS = ("mesh.js", "boxes.js", "scene.js", "cameras.js", "viewer.js")
_STEPS = 32767  # the largest int16, in which the points' coordinates are stored


def write_page(file: BinaryIO, results: Sequence[FramePrediction], title: str) -> None:
    """Write the page of these frames, in the order of its slider. All must have the classes of the first one."""
    kinds = shown(results[0].class_names, results[0].frame, results[0].classes)
    style, script = _part("viewer.css"), "".join(_part(name) for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    values = {
        "@TITLE@": html.escape(title),
        "@STYLE@": style,
        "@SCRIPT@": script,
        "@STYLE_HASH@": _hash(style),
        "@SCRIPT_HASH@": _hash(script),
    }
    before, after = _part("viewer.html").split("@DATA@")
    file.write(_filled(before, values).encode())
    about = _about(results, kinds, title)
    # "</script>" in a string would end the element
    text = json.dumps(about, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    file.write(f'<script type="application/json" id="about">{text}</script>\n'.encode())
    for i, result in enumerate(results):
        for name, data in _blocks(result, kinds):
            encoded = base64.b64encode(data).decode()
            file.write(f'<script type="text/plain" id="f{i}-{name}">{encoded}</script>\n'.encode())
    file.write(_filled(after, values).encode())


def _part(name: str) -> str:
    return resources.files("tpvformer.viz").joinpath("page").joinpath(name).read_text(encoding="utf-8")


def _filled(text: str, values: Dict[str, str]) -> str:
    return re.sub("|".join(values), lambda found: values[found[0]], text)  # one pass: inserted text is not searched


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _about(results: Sequence[FramePrediction], kinds: Shown, title: str) -> Dict[str, Any]:
    classes = [
        {"name": name.replace("_", " "), "colour": list(kinds.classes.colors[i]), "drawn": i in kinds.drawn}
        for i, name in enumerate(kinds.classes.names)
    ]
    frames = [
        {
            "token": result.token,
            "scene": result.scene,
            "grid": list(result.voxels.shape),
            "range": list(result.pc_range),
            "step": _step(result.grid_points()),
            "cameras": [
                {
                    "name": camera.name,
                    "width": camera.size[0],
                    "height": camera.size[1],
                    "matrix": result.grid2img(camera).ravel().tolist(),
                }
                for camera in _cameras(result)
            ],
        }
        for result in results
    ]
    boxes = {
        "classes": [
            {"name": name.replace("_", " "), "colour": colour}
            for name, colour in zip(results[0].box_names, box_colors(results[0].box_names).tolist())
        ],
        "score": SHOWN_SCORE,
        "slow": SLOW,
        "edges": EDGES.tolist(),
        "lid": LID.tolist(),
    }
    return {
        "title": title,
        "boxes": boxes,
        "classes": classes,
        "free": kinds.free,
        "forward": kinds.forward,
        "ground": kinds.ground,
        "labels": results[0].labels_of,
        "frames": frames,
    }


def _cameras(result: FramePrediction) -> List[CameraView]:
    """Return the cameras in the order of ``looking_around``."""
    return [result.cameras[i] for i in looking_around([camera.name for camera in result.cameras])]


def _rows(boxes: Boxes) -> np.ndarray:
    """Return the rows (N, 28), float32, that page/boxes.js reads: corners, velocity (0 if unknown), score, label."""
    scores = np.ones(len(boxes), np.float32) if boxes.scores is None else boxes.scores
    velocities = np.nan_to_num(boxes.velocities)
    places = np.concatenate([corners(boxes).reshape(-1, 24), velocities], 1).round(2)  # 1 cm
    return np.concatenate([places, scores[:, None], boxes.labels[:, None]], 1).astype("<f4")


def _step(points: np.ndarray) -> float:
    """Return the resolution of the stored coordinates in metres: 1 cm, or more where a point is beyond 327 m."""
    return max(0.01, float(np.abs(points).max(initial=0)) / _STEPS)


def _blocks(result: FramePrediction, kinds: Shown) -> Iterator[Tuple[str, bytes]]:
    """Yield the name and bytes of each array of a frame, compressed by zlib, and of each picture, a JPEG file."""

    def packed(array: np.ndarray) -> bytes:
        return zlib.compress(np.ascontiguousarray(array).tobytes(), 6)

    yield "voxels", packed(result.voxels)
    if result.confidence is not None:
        # 64 levels compress better; the confidence of free space is not shown
        levels = np.rint(np.clip(result.confidence.astype(np.float32), 0, 1) * 63) * (255 / 63)
        yield "confidence", packed(np.where(result.voxels == kinds.free, 0, np.ceil(levels)).astype(np.uint8))
    if result.scanned is not None:
        yield "scanned", packed(np.packbits(result.scanned))
    if result.remembered is not None:
        yield "remembered", packed(np.packbits(result.remembered))
    if result.true_voxels is not None:
        yield "true-voxels", packed(result.true_voxels)
    if len(result.points):
        points = result.grid_points()
        yield "places", packed(np.rint(points / _step(points)).astype("<i2"))
        yield "labels", packed(result.point_labels)
        if result.true_point_labels is not None:
            yield "true-labels", packed(result.true_point_labels)
    for name, boxes in (("boxes", result.boxes), ("true-boxes", result.true_boxes)):
        if boxes is not None:
            yield name, packed(_rows(boxes.transformed(result.lidar2grid)))
    for i, camera in enumerate(_cameras(result)):
        yield f"image{i}", camera.jpeg
