"""Use TPVFormer in three lines of Python: ``from_pretrained``, ``predict``, and a result to show, query and save."""

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

from tpvformer.compat import CheckpointError, Report, load_config, load_weights
from tpvformer.compat.checkpoints import load_content
from tpvformer.compat.config_file import shipped
from tpvformer.compat.hub import upload
from tpvformer.compat.pretrained import EMBEDDED, find_weights, open_pretrained, save_folder
from tpvformer.config import Config
from tpvformer.data.detection.decode import decode as decode_boxes  # noqa: F401  # a public name
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
from tpvformer.predict.encoded_frame import EncodedFrame
from tpvformer.predict.result import Result, Results
from tpvformer.predict.stream import Memory, Stream, warn_once
from tpvformer.predict.together import advance_together
from tpvformer.runtime import compiling

PathLike = Union[str, "os.PathLike[str]"]
ConfigLike = Union[Config, PathLike]
DeviceLike = Union[str, torch.device]
Given = Union[Images, Sequence[Images], PathLike]


def list_models(pretrained: bool = False) -> List[str]:
    """Return the names of shipped configurations, for ``TPVFormer(name)``, which has fresh weights.

    With ``pretrained``, return the names of weights inside this package, for ``TPVFormer.from_pretrained(name)``.
    docs/configs.md lists other weights.
    """
    return list(EMBEDDED) if pretrained else list(shipped())


