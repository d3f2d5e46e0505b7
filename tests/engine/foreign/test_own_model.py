"""``--own-model`` in a patched checkout: its own edited model in this package's loop, with the tests' own mmcv.

The checkout (tests/support/own_tools.py) holds a model of tests/fork/checkout: deformable attention and DCNv2 of
mmcv's, voxels by lidar2img, points changed in place, masks drawn by numpy, ``.cuda()``.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, Dict, List

import own_tools as own
import pytest
from engine_tools import CPU, save_epoch
from launchers import BLOCK, block
from needs import needs_card

from tpvformer.compat import load_config
from tpvformer.compat.tensors import read_archive
from tpvformer.engine.checkpoint.state import Progress
from tpvformer.engine.optim import Stepper
from tpvformer.model import TPVFormer
from tpvformer.untrusted.pickle import load_pickle

# The model called by hand: images, calibration, points and labels of the files, and no data set or batch of ours.
HAND = """
import json, pickle, sys
from pathlib import Path
import cv2, numpy as np, torch
from torch.nn import functional as F
from builder import tpv_lidarseg_builder
from tpvformer.compat.tensors import read_archive
from tpvformer.engine.losses import lovasz_labels
from tpvformer.labels import RAW_TO_CLASS
section, split, weights = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:]
torch.manual_seed(0)
model = tpv_lidarseg_builder.build(section)
if weights:
    model.load_state_dict(read_archive(weights[0])["state_dict"])
    model.eval()
low, high, size = np.float64([-51.2, -51.2, -5]), np.float64([51.2, 51.2, 3]), np.array([10, 12, 4])
root, losses = Path("data/nuscenes"), {}
for info in pickle.loads(Path(f"data/nuscenes_infos_{split}.pkl").read_bytes())["infos"]:
    images, matrices = np.zeros((1, 6, 64, 96, 3), np.float32), []
    for k, camera in enumerate(info["cams"].values()):
        file = root / camera["data_path"].split("somewhere/else/")[1]
        images[0, k, :45, :77] = cv2.imread(str(file)) - np.float32([103.530, 116.280, 123.675])
        inner, outer = np.eye(4), np.eye(4)
        turned = np.linalg.inv(camera["sensor2lidar_rotation"])
        outer[:3, :3], outer[:3, 3] = turned, -turned @ camera["sensor2lidar_translation"]
        inner[:3, :3] = camera["cam_intrinsic"]
        matrices.append(inner @ outer)
    scan = np.fromfile(root / info["lidar_path"].split("somewhere/else/")[1], np.float32).reshape(-1, 5)[:, :3]
    index = np.floor((np.clip(scan.astype(np.float64), low, high) - low) / ((high - low) / (size - 1))).astype(int)
    number = info["token"][len("sample"):]
    raw = np.fromfile(root / f"lidarseg/v1.0-mini/scan{number}_lidarseg.bin", np.uint8)
    labels = np.array(RAW_TO_CLASS)[raw]
    votes = np.zeros((*size, 17), int)
    np.add.at(votes, (*index.T, labels), 1)
    voxels = np.where(votes.any(-1), votes.argmax(-1), 0)
    metas = [{"lidar2img": matrices, "img_shape": [(64, 96, 3)] * 6}]
    images = torch.from_numpy(images).permute(0, 1, 4, 2, 3).contiguous()
    with torch.no_grad():
        dense, sparse = model(points=torch.from_numpy(index).float()[None], img_metas=metas, img=images)
    loss = F.cross_entropy(dense, torch.from_numpy(voxels)[None], ignore_index=0)
    loss = loss + lovasz_labels(sparse.flatten(2), torch.from_numpy(labels)[None], 0).mean()
    losses[info["token"]] = loss.item()
print(json.dumps(losses))
"""
# put below the model: it asks the run to stop in the training step of that number
STOPS = """

def stopping(forward, steps=[]):
    def run(self, *args, **kwargs):
        import os, signal
        steps.extend([0] * self.training)
        if self.training and len(steps) == int(os.environ.get("STOP_IN_STEP", "0")):
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *args, **kwargs)
    return run


EditedFormer.forward = stopping(EditedFormer.forward)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = own.make(tmp_path_factory.mktemp("own") / "a checkout")
    file = folder / own.MODEL
    file.write_text(file.read_text() + STOPS)
    return folder


