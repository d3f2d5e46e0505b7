"""One HTML page that shows results in space and on the cameras. It needs no network and no other file.

The page is page/viewer.html with its style, its scripts and the frames put into it. Text from results arrives as JSON
and is only ever set as text; a content security policy lets nothing run but the page's own script, and nothing load.
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

from tpvformer.viz.frame_prediction import CameraView, FramePrediction, Shown, shown
from tpvformer.viz.paint import looking_around

SCRIPTS = ("mesh.js", "scene.js", "cameras.js", "viewer.js")
_STEPS = 32767  # int16 for the points' coordinates


def write_page(file: BinaryIO, results: Sequence[FramePrediction], title: str) -> None:
    """The page of frames of one scene or several, in the order of its slider. All have the classes of the first."""
    kinds = shown(results[0].class_names, results[0].frame)
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
    # "<" would end the element, whatever stands in a string
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
    return re.sub("|".join(values), lambda found: values[found[0]], text)  # once: what is put in is not looked at


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
    return {
        "title": title,
        "classes": classes,
        "free": kinds.free,
        "forward": kinds.forward,
        "ground": kinds.ground,
        "labels": results[0].labels_of,
        "frames": frames,
    }


def _cameras(result: FramePrediction) -> List[CameraView]:
    """As one looks around."""
    return [result.cameras[i] for i in looking_around([camera.name for camera in result.cameras])]


def _step(points: np.ndarray) -> float:
    """Metres of a step of the stored coordinates: 1 cm, or more where points lie beyond 327 m."""
    return max(0.01, float(np.abs(points).max(initial=0)) / _STEPS)


def _blocks(result: FramePrediction, kinds: Shown) -> Iterator[Tuple[str, bytes]]:
    """Name and bytes of each array of a frame, compressed, and of each picture."""

    def packed(array: np.ndarray) -> bytes:
        return zlib.compress(np.ascontiguousarray(array).tobytes(), 6)

    yield "voxels", packed(result.voxels)
    if result.confidence is not None:
        # 64 levels; nothing asks for the confidence of free space
        levels = np.rint(np.clip(result.confidence.astype(np.float32), 0, 1) * 63) * (255 / 63)
        yield "confidence", packed(np.where(result.voxels == kinds.free, 0, np.ceil(levels)).astype(np.uint8))
    if result.scanned is not None:
        yield "scanned", packed(np.packbits(result.scanned))
    if result.true_voxels is not None:
        yield "true-voxels", packed(result.true_voxels)
    if len(result.points):
        points = result.grid_points()
        yield "places", packed(np.rint(points / _step(points)).astype("<i2"))
        yield "labels", packed(result.point_labels)
        if result.true_point_labels is not None:
            yield "true-labels", packed(result.true_point_labels)
    for i, camera in enumerate(_cameras(result)):
        yield f"image{i}", camera.jpeg
