"""Draw a synthetic street and predict it with the weights inside the package: the first look of ``tpvformer demo``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Tuple

from tpvformer.config import Config
from tpvformer.errors import ConfigError

if TYPE_CHECKING:
    from tpvformer.viz.frame_prediction import FramePrediction

SEED = 8001  # seed of the city that is shown
TRAINING_SEED = 1  # seed of the city of the package's weights, as in `make demo`
SIZE = (224, 128)  # width and height of the images in pixels, as in training
SCENES = 2  # the smallest data set; only the first scene is shown
STREET, PREDICTION, PAGE, PICTURE = "street", "prediction", "page.html", "picture.png"  # the output files

_NEXT = """\
next     predict from its rig.json; then put the calibration and images of your own cameras into a copy of that file:
           tpvformer predict --ckpt-path {weights} --rig {rig} --out {out}
         train this model yourself, in a checkout of the repository:
           {training}
The model was trained on drawn streets only; it does not work on photographs."""

_TRAINING = {False: "make demo", True: "the two commands at the top of config/demo_dense.py"}


def run_demo(out: Path, seed: int, device: str, dense: bool = False) -> Iterator[str]:
    """Write the street of ``seed``, its prediction, a page and a picture to ``out``; yield lines about them.

    ``dense``: with the weights that know free space, on a street with dense labels.

    Raises ConfigError if ``out`` holds other files of these names, and for the seed of the training.
    """
    weights = "demo_dense" if dense else "demo"
    rig = _street(out, seed, dense)
    yield f"street   {rig.parent}: one frame of a drawn city, seed {seed}; the model learned in another"
    config, result = _predicted(rig, out / PREDICTION, device, weights)
    score = _score(result, config)
    _write_page(out / PAGE, result, f"TPVFormer: a drawn street, seed {seed}")
    yield f"page     {out / PAGE}: open it in any browser; turn it, switch classes, compare with the truth"
    _write_picture(out / PICTURE, result, config, f"a drawn street, seed {seed}; this one frame: {score}")
    yield f"picture  {out / PICTURE}: predicted classes of lidar points on six cameras; below, voxels from above"
    yield f"score    this one frame: {score}"
    words = {"rig": shlex.quote(str(rig)), "out": shlex.quote(str(out / "again"))}
    yield _NEXT.format(weights=weights, training=_TRAINING[dense], **words)


def _street(out: Path, seed: int, dense: bool) -> Path:
    """Return the rig file of the street; write its data set, perhaps with dense labels, if it does not exist.

    Raises ConfigError if another file has one of the output names. Only files of an earlier demo are replaced.
    """
    from tpvformer.data.street.write import PARAMETERS, RIG, write_dataset

    if seed == TRAINING_SEED:
        raise ConfigError(f"--seed {seed} is the city that the model was trained in; choose another, such as {SEED}")
    street = out / STREET
    if not (street / PARAMETERS).is_file():
        for name in (STREET, PREDICTION, PAGE, PICTURE):
            if (out / name).exists():
                raise ConfigError(f"{out / name} exists and is not from a demo; choose another --out, or move it away")
    write_dataset(street, SCENES, SIZE, seed, frames_per_scene=1, workers=1, occupancy=dense)
    return street / RIG


def _predicted(rig: Path, folder: Path, device: str, weights: str) -> Tuple[Config, FramePrediction]:
    """Return the model's configuration and its prediction with the truth; write the archive to ``folder``.

    Dense labels are found by the data set's tables, those of points by the rig file.
    """
    from tpvformer.compat.pretrained import config_of, embedded_file
    from tpvformer.predict.frames import FramePredictions
    from tpvformer.predict.read_results import read_results

    file, street = embedded_file(weights), rig.parent
    config = config_of(file)
    if config.data.occupancy:
        places = {"root": street, "val_infos": street / "nuscenes_infos_val.pkl", "occupancy_root": street / "gts"}
        data = replace(config.data, **{name: str(place) for name, place in places.items()})
        config = replace(config, data=data)
        list(FramePredictions(config, file, folder, index=0, device=device, truth=True))
    else:
        list(FramePredictions(config, file, folder, str(rig), device=device, truth=True))
    return config, read_results([folder])[0]


def _score(result: FramePrediction, config: Config) -> str:
    """Return the share of correct points, and the mean IoU of the classes present, as text."""
    import torch

    from tpvformer.engine.metrics.iou import confusion_matrix, scores

    known, truth = config.data.label_classes, result.true_point_labels
    assert truth is not None, "the street has labels"
    target = torch.from_numpy(truth.astype("int64"))
    predicted = torch.from_numpy(result.point_labels.astype("int64"))
    counts = confusion_matrix(predicted, target, len(known.names), config.data.ignore_label)
    iou = scores(counts, known.evaluated)
    right, there = 100 * int(counts.diagonal().sum()) / int(counts.sum()), sum(map(bool, iou.seen))
    return f"{right:.1f} % of {int(counts.sum())} points right, {iou.miou:.1f} % mIoU over the {there} classes in it"


def _write_page(path: Path, result: FramePrediction, title: str) -> None:
    from tpvformer.files import atomic_file
    from tpvformer.viz.viewer import write_page

    with atomic_file(path) as file:
        write_page(file, [result], title)


def _write_picture(path: Path, result: FramePrediction, config: Config, title: str) -> None:
    from tpvformer.predict.draw import seen_from_above, vehicle_place  # imports PyTorch, which comes before OpenCV

    # isort: split
    import cv2
    import numpy as np

    from tpvformer.files import atomic_file
    from tpvformer.viz.picture import frame_picture

    assert result.scanned is not None and result.true_voxels is not None, "the street has points and labels"
    known, frame = config.data.label_classes, config.model.grid.frame
    knows_free = known.empty < len(known.names)
    picture = frame_picture(
        [camera.picture() for camera in result.cameras],
        [camera.name for camera in result.cameras],
        np.stack([camera.lidar2img for camera in result.cameras]),
        result.points,
        result.point_labels,
        seen_from_above(np.where(result.scanned | knows_free, result.voxels, 0), frame),
        seen_from_above(result.true_voxels, frame),
        title,
        known,
        vehicle_place(config.model.grid.pc_range, frame),
    )
    with atomic_file(path) as file:
        file.write(cv2.imencode(".png", picture)[1].tobytes())