@pytest.fixture(scope="module")
def trained(checkout: Path) -> str:
    """Two epochs of two steps."""
    return own.train(checkout, "out", "--own-model").stdout


def records(folder: Path, kind: str) -> List[Dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def by_hand(checkout: Path, split: str, model: Dict[str, Any], *weights: str) -> Dict[str, float]:
    (checkout / "hand.py").write_text(HAND)
    command = ("python", "-m", "tpvformer", "run", "--device", "cpu", "hand.py")
    done = own.run(checkout, *command, json.dumps(model), split, *weights, PYTHONWARNINGS="ignore")
    return json.loads(done.stdout.splitlines()[-1])


def test_it_is_trained_in_our_loop(checkout: Path, trained: str) -> None:
    work = checkout / "out"
    assert f"the checkout's own model is used: EditedFormer by config/own.py, code of {checkout.resolve()}" in trained
    assert "--own-model" not in trained  # no remark on changed code: it was said which is meant
    assert trained.count("np.float is not in numpy") == 1
    assert trained.count("[TRAIN]") == 4 and list(block(trained)) == BLOCK
    assert len(records(work, "eval")) == 2 and json.loads((work / "summary.json").read_text())["global_iter"] == 4
    assert "a page of this run" in trained and "could not be made" not in trained
    content = read_archive(work / "latest.pth")
    names = list(content["state_dict"])
    assert "img_backbone.one.conv_offset.weight" in names and "layers.1.value.bias" in names and "cams_embeds" in names
    rates = [group["initial_lr"] for group in content["optimizer"]["param_groups"]]
    assert rates == pytest.approx([2e-4, 2e-5])  # the configuration's for img_backbone
    assert json.loads(content["own_model"]) == own.section()


def test_losses_equal_the_model_called_by_hand(checkout: Path, trained: str) -> None:
    found = {row["token"]: row["loss"] for row in records(checkout / "out", "eval")[-1]["worst"]}
    expected = by_hand(checkout, "val", own.section(), "out/latest.pth")
    assert set(found) == set(expected) == {"sample1", "sample2"}
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_edit_takes_effect(checkout: Path, tmp_path: Path) -> None:
    """The first step's loss with fresh weights is that of the edited code, in a copy of the checkout."""
    folder = tmp_path / "edited"
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns("out", "__pycache__"))
    plain = own.section(use_grid_mask=False)
    own.write_config(folder, model=plain)
    before = by_hand(folder, "train", plain)
    file = folder / own.MODEL
    file.write_text(file.read_text().replace("GAIN = 1.0", "GAIN = 3.0"))
    after = by_hand(folder, "train", plain)
    own.train(folder, "one", "--own-model", "--max-steps", "1")
    (first,) = records(folder / "one", "train")
    near = [any(first["loss"] == pytest.approx(loss, rel=1e-5) for loss in side.values()) for side in (before, after)]
    assert near == [False, True]


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(checkout: Path, trained: str) -> None:
    done = own.train(checkout, "halves", "--own-model", STOP_IN_STEP="1")
    assert "stopped by SIGTERM at epoch 0, iteration 1" in done.stdout and "Final Performance" not in done.stdout
    done = own.train(checkout, "halves", "--own-model")
    assert "at epoch 0, iteration 1" in done.stdout and done.stdout.count("[TRAIN]") == 3
    whole, halves = (read_archive(checkout / name / "epoch_2.pth") for name in ("out", "halves"))
    assert all(value.equal(halves["state_dict"][name]) for name, value in whole["state_dict"].items())
    states = [content["optimizer"]["state"] for content in (whole, halves)]
    assert all(value.equal(states[1][key][name]) for key, row in states[0].items() for name, value in row.items())