class TPVFormer:
    """Hold a model with its configuration and device. ``network`` is the ``torch.nn.Module``.

    The constructor makes fresh weights. ``config`` is the name of a shipped configuration, such as "demo", a
    configuration file, or a ``Config``. ``device`` is a ``torch.device`` or its name, or "auto". ``precision`` holds
    the precision of the image network and its reason.
    """

    def __init__(self, config: ConfigLike, device: DeviceLike = "auto") -> None:
        self.config = config if isinstance(config, Config) else load_config(config)
        self._choose_device(device)
        with torch.random.fork_rng(devices=()):  # fresh weights have their own seed; the caller's random state stays
            self.network = build_model(self.precision.applied(self.config), self.device).eval()
        self.report: Optional[Report] = None  # how every entry of the weight file was used
        self.source: Optional[str] = None  # the weight file

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
        which: Optional[str] = None,
    ) -> TPVFormer:
        """Open weights.

        ``source`` is one of: "demo", the weights inside this package; a folder of ``save_pretrained``; a run's work dir
        or checkpoint; the reference's .pth; ``owner/name``, a repository of Hugging Face's hub (at ``revision``), if
        huggingface_hub is installed. A local folder named demo is given as ``"./demo"`` or a ``Path``.

        The configuration is the stored one; for the reference's files it is inferred from the shapes. ``config``
        replaces it. which: "ema" or "raw" of a run with ``train.ema``, the average of the weights or those of the last
        step; default: the average where there is one. Every tensor must be present and fit. Raises CheckpointError that
        names tensors which are missing, unknown, of another shape, or not finite (``allow_nonfinite``: a warning
        instead), and for a file that would execute code. Raises ConfigError for a configuration or device.
        """
        given = config if config is None or isinstance(config, Config) else load_config(config)
        found = open_pretrained(source, given, revision)
        model = cls(found.config, device)
        model.report = load_content(model.network, found.content, found.source, allow_nonfinite, which=which)
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
        """Return the class name of each label."""
        return dict(enumerate(self.config.data.label_classes.names))

    @overload
    def predict(self, images: None = None, rig: Optional[Rig] = None, points: None = None) -> Results: ...

    @overload
    def predict(
        self,
        images: Mapping[str, Any],
        rig: Rig,
        points: Optional[Any] = None,
        history: Optional[Memory] = None,
        ego2global: Optional[Any] = None,
        timestamp: Optional[Any] = None,
    ) -> Result: ...

    @overload
    def predict(
        self,
        images: Optional[Given] = None,
        rig: Optional[Rig] = None,
        points: Optional[Any] = None,
        history: Optional[Memory] = None,
        ego2global: Optional[Any] = None,
        timestamp: Optional[Any] = None,
    ) -> Any: ...

    def predict(
        self,
        images: Optional[Given] = None,
        rig: Optional[Rig] = None,
        points: Optional[Any] = None,
        history: Optional[Memory] = None,
        ego2global: Optional[Any] = None,
        timestamp: Optional[Any] = None,
    ) -> Union[Result, Results]:
        """Predict the classes of voxels and points, for one frame, for several, or for the frames of a rig file.

        images: a mapping from camera name to image, or a list in the order of the rig's cameras. An image is a path, an
        array (height, width, 3) uint8 in RGB order (convert OpenCV's with ``image[..., ::-1]``), a tensor (3, height,
        width), uint8 or float from 0 to 1, or a PIL image; sizes may differ. Or a folder with files named after the
        cameras. rig: the path of a rig file (docs/rig.md), its content as a dictionary, or lidar2img matrices (4, 4),
        lidar metres to pixels of these images times depth, by camera name or in the images' order. points (P, 3 or
        more): metres, lidar frame, to be classified and saved too; optional. This returns one ``Result``.

        A list of such images (with a list of ``points``), tensors (frames, cameras, 3, height, width), or a folder with
        a folder for each camera returns ``Results``, a list with one result a frame, predicted one after the other. So
        do the frames of a rig with its own images and points: ``predict(rig="rig.json")``, or the folder of that file.

        A model with ``model.history`` remembers: history is the ``history`` of the result before, ego2global the pose
        (4, 4) of the vehicle at this frame, in metres, that of the lidar where ``rig`` is matrices, and timestamp its
        time in seconds; of several frames lists. ``stream`` carries the history on from frame to frame, and so does
        this where it predicts several. Raises DataError and ConfigError for arguments that do not fit.
        """
        asked = self._asked(images, rig, points, ego2global, timestamp)
        if asked.several:
            numbered = list(self._stream(asked, history))
            return Results(result for _, result in sorted(numbered, key=lambda pair: pair[0]))
        stream = Stream(self.config.model, None if history is None else warn_once(), history)
        return next(self._predict(moment, stream) for moment in asked.each)

    __call__ = predict

    def stream(
        self,
        images: Optional[Union[Given, Iterator[Any]]] = None,
        rig: Optional[Rig] = None,
        points: Optional[Any] = None,
        history: Optional[Memory] = None,
        ego2global: Optional[Any] = None,
        timestamp: Optional[Any] = None,
    ) -> Iterator[Result]:
        """Yield the results of ``predict`` one by one, each predicted when it is requested.

        The results of a long drive need not fit into memory together: one of 200x200x16 voxels and 17 classes takes 45
        MB, plus the model's features on its device.

        A model with ``model.history`` runs each frame once and carries on what it remembers, through the frames of a
        file in the order of time, drive by drive. It begins anew, with one UserWarning for each cause, at another scene
        or rig, at a frame that is not later, at one later by more than model.history.max_seconds, and at one further
        away than a vehicle drives; a frame without pose or time is predicted by itself. Each call is a stream of its
        own. images may also be an iterator of tuples (images, ego2global, timestamp, points, rig), of which all but the
        first may be left out: it is read as the results are requested.
        """
        return (result for _, result in self._stream(self._asked(images, rig, points, ego2global, timestamp), history))

    def stream_together(
        self, drives: Sequence[Union[Given, Iterator[Any]]], rig: Optional[Rig] = None
    ) -> Iterator[List[Optional[Result]]]:
        """Yield the results of several drives that advance together: one frame of each is a batch of the network.

        drives: each as ``images`` of ``stream``, such as an iterator of tuples (images, ego2global, timestamp, points,
        rig) or a rig file; rig: the rig of those that name none. Each list has a result for every drive, in their
        order, None for a drive that has ended. Every drive has a history of its own and begins anew by itself; its
        results are those of ``stream``. Images must have equal sizes. Raises DataError and ConfigError.
        """
        asked = [self._asked(drive, rig, None, None, None).each for drive in drives]
        streams = [Stream(self.config.model, warn_once()) for _ in drives]
        return advance_together(self.network, self.config, self.device, asked, streams)

    def _asked(self, images: Any, rig: Optional[Rig], points: Any, ego2global: Any, timestamp: Any) -> Moments:
        by_drive = self.config.model.history is not None
        return moments(images, rig, points, self.config.data.root, ego2global, timestamp, by_drive)

    def _stream(self, asked: Moments, history: Optional[Memory]) -> Iterator[Tuple[int, Result]]:
        """Return numbers in the rig (0 of frames in memory) with results, each predicted when it is requested."""
        stream = Stream(self.config.model, warn_once(), history)
        return ((moment.number, self._predict(moment, stream)) for moment in asked.each)

    def _predict(self, moment: Moment, stream: Stream) -> Result:
        with compiling.said_together():
            marks = PhaseTimer(self.device)
            frame = moment.load()
            marks.end("decode")
            slots = frame.camera_slots or range(len(frame.camera_names))
            check_embeddings(max(slots) + 1, "the rig", self.config)
            sample = make_sample(frame, self.config.data, self.config.model.grid, None)
            scene = stream.step(
                frame, lambda seen: EncodedFrame(self.network, sample, self.config, self.device, marks, seen)
            )
            place = moment.scene, moment.number
            return Result(scene, frame, sample, self.config, marks, *place, stream.memory, stream.sight)

    def to(self, device: DeviceLike) -> TPVFormer:
        """Move the model to a device, as ``from_pretrained(device=...)`` does; return it. Raises ConfigError."""
        self._choose_device(device)
        settle(self.network, self.precision.applied(self.config), self.device)
        return self

    def eval(self) -> TPVFormer:
        """Set evaluation mode, as in ``torch.nn.Module``; ``predict`` does not need it."""
        self.network.eval()
        return self

    def train(
        self,
        config: Optional[ConfigLike] = None,
        work_dir: Optional[PathLike] = None,
        resume_from: Optional[PathLike] = None,
        deterministic: bool = False,
    ) -> Dict[str, Any]:
        """Train as ``tpvformer train`` does, in this process; return the content of summary.json.

        config: the training configuration, as for the constructor. Training starts from the weights this model was
        opened with; a model with fresh weights starts from train.load_from, as the command does. An interrupted run in
        ``work_dir`` (default: output/<name>) is resumed. Afterwards this model has the weights of best.pth. The result
        is empty if a signal stopped the training.

        To set the mode of a ``torch.nn.Module`` use ``model.network.train()``. Raises ConfigError, DataError,
        CheckpointError.
        """
        from tpvformer.engine.train import train
        from tpvformer.viz.report.write import after_training

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

    def val(
        self,
        config: Optional[ConfigLike] = None,
        past_seconds: Optional[float] = None,
        flicker: bool = False,
        shuffle_poses: bool = False,
    ) -> Evaluation:
        """Score the weights as ``tpvformer eval`` does; print the tables and return their numbers.

        config: a configuration with the validation set, for this model; default: ``model.config``. past_seconds: a
        temporal model reads past frames of at most so many seconds before. flicker: add that metric, frames are read
        scene by scene. shuffle_poses: a control for a temporal model, whose past has the motion of other samples
        (docs/time.md). Raises ConfigError and DataError.
        """
        from tpvformer.engine.evaluation.checkpoint_scores import evaluate_checkpoint

        chosen = self.config if config is None else config if isinstance(config, Config) else load_config(config)
        if chosen.model != self.config.model:
            raise ConfigError(
                f"{chosen.name} describes another model than this one, {self.config.name}; expected the same model "
                "section: change model.config's data instead, with dataclasses.replace"
            )
        try:
            return evaluate_checkpoint(
                chosen,
                self.network,
                str(self.device),
                past_seconds=past_seconds,
                flicker=flicker,
                shuffle_poses=shuffle_poses,
            )
        finally:
            settle(self.network, self.precision.applied(self.config), self.device).eval()

    def export(self, path: PathLike, cameras: int = 6, size: Tuple[int, int] = (1600, 900)) -> Path:
        """Write the model for other runtimes, as ``tpvformer export`` does (docs/export.md); return the path.

        The suffix sets the format: .onnx (needs ``pip install "tpvformer[onnx]"``) or .pt2, a program of torch.export,
        for ``cameras`` images of ``size`` (width, height) pixels; .pth or .safetensors, weights under the reference's
        names. Raises ConfigError and CheckpointError.
        """
        from tpvformer.export import WRITERS, format_of

        out = Path(path)
        form = format_of(out)
        moved = form != "weights" and self.device.type != "cpu"  # programs are traced on the CPU
        network = copy.deepcopy(self.network).cpu() if moved else self.network
        WRITERS[form](network, self.config, out, cameras, size)
        return out

    def save_pretrained(self, folder: PathLike, half: bool = False) -> Path:
        """Write config.json, model.safetensors and README.md, a model card; return the folder.

        ``half``: store parameters as float16, in half the bytes; they are opened as float32. Raises CheckpointError if
        the folder cannot be written, or if a number is too large for float16.
        """
        path = Path(folder)
        save_folder(self.network, self.config, path, half)
        return path

    def push_to_hub(self, hub_id: str, private: bool = False) -> str:
        """Upload the files of ``save_pretrained`` to Hugging Face's hub as ``owner/name``; return the address.

        Needs huggingface_hub and its login. Raises CheckpointError.
        """
        with tempfile.TemporaryDirectory() as folder:
            return upload(self.save_pretrained(folder), hub_id, private)

    def __repr__(self) -> str:
        x, y, z = self.config.model.grid.shape
        numbers = sum(int(np.prod(p.shape)) for p in self.network.parameters())
        return f"TPVFormer({self.config.name}, {x}x{y}x{z} voxels, {numbers / 1e6:.1f} M parameters, {self.device})"
