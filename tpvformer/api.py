"""TPVFormer in three lines of Python: ``from_pretrained``, ``predict``, and a result to look at, ask and save."""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union, overload

import numpy as np
import torch

from tpvformer.compat import CheckpointError, Report, load_config, load_weights, save_reference
from tpvformer.compat.checkpoints import load_content
from tpvformer.compat.config_file import shipped
from tpvformer.compat.hub import upload
from tpvformer.compat.pretrained import EMBEDDED, find_weights, open_pretrained, save_folder
from tpvformer.config import Config
from tpvformer.data.rig.from_arrays import Images, Rig
from tpvformer.data.rig.from_many import Moment, Moments, moments
from tpvformer.data.transforms import make_sample
from tpvformer.engine.device.accelerator import pick_device
from tpvformer.engine.device.precision import choose
from tpvformer.engine.device.preflight import check_embeddings
from tpvformer.engine.evaluation.evaluate import Evaluation
from tpvformer.engine.logging.phase_timer import PhaseTimer
from tpvformer.engine.train import build_model, settle
from tpvformer.errors import ConfigError
from tpvformer.labels import class_names
from tpvformer.predict.encoded_frame import EncodedFrame
from tpvformer.predict.result import Result, Results
from tpvformer.runtime import compiling

PathLike = Union[str, "os.PathLike[str]"]
ConfigLike = Union[Config, PathLike]
DeviceLike = Union[str, torch.device]
Given = Union[Images, Sequence[Images], PathLike]


def list_models(pretrained: bool = False) -> List[str]:
    """What can be opened by name: for ``TPVFormer(name)``, a model with fresh weights; with ``pretrained`` for
    ``TPVFormer.from_pretrained(name)``, weights inside this package. docs/configs.md says where others come from."""
    return [EMBEDDED] if pretrained else list(shipped())