def test_two_processes_make_the_step_of_two_samples(checkout: Path) -> None:
    own.write_config(checkout, "config/plain.py", own.section(use_grid_mask=False))
    steps = ("--own-model", "--max-epochs", "1")
    together = own.train(checkout, "two", *steps, "--processes", "2", config="config/plain.py").stdout
    own.train(checkout, "one", *steps, "--set", "train.accumulate=2", config="config/plain.py")
    assert together.count("np.float is not in numpy") == 1 and "on 2 x cpu" in together
    assert together.count("the checkout's own model is used") == 1
    two, one = (read_archive(checkout / name / "epoch_1.pth")["state_dict"] for name in ("two", "one"))
    scores = [records(checkout / name, "eval")[0]["loss"] for name in ("two", "one")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    gaps = {name: float((two[name] - value).abs().max()) for name, value in one.items()}
    assert max(gaps.values()) < 1e-6, gaps


@needs_card
def test_a_pretended_npu_that_is_not_the_first(checkout: Path, trained: str) -> None:
    """What the model's code calls cuda is the card that --device names; stopped in an epoch, it goes on there."""
    card = {"STANDIN_SDK": "26.x", "STANDIN_CARDS": "2"}
    done = own.train(checkout, "npu", "--own-model", "--device", "npu:1", **card, STOP_IN_STEP="1")
    assert "stopped by SIGTERM at epoch 0, iteration 1" in done.stdout
    own.train(checkout, "npu", "--own-model", "--device", "npu:1", **card)
    for kind in ("train", "eval"):
        ours, theirs = ([row["loss"] for row in records(checkout / name, kind)] for name in ("npu", "out"))
        assert len(ours) == len(theirs) > 1 and ours == pytest.approx(theirs, rel=1e-4)
    flags = ("--own-model", "--device", "npu:1", "--json", "npu.json")
    own.evaluate(checkout, "npu/latest.pth", *flags, **card)
    scores = json.loads((checkout / "npu.json").read_text())
    assert scores["loss"] == pytest.approx(records(checkout / "npu", "eval")[-1]["loss"], rel=1e-6)


def test_eval(checkout: Path, trained: str) -> None:
    wanted = records(checkout / "out", "eval")[-1]
    flags = ("--own-model", "--json", "scores.json")
    done = own.evaluate(checkout, "out/latest.pth", *flags)
    assert "(weights of the checkout's own model)" in done.stdout
    scores = json.loads((checkout / "scores.json").read_text())
    assert scores["loss"] == wanted["loss"] and scores["pts"] == wanted["pts"] and scores["samples"] == 2


def test_weights_of_the_two_kinds_are_not_mixed(checkout: Path, trained: str) -> None:
    ours = "ckpts/published.pth"
    said = own.train(checkout, "out", status=2).stderr  # the package's model, in the same work dir
    assert said.count("\n") == 1 and "'an_option_of_theirs' is not a key that is understood here" in said
    assert said.endswith("; if the checkout's own model is meant, add --own-model\n")
    theirs = own.train(checkout, "out", config="config/tiny.py", status=2).stderr
    assert (
        theirs.count("\n") == 1 and "holds weights of a checkout's own model, and this run trains this pack" in theirs
    )
    assert "add --own-model, or choose a fresh --work-dir" in theirs
    other = own.write_config(checkout, "config/other.py", own.section(use_grid_mask=False))
    said = own.train(checkout, "out", "--own-model", config=str(other.relative_to(checkout)), status=2).stderr
    assert said.count("\n") == 1 and "model.use_grid_mask is True there and False here" in said
    said = own.evaluate(checkout, ours, "--own-model", status=2).stderr
    assert said.count("\n") == 1 and "does not fit the checkout's own model, EditedFormer" in said
    said = own.run(
        checkout, *("python", "eval.py", "--py-config", "config/tiny.py", "--ckpt-path", "out/latest.pth"), status=2
    ).stderr
    assert said.count("\n") == 1 and "latest.pth: holds weights of a checkout's own model" in said


def test_our_checkpoint_is_refused_with_the_flag(checkout: Path) -> None:
    config = load_config(checkout / "config/tiny.py")
    model = TPVFormer(config.model)
    (checkout / "ours").mkdir()
    save_epoch(checkout / "ours", model, Stepper(model, config.optim, CPU), config, Progress(epoch=1))
    said = own.train(checkout, "ours", "--own-model", status=2).stderr
    assert said.count("\n") == 1
    assert "holds weights of this package's model, and this run trains a checkout's own model; say --no-own-mod" in said
    said = own.evaluate(checkout, "ours/latest.pth", "--own-model", status=2).stderr
    assert said.count("\n") == 1 and "holds weights of this package's model, and --own-model runs the chec" in said


def test_changed_code_is_remarked_once_with_the_flag_s_name(checkout: Path) -> None:
    short = ("--max-steps", "1", "--set", "train.load_from=null")
    done = own.train(checkout, "remarked", *short, config="config/tiny.py")
    lines = [line for line in done.stdout.splitlines() if "tpvformer10/" in line]
    assert len(lines) == 1 and "take --own-model for the checkout's own model, and --no-own-model" in lines[0]
    done = own.train(checkout, "silent", *short, "--no-own-model", config="config/tiny.py")
    assert "tpvformer10/" not in done.stdout and "[TRAIN]" in done.stdout
    assert (
        "TPVFORMER_OWN_MODEL is 'yes'; expected 1"
        in own.train(checkout, "x", status=2, TPVFORMER_OWN_MODEL="yes").stderr
    )


def test_a_validation_sample_without_a_camera_ends_it_before_the_first_step(checkout: Path) -> None:
    content = load_pickle(checkout / "data/nuscenes_infos_val.pkl")
    del content["infos"][1]["cams"]["CAM_BACK"]
    (checkout / "data/uneven.pkl").write_bytes(pickle.dumps(content))
    done = own.train(checkout, "uneven", "--own-model", "--set", "data.val_infos=data/uneven.pkl", status=2)
    assert "needs the same cameras in every sample" in done.stderr and done.stderr.count("\n") == 1
    assert "data/uneven.pkl: record 1 (sample" in done.stderr and "[TRAIN]" not in done.stdout


def test_launcher_and_variable(checkout: Path) -> None:
    launcher = ("bash", "test/train_1p.sh", f"--py_config={own.CONFIG}", "--performance=1", "--work_dir=launched")
    said = "the checkout's own model is used"
    assert said in own.run(checkout, *launcher, "--own_model=1").stdout
    assert said in own.run(checkout, *launcher, TPVFORMER_OWN_MODEL="1").stdout
    refused = own.run(checkout, *launcher, "--own_model=0", TPVFORMER_OWN_MODEL="1", status=2).stderr
    assert (
        "'an_option_of_theirs' is not a key" in refused and "add --own" not in refused
    )  # this package's model was asked for
    assert "--own_model is '2'; expected 0 or 1" in own.run(checkout, *launcher, "--own_model=2", status=2).stderr


def test_a_checkout_without_a_builder(checkout: Path, trained: str, tmp_path: Path) -> None:
    """mmseg's registry builds what the package, or a module of ``custom_imports``, has registered."""
    imports = {"imports": ["not_there_at_all", "mine.former"], "allow_failed_imports": True}
    for name, more in (("package", {}), ("imports", {"custom_imports": imports})):
        folder = tmp_path / name
        shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns("out", "builder", "__pycache__"))
        if more:
            (folder / "tpvformer10").rename(folder / "mine")
        own.write_config(folder, **more)
        done = own.train(folder, "first", "--own-model", "--max-steps", "1")
        assert "the checkout's own model is used: EditedFormer" in done.stdout
        assert ("not_there_at_all was not imported (No module named" in done.stdout) == bool(more)
        losses = [records(place, "train")[0]["loss"] for place in (folder / "first", checkout / "out")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6), "init_weights was not called"
    own.write_config(folder, model=own.section(type="Edited"), **more)
    said = own.train(folder, "two", "--own-model", "--max-steps", "1", status=2).stderr
    assert said.count("\n") == 1 and "config/own.py: Edited is not in the segmentor registry; correct that type" in said
    own.write_config(folder, custom_imports={"imports": "mine.former"})
    shutil.rmtree(folder / "mine")
    said = own.train(folder, "two", "--own-model", "--max-steps", "1", status=2).stderr
    assert said.count("\n") == 1 and "the checkout's code needs mine, which is not installed" in said


def test_without_mmcv_one_sentence_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    said = own.train(checkout, "none", "--own-model", status=2, site=False).stderr
    assert said.count("\n") == 1
    assert "the checkout's own model needs mmcv, which is not" in said and "tools/openmmlab_env.sh DIR" in said
    (tmp_path / "config").mkdir()
    elsewhere = own.write_config(tmp_path)
    folder = tmp_path / "empty"
    shutil.copytree(checkout / "data", folder / "data")
    command = ("train", "--py-config", str(elsewhere), "--work-dir", "w", "--own-model", "--device", "cpu")
    said = own.run(folder, "python", "-m", "tpvformer", *command, status=2).stderr
    assert said.count("\n") == 1 and "has neither tpvformer10/ nor builder/tpv_lidarseg_builder.py" in said
