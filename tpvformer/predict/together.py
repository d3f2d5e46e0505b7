"""Advance several drives at once: one frame of each is a batch of the network, and each drive has its own history."""

from __future__ import annotations

from typing import Iterable, Iterator, List, Optional, Sequence

import torch

from tpvformer.config import Config
from tpvformer.data.rig.from_many import Moment
from tpvformer.data.transforms import make_sample
from tpvformer.engine.device.preflight import check_embeddings
from tpvformer.engine.logging.phase_timer import Elapsed, PhaseTimer
from tpvformer.model import TPVFormer
from tpvformer.predict.encoded_frame import EncodedFrame, plane_features
from tpvformer.predict.result import Result
from tpvformer.predict.stream import Stream
from tpvformer.runtime import compiling


def advance_together(
    network: TPVFormer,
    config: Config,
    device: torch.device,
    drives: Sequence[Iterable[Moment]],
    streams: Sequence[Stream],
) -> Iterator[List[Optional[Result]]]:
    """Yield the results of one frame of each drive, in the order of the drives; None for a drive that has ended.

    The iterator ends with the longest drive. Raises DataError where the images of a step have different shapes.
    """
    each = [iter(drive) for drive in drives]
    while True:
        moments = [next(drive, None) for drive in each]
        if all(moment is None for moment in moments):
            return
        found: List[Optional[Result]] = [None] * len(moments)
        present = [k for k, moment in enumerate(moments) if moment is not None]
        chosen = [moment for moment in moments if moment is not None]
        with compiling.said_together():
            results = _step(network, config, device, chosen, [streams[k] for k in present])
        for k, result in zip(present, results):
            found[k] = result
        yield found


def _step(
    network: TPVFormer, config: Config, device: torch.device, moments: Sequence[Moment], streams: Sequence[Stream]
) -> List[Result]:
    """Return the result of each frame; ``seconds`` of each is its own part of the batch's time."""
    shared = PhaseTimer(device)
    frames = [moment.load() for moment in moments]
    shared.end("decode")
    for frame in frames:
        check_embeddings(max(frame.camera_slots or range(len(frame.camera_names))) + 1, "the rig", config)
    samples = [make_sample(frame, config.data, config.model.grid, None) for frame in frames]
    seen = [stream.before(frame) for stream, frame in zip(streams, frames)]
    features = plane_features(network, samples, config, device, shared, seen)
    shared.end("network")
    results = []
    for moment, stream, frame, sample, history, planes in zip(moments, streams, frames, samples, seen, features):
        marks = PhaseTimer(device)
        for part in ("decode", "preprocess"):
            marks.spent[part] = _part_of(shared.spent[part], len(frames))
        scene = EncodedFrame(network, sample, config, device, marks, history, planes)
        stream.after(frame, history, scene.history)
        place = moment.scene, moment.number
        result = Result(scene, frame, sample, config, marks, *place, stream.memory, stream.sight)
        result.seconds["model"] += shared.spent["network"].wall / len(frames)
        results.append(result)
    return results


def _part_of(spent: Elapsed, frames: int) -> Elapsed:
    return Elapsed(spent.wall / frames, spent.cpu / frames)
