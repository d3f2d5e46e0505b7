"""Report installed packages, the backend of each operation, and the first problem to fix."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

from tpvformer import __version__
from tpvformer.errors import ConfigError
from tpvformer.runtime.compiling import NO_FOLDER, can_keep

if TYPE_CHECKING:
    import torch

_NEEDED = ("torch", "numpy", "opencv-python-headless", "pyyaml", "numba", "safetensors", "rich")
_USEFUL = (
    "simplejpeg",
    "triton",
    "torch_npu",
    "mx-driving",
    "huggingface_hub",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "fsspec",
)
_STANDS_IN = {"opencv-python-headless": "cv2"}  # other packages of OpenCV contain the same module


def examine(device: str) -> Tuple[List[str], Optional[str]]:
    """Return the report's lines, and the first problem to fix; None without problems."""
    import torch

    from tpvformer import ops
    from tpvformer.engine.device.accelerator import device_facts, device_name, pick_device

    versions = {name: _version(name) for name in (*_NEEDED, *_USEFUL)}
    mend = [f"{name} is missing: pip install {name}" for name in _NEEDED if versions[name] is None]
    lines = [f"tpvformer {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"]
    lines.append("installed: " + ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    lines.append(
        "not installed: " + (", ".join(name for name, version in versions.items() if not version) or "nothing")
    )
    places = [torch.device("cpu")]
    try:
        chosen, remarks = pick_device(device)
    except ConfigError as err:
        chosen, remarks = places[0], []
        mend.append(str(err))
    lines += [f"note: {remark}" for remark in remarks]
    if chosen.type != "cpu":
        places.append(chosen)
        facts = ", ".join(f"{key} {value}" for key, value in device_facts(chosen).items())
        lines.append(f"device: {device_name(chosen)} ({facts})")
    else:
        lines.append(f"device: {device_name(chosen)}, {torch.get_num_threads()} threads")
    lines += _processor(chosen)
    misfit = ops.misfit(chosen.type)
    if misfit is not None:
        mend.append(misfit)
    elif ops.asked() is not None:
        lines.append(f"note: {ops.VARIABLE}={ops.asked()} is set: no other backend runs the operations")
    for place in places:
        found = ops.kernels(place)
        lines += [f"on {place.type}: {line}" for line in _served(found)]
        mend += [
            f"{name} kernels are not available on {place.type} ({problem})"
            for name, problem in found.items()
            if problem
        ]
    if versions["numba"] is not None and not can_keep():
        lines.append(f"note: kernels are compiled in every run ({NO_FOLDER})")
    if versions["opencv-python-headless"] is not None and (problem := _load("cv2")):
        mend.append(
            f"OpenCV is installed but does not load ({problem}): pip install --force-reinstall opencv-python-headless"
        )
    if versions["simplejpeg"] is None:
        lines.append("note: without simplejpeg OpenCV decodes JPEG, more slowly, and less damage is noticed")
    elif problem := _load("simplejpeg"):
        lines.append(
            f"note: simplejpeg does not load ({problem}): OpenCV decodes JPEG, more slowly, and less damage is noticed"
        )
    return lines, mend[0] if mend else None


def _processor(device: torch.device) -> List[str]:
    """Return lines about the processor, its kernels, and the precision that "auto" resolves to on the device."""
    from tpvformer.engine.device.precision import choose
    from tpvformer.runtime.processor import read_processor

    processor = read_processor()
    onednn = "takes bf16" if processor.onednn else "takes no bf16"
    try:
        from tpvformer.ops.numba_options import vector_width

        width = f"kernels use vectors of {vector_width()} float32"
    except (ImportError, RuntimeError):  # Numba raises RuntimeError if it finds no cache folder
        width = "no kernels without Numba"
    held = f" ({processor.limit})" if processor.limit else ""
    return [
        f"processor: {processor.name}: {processor}; {width}; PyTorch's oneDNN {onednn}{held}",
        f"on {device.type}: {choose('auto', device)}, unless train.precision says otherwise",
    ]


def _served(kernels: Dict[str, Optional[str]]) -> List[str]:
    """Return a line for each operation, or for each backend that has all of them."""
    if not kernels:
        return ["attention and deformable convolution: plain PyTorch"]
    return [
        f"{name}: plain PyTorch is used instead ({problem})" if problem else f"{name} kernels are used"
        for name, problem in kernels.items()
    ]


def _load(module: str) -> Optional[str]:
    """Return why an installed module cannot be imported; None if it can."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as err:
        return str(err)
    return None


def _version(name: str) -> Optional[str]:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        module = _STANDS_IN.get(name)
        return "as another package" if module and importlib.util.find_spec(module) else None
