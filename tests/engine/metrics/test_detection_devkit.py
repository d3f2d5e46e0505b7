"""nuscenes-devkit's DetectionEval is the oracle of our detection scores.

The devkit's interpreter is named as test_against_devkit.py says.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Sequence

import detection_tools as tools
import numpy as np
import programs
import pytest
from engine_tools import tiny_config
from needs import PYTHON, has_devkit

from tpvformer.config import DataConfig
from tpvformer.data.dataset import FrameDataset
from tpvformer.data.detection.boxes import DETECTION_CLASSES, Boxes
from tpvformer.data.street.write import MINI_VAL, write_dataset
from tpvformer.engine.distributed.collectives import World
from tpvformer.engine.evaluation import box_submission
from tpvformer.engine.evaluation import boxes as box_scores
from tpvformer.engine.evaluation.boxes import with_attributes
from tpvformer.engine.logging.log import RunLog
from tpvformer.engine.metrics.detection import DetectionCounts, DetectionScores
from tpvformer.engine.metrics.detection_curves import ERROR_NAMES
from tpvformer.engine.metrics.detection_matching import DISTANCES, placed
from tpvformer.engine.metrics.named import RING_NAMES, RINGS

pytestmark = pytest.mark.skipif(
    not has_devkit(), reason="no nuscenes-devkit: TPVFORMER_DEVKIT_PYTHON names no interpreter with it"
)
VERSION = "v1.0-mini"
DEVKIT_NAMES = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
CLOSE = 1e-6


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("street") / "set"
    write_dataset(root, 3, (96, 54), 3, 4, workers=1)
    return root


@pytest.fixture(scope="module")
def where(street: Path) -> List[tools.Place]:
    return tools.places(street, VERSION, MINI_VAL)


def judged(root: Path, path: Path) -> Dict[str, Any]:
    script = Path(__file__).parents[2] / "support" / "detection_devkit_check.py"
    done = programs.run([PYTHON, str(script), str(root), VERSION, "mini_val", str(path)])
    assert done.returncode == 0, done.stderr
    found: Dict[str, Any] = json.loads(done.stdout)
    return found


def scored(where: Sequence[tools.Place], truth: Sequence[Boxes], predicted: Sequence[Boxes]) -> DetectionScores:
    counts = DetectionCounts([MINI_VAL.index(place.scene) for place in where])
    for k, place in enumerate(where):
        counts.add(k, truth[k], predicted[k], ego=place.ego[:2])
    counts.sum_over_processes()
    return counts.result()


def difference(own: DetectionScores, theirs: Dict[str, Any]) -> float:
    """The largest difference of any number that both compute."""
    pairs = [(own.nds, theirs["nd_score"]), (own.mean_ap, theirs["mean_ap"])]
    for k, (name, error) in enumerate(zip(ERROR_NAMES, DEVKIT_NAMES)):
        pairs.append((own.mean_errors[f"m{name}"], theirs["tp_errors"][error]))
        for c, label in enumerate(DETECTION_CLASSES):
            value = theirs["label_tp_errors"][label][error]
            assert np.isnan(own.errors[c, k]) == np.isnan(value)
            if not np.isnan(value):
                pairs.append((own.errors[c, k], value))
    for c, label in enumerate(DETECTION_CLASSES):
        pairs += [(own.ap[c, k], theirs["label_aps"][label][str(d)]) for k, d in enumerate(DISTANCES)]
    return max(abs(a - b) for a, b in pairs)


def compared(
    root: Path, where: Sequence[tools.Place], tracks: Sequence[tools.Track], predicted: Sequence[Boxes], folder: Path
) -> DetectionScores:
    tools.write_annotations(root, VERSION, tracks, where)
    path = folder / "results_nusc.json"
    path.write_text(json.dumps(tools.results(where, predicted)))
    own = scored(where, tools.truth_of(tracks, len(where)), predicted)
    apart = difference(own, judged(root, path))
    print(f"nds {own.nds:.4f}, map {own.mean_ap:.4f}; largest difference to the devkit {apart:.2g}")
    assert apart < CLOSE
    return own


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_boxes(street: Path, where: List[tools.Place], tmp_path: Path, seed: int) -> None:
    tracks = tools.random_tracks(where, 25, seed)
    truth = tools.truth_of(tracks, len(where))
    own = compared(street, where, tracks, tools.guesses(truth, where, seed), tmp_path)
    assert 0.05 < own.mean_ap < 0.9


def test_perfect_boxes(street: Path, where: List[tools.Place], tmp_path: Path) -> None:
    tracks = tools.random_tracks(where, 25, 3)
    own = compared(street, where, tracks, tools.perfect(tools.truth_of(tracks, len(where))), tmp_path)
    assert own.mean_ap > 0.99 and own.mate < 1e-9 and own.mase < 1e-9 and own.mave < 1e-6


def test_classes_without_truth_or_predictions(street: Path, where: List[tools.Place], tmp_path: Path) -> None:
    bus, trailer = DETECTION_CLASSES.index("bus"), DETECTION_CLASSES.index("trailer")
    tracks = tools.random_tracks(where, 20, 4, without=(bus,))
    predicted = tools.guesses(tools.truth_of(tracks, len(where)), where, 4, without=(trailer,))
    own = compared(street, where, tracks, predicted, tmp_path)
    assert own.truths[bus] == 0 and own.truths[trailer] > 0
    assert own.ap[bus].tolist() == own.ap[trailer].tolist() == [0.0] * 4
    assert own.errors[bus].tolist() == [1.0] * 5


@pytest.mark.parametrize("ring", [0, 1, 2])
def test_a_ring_is_what_the_devkit_says_of_its_boxes_alone(
    street: Path, where: List[tools.Place], tmp_path: Path, ring: int
) -> None:
    """The racks stay, as they leave cycles out whatever their own distance is."""
    tracks = tools.random_tracks(where, 60, 5)
    truth = tools.truth_of(tracks, len(where))
    predicted = tools.guesses(truth, where, 5)
    whole = scored(where, truth, predicted)

    def inside(centre: np.ndarray, place: tools.Place) -> bool:
        return int(np.searchsorted(RINGS, np.linalg.norm(centre[:2] - place.ego[:2]), side="right")) == ring

    cut = []
    for track in tracks:  # an annotation each, as chains cannot have holes; velocities do not matter for AP
        for k, row in zip(track.samples, track.rows):
            if track.label == 10 or inside(row["centres"], where[k]):
                cut.append(tools.Track(track.label, [k], [row]))
    predicted = [
        boxes.take(np.array([inside(c, place) for c in boxes.centres], bool)) for boxes, place in zip(predicted, where)
    ]
    tools.write_annotations(street, VERSION, cut, where)
    path = tmp_path / "results_nusc.json"
    path.write_text(json.dumps(tools.results(where, predicted)))
    theirs = judged(street, path)
    alone = scored(where, tools.truth_of(cut, len(where)), predicted)
    present = [label for label, count in zip(DETECTION_CLASSES, alone.truths) if count]
    expected = np.mean([list(theirs["label_aps"][label].values()) for label in present])
    assert whole.ring_map[RING_NAMES[ring]] == pytest.approx(expected, abs=CLOSE)
    assert expected > 0.02


def test_a_submission_is_scored_as_the_evaluation_is(tmp_path: Path, monkeypatch) -> None:
    """From the grid's frame, with real tilted lidars, by way of the JSON file."""
    root = tmp_path / "set"
    write_dataset(root, 3, (96, 54), 7, 4, workers=1)
    where = tools.places(root, VERSION, MINI_VAL, whole=False)
    infos = str(root / "nuscenes_infos_val.pkl")
    config = tiny_config(DataConfig(root=str(root), version=VERSION, train_infos=infos, val_infos=infos, workers=0))
    data = FrameDataset(config.data, config.model.grid, "val", 0)
    assert data.tokens == [place.token for place in where]
    poses = [data.grid2global(i) for i in range(len(data))]
    tracks = tools.random_tracks(where, 30, 8)
    truth = [b.transformed(np.linalg.inv(p)) for b, p in zip(tools.truth_of(tracks, len(where)), poses)]
    centres, yaws, _ = ([*each] for each in zip(*(placed(b, p) for b, p in zip(truth, poses))))
    counts = [0] * len(where)
    for track in tracks:  # the tables hold what the boxes in the grid's frame say, in double precision
        for k, row in zip(track.samples, track.rows):
            row["centres"], row["yaws"] = centres[k][counts[k]], yaws[k][counts[k]]
            counts[k] += 1
    tools.write_annotations(root, VERSION, tracks, where)
    near = [tools.Place(place.token, place.scene, place.seconds, np.zeros(3)) for place in where]
    predicted = dict(zip(data.tokens, map(with_attributes, tools.guesses(truth, near, 8))))
    for module in (box_scores, box_submission):
        monkeypatch.setattr(module, "decoded", lambda tokens, _: [predicted[token] for token in tokens])
    tally, out = box_scores.BoxTally(config, data), tmp_path / "results_nusc.json"
    with box_submission.BoxSubmission(out, data, config, "val", (), World()) as writer:
        for token, boxes in zip(data.tokens, truth):
            batch: Any = SimpleNamespace(tokens=[token], boxes=[boxes])
            tally.add(batch.tokens, batch)
            writer.add(batch, batch.tokens)
        writer.finish(RunLog(None, False))
    theirs, own = judged(root, out), tally.metrics()
    apart = [abs(own["nds"].value / 100 - theirs["nd_score"]), abs(own["map"].value / 100 - theirs["mean_ap"])]
    apart += [abs(own[f"m{name}"].value - theirs["tp_errors"][error]) for name, error in zip(ERROR_NAMES, DEVKIT_NAMES)]
    print("largest difference to the devkit", max(apart), "of nds", own["nds"].text)
    assert max(apart) < CLOSE
    assert own["map"].value > 10
