"""TPVFormer in three lines of Python: ``from_pretrained``, ``predict``, and a result to look at, ask and save."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch

from tpvformer import compiling
from tpvformer.compat import CheckpointError, Report, load_config
from tpvformer.compat.checkpoints import load_content
from tpvformer.compat.hub import upload
from tpvformer.compat.pretrained import open_pretrained, save_folder
from tpvformer.config import Config
from tpvformer.data.given import Images, Rig, given_frame
from tpvformer.data.transforms import make_sample
from tpvformer.engine.bench.marks import Marks
from tpvformer.engine.device import pick_device
from tpvformer.engine.limits import check_embeddings
from tpvformer.engine.precision import choose
from tpvformer.engine.run import build_model
from tpvformer.predict import Scene
from tpvformer.result import Result

ConfigLike = Union[Config, str, "os.PathLike[str]"]
DeviceLike = Union[str, torch.device]


class TPVFormer:
    """A model, its configuration and its device. ``network`` is the ``torch.nn.Module``.

    The constructor makes fresh weights: ``TPVFormer("demo")``, for a shipped configuration, a file of one, or a
    ``Config``. ``device`` is a ``torch.device`` or its name, or "auto". ``precision`` says what the image network runs
    in, and why.
    """

    def __init__(self, config: ConfigLike, device: DeviceLike = "auto") -> None:
        self.config = config if isinstance(config, Config) else load_config(config)
        self.device, remarks = pick_device(device)
        self.precision = choose(self.config.train.precision, self.device)
        for text in (*remarks, self.precision.warning):
            if text:
                warnings.warn(text, stacklevel=2)
        with torch.random.fork_rng(devices=()):  # fresh weights have their own seed; the caller's draws go on as before
            self.network = build_model(self.precision.applied(self.config), self.device).eval()
        self.report: Optional[Report] = None  # what became of every entry of the file the weights are from

    @classmethod
    def from_pretrained(
        cls,
        source: Union[str, "os.PathLike[str]"],
        config: Optional[ConfigLike] = None,
        device: DeviceLike = "auto",
        revision: Optional[str] = None,
        allow_nonfinite: bool = False,
    ) -> TPVFormer:
        """Open weights: "demo", those inside this package; a folder of ``save_pretrained``, a run's work dir or
        checkpoint, the reference's .pth, or the ``owner/name`` of a hub's repository (``revision``: of that), where
        huggingface_hub is installed. A folder of one's own called demo is ``"./demo"`` or a ``Path``.

        The configuration is the stored one; of the reference's files it is told by their shapes. ``config`` is taken
        instead. Every tensor must be there and fit: raises CheckpointError that names what is missing, unknown, of
        another shape, or not finite (``allow_nonfinite`` warns of that instead), and for a file that would run
        something. Raises ConfigError for a configuration or device.
        """
        given = config if config is None or isinstance(config, Config) else load_config(config)
        found = open_pretrained(source, given, revision)
        model = cls(found.config, device)
        model.report = load_content(model.network, found.content, found.source, allow_nonfinite)
        if model.report.kind == "backbone":
            raise CheckpointError(
                f"{found.source}: holds a detector's image backbone alone; expected a whole TPVFormer (a backbone is "
                "where training starts: train.load_from)"
            )
        for text in model.report.warnings:
            warnings.warn(f"{found.source}: {text}", stacklevel=2)
        return model

    def predict(self, images: Images, rig: Rig, points: Optional[Any] = None) -> Result:
        """What is where, by the images of one moment.

        images: a mapping from camera name to image, or a list in the order of the rig's cameras. An image is a path,
        an array (height, width, 3) uint8 in RGB order (turn OpenCV's with ``image[..., ::-1]``), or a PIL image; sizes
        may differ. rig: the path of a rig file (docs/rig.md), its content as a dictionary, or lidar2img matrices
        (4, 4), LiDAR metres to pixels of these images, by camera name or in the images' order. points (P, 3 or more):
        metres, LiDAR frame, to be classified and saved as well; none are needed.

        Raises DataError and ConfigError that say what does not fit.
        """
        with compiling.said_together():
            return self._predict(images, rig, points)

    def _predict(self, images: Images, rig: Rig, points: Optional[Any]) -> Result:
        marks = Marks(self.device)
        frame = given_frame(images, rig, points)
        marks.end("decode")
        slots = frame.camera_slots or range(len(frame.camera_names))
        check_embeddings(max(slots) + 1, "the rig", self.config)
        grid = self.config.model.grid
        sample = make_sample(frame, self.config.data, grid, None)
        scene = Scene(self.network, sample, self.config, self.device, marks)
        return Result(scene, frame, sample, self.config, marks)

    def save_pretrained(self, folder: Union[str, "os.PathLike[str]"], half: bool = False) -> Path:
        """Write config.json, model.safetensors and README.md, a model card; returns the folder.

        ``half``: parameters as float16, in half the bytes; they are float32 again when they are opened. Raises
        CheckpointError where it cannot be written, and where a number is too large for float16.
        """
        path = Path(folder)
        save_folder(self.network, self.config, path, half)
        return path

    def push_to_hub(self, hub_id: str, private: bool = False) -> str:
        """Put what ``save_pretrained`` writes on the hub as ``owner/name``; returns its address.

        Needs huggingface_hub and its login. Raises CheckpointError.
        """
        with tempfile.TemporaryDirectory() as folder:
            return upload(self.save_pretrained(folder), hub_id, private)

    def __repr__(self) -> str:
        x, y, z = self.config.model.grid.voxels
        numbers = sum(int(np.prod(p.shape)) for p in self.network.parameters())
        return f"TPVFormer({self.config.name}, {x}x{y}x{z} voxels, {numbers / 1e6:.1f} M parameters, {self.device})"