class TPVFormer:
    """A model, its configuration and its device. ``network`` is the ``torch.nn.Module``.

    The constructor makes fresh weights: ``TPVFormer("demo")``, for a shipped configuration, a file of one, or a
    ``Config``. ``device`` is a ``torch.device`` or its name, or "auto". ``precision`` says what the image network runs
    in, and why.
    """

    def __init__(self, config: ConfigLike, device: DeviceLike = "auto") -> None:
        self.config = config if isinstance(config, Config) else load_config(config)
        self._choose_device(device)
        with torch.random.fork_rng(devices=()):  # fresh weights have their own seed; the caller's draws go on as before
            self.network = build_model(self.precision.applied(self.config), self.device).eval()
        self.report: Optional[Report] = None  # what became of every entry of the file the weights are from
        self.source: Optional[str] = None  # that file

    def _choose_device(self, device: DeviceLike) -> None:
        self.device, remarks = pick_device(device)
        self.precision = choose(self.config.train.precision, self.device)
        for text in (*remarks, self.precision.warning):
            if text:
                warnings.warn(text, stacklevel=3)

    @classmethod
    def from_pretrained(
        cls,
        source: PathLike,
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
        model.source = found.source
        if model.report.kind == "backbone":
            raise CheckpointError(
                f"{found.source}: holds a detector's image backbone alone; expected a whole TPVFormer (a backbone is "
                "where training starts: train.load_from)"
            )
        for text in model.report.warnings:
            warnings.warn(f"{found.source}: {text}", stacklevel=2)
        return model

    @property
    def names(self) -> Dict[int, str]:
        """The class of each label."""
        return dict(enumerate(class_names(self.config.data.label_map)))

    @overload
    def predict(self, images: None = None, rig: Optional[Rig] = None, points: None = None) -> Results: ...

    @overload
    def predict(self, images: Mapping[str, Any], rig: Rig, points: Optional[Any] = None) -> Result: ...

    @overload
    def predict(self, images: Given, rig: Optional[Rig] = None, points: Optional[Any] = None) -> Any: ...

    def predict(
        self, images: Optional[Given] = None, rig: Optional[Rig] = None, points: Optional[Any] = None
    ) -> Union[Result, Results]:
        """What is where, by the images of one moment, of several, or those that a rig file names.

        images: a mapping from camera name to image, or a list in the order of the rig's cameras. An image is a path,
        an array (height, width, 3) uint8 in RGB order (turn OpenCV's with ``image[..., ::-1]``), a tensor (3, height,
        width), uint8 or from 0 to 1, or a PIL image; sizes may differ. Or a folder, whose files are named after the
        cameras. rig: the path of a rig file (docs/rig.md), its content as a dictionary, or lidar2img matrices
        (4, 4), lidar metres to pixels of these images, by camera name or in the images' order. points (P, 3 or more):
        metres, lidar frame, to be classified and saved as well; none are needed. All of this is one ``Result``.

        A list of such images (``points`` a list as well), tensors (frames, cameras, 3, height, width), or a folder with
        a folder of each camera are ``Results``, a list of one for each frame, which are predicted one after the other.
        So are the frames of a rig, with its images and points: ``predict(rig="rig.json")``, or the folder it lies in.

        Raises DataError and ConfigError that say what does not fit.
        """
        asked = self._asked(images, rig, points)
        answers = Results(self._predict(moment) for moment in asked.each)
        return answers if asked.several else answers[0]

    __call__ = predict

    def stream(
        self, images: Optional[Given] = None, rig: Optional[Rig] = None, points: Optional[Any] = None
    ) -> Iterator[Result]:
        """The same one frame after the other, each when it is asked for: a long drive's results need not be held
        together (one of 200x200x16 voxels and 17 classes takes 45 MB, and the model's features on its device)."""
        asked = self._asked(images, rig, points)
        return (self._predict(moment) for moment in asked.each)

    def _asked(self, images: Optional[Given], rig: Optional[Rig], points: Optional[Any]) -> Moments:
        return moments(images, rig, points, self.config.data.root)

    def _predict(self, moment: Moment) -> Result:
        with compiling.said_together():
            marks = PhaseTimer(self.device)
            frame = moment.load()
            marks.end("decode")
            slots = frame.camera_slots or range(len(frame.camera_names))
            check_embeddings(max(slots) + 1, "the rig", self.config)
            sample = make_sample(frame, self.config.data, self.config.model.grid, None)
            scene = EncodedFrame(self.network, sample, self.config, self.device, marks)
            return Result(scene, frame, sample, self.config, marks, moment.scene, moment.number)

    def to(self, device: DeviceLike) -> TPVFormer:
        """Move the model to a device, as ``from_pretrained(device=...)`` would have; returns it. Raises ConfigError."""
        self._choose_device(device)
        settle(self.network, self.precision.applied(self.config), self.device)
        return self

    def eval(self) -> TPVFormer:
        """As of a ``torch.nn.Module``; ``predict`` needs no call of it, for it never drops out."""
        self.network.eval()
        return self

    def train(
        self,
        config: Optional[ConfigLike] = None,
        work_dir: Optional[PathLike] = None,
        resume_from: Optional[PathLike] = None,
        deterministic: bool = False,
    ) -> Dict[str, Any]:
        """Train as ``tpvformer train`` does, here and in this process; returns what summary.json holds.

        config: what to train on and how, as the constructor takes it. The weights to start from are those that this
        model was opened with; one with fresh weights starts as the command does (train.load_from). What was interrupted
        in ``work_dir`` (default: output/<name>) goes on. Afterwards this model has the weights of best.pth. The result
        is empty where the training was stopped by a signal.

        The mode of a ``torch.nn.Module`` is another thing: ``model.network.train()``. Raises ConfigError, DataError,
        CheckpointError.
        """
        from tpvformer.commands.report import after_training
        from tpvformer.engine.train import train

        if config is None or isinstance(config, bool):
            raise ConfigError(
                "train() starts a training and needs a configuration, train('demo') or train(Config(...)); the mode of "
                "the network is model.network.train()"
            )
        chosen = config if isinstance(config, Config) else load_config(config)
        if self.source is not None:
            start = dataclasses.replace(chosen.train, load_from=self.source)
            chosen = dataclasses.replace(chosen, train=start)
        folder = Path("output") / chosen.name if work_dir is None else Path(work_dir)
        resumed = None if resume_from is None else Path(resume_from)
        typed = f"TPVFormer.train({chosen.name!r}, {str(folder)!r})"
        outcome = train(chosen, folder, str(self.device), resumed, deterministic=deterministic, command=typed)
        if outcome:
            after_training(folder, str(self.device))
            best = find_weights(folder)
            with torch.random.fork_rng(devices=()):
                network = build_model(choose(chosen.train.precision, self.device).applied(chosen), self.device).eval()
            self.report, self.source = load_weights(network, best), str(best)
            self.config, self.network = chosen, network
            self.precision = choose(chosen.train.precision, self.device)
        return outcome

    def val(self, config: Optional[ConfigLike] = None) -> Evaluation:
        """Score the weights as ``tpvformer eval`` does; prints the tables and returns their numbers.

        config: names the validation set, for this model; without one it is that of ``model.config``. Raises
        ConfigError and DataError.
        """
        from tpvformer.engine.evaluation.checkpoint_scores import evaluate_checkpoint

        chosen = self.config if config is None else config if isinstance(config, Config) else load_config(config)
        if chosen.model != self.config.model:
            raise ConfigError(
                f"{chosen.name} describes another model than this one, {self.config.name}; expected the same model "
                "section: change model.config's data instead, with dataclasses.replace"
            )
        try:
            return evaluate_checkpoint(chosen, self.network, str(self.device))
        finally:
            settle(self.network, self.precision.applied(self.config), self.device).eval()

    def export(self, path: PathLike, cameras: int = 6, size: Tuple[int, int] = (1600, 900)) -> Path:
        """Write the model for other runtimes, as ``tpvformer export`` does (docs/export.md); returns the path.

        Its suffix says which: .onnx (needs ``pip install "tpvformer[onnx]"``) or .pt2, a program of torch.export, for
        ``cameras`` images of ``size`` (width, height) pixels; .pth or .safetensors, weights under the reference's
        names. Raises ConfigError and CheckpointError.
        """
        from tpvformer.export.export import export_onnx, export_program

        out = Path(path)
        if out.suffix in (".pth", ".safetensors"):
            save_reference(self.network, out)
            return out
        writers = {".onnx": export_onnx, ".pt2": export_program}
        if out.suffix not in writers:
            raise ConfigError(f"path is {path}; expected a name that ends in .onnx, .pt2, .pth or .safetensors")
        network = self.network if self.device.type == "cpu" else copy.deepcopy(self.network).cpu()
        writers[out.suffix](network, self.config, out, cameras, size)
        return out

    def save_pretrained(self, folder: PathLike, half: bool = False) -> Path:
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
        x, y, z = self.config.model.grid.shape
        numbers = sum(int(np.prod(p.shape)) for p in self.network.parameters())
        return f"TPVFormer({self.config.name}, {x}x{y}x{z} voxels, {numbers / 1e6:.1f} M parameters, {self.device})"
