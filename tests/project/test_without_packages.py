"""What becomes of commands where a package is missing or cannot be loaded, as on processors without a wheel of it; and
what Windows and macOS lack is taken away: everything still imports and predicts."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import programs
import pytest
import torch
from engine_tools import ROOT, environment, tiny_config, tiny_model, write_config
from tiny_nuscenes import write_tiny

from tpvformer.cli import main

HIDE = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(','))); "


def without(modules: str, code: str, *words: str) -> programs.Done:
    """Run the code in a process where importing these modules fails; ``words`` are its sys.argv[2:]."""
    command = [sys.executable, "-c", HIDE + code, modules, *words]
    env = environment()
    del env["TPVFORMER_OPS"]  # "reference" there would not ask for Numba
    return programs.run(command, env=env, seconds=400)


def test_synth_without_numba_is_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "set"
    code = "from tpvformer.cli import main; sys.exit(main(sys.argv[2:]))"
    done = without("numba,llvmlite", code, "synth", "--out", str(out), "--scenes", "2", "--frames", "1")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("tpvformer synth: synth draws with Numba and OpenCV") and not out.exists()


def test_opencv_decodes_where_simplejpeg_is_missing(tmp_path: Path) -> None:
    """The same bytes (test_images.py compares both decoders), and one line about damage that it does not show."""
    path, image = tmp_path / "0.jpg", np.random.RandomState(0).randint(0, 256, (48, 64, 3)).astype(np.uint8)
    path.write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    code = """
from pathlib import Path
from tpvformer.data.images import decode as images
assert not images.FAST
images.read_image(Path(sys.argv[2]), "t")
sys.stdout.write(images.read_images([Path(sys.argv[2])], "t").numpy().tobytes().hex())
"""
    done = without("simplejpeg", code, str(path))
    assert bytes.fromhex(done.stdout) == cv2.imread(str(path)).tobytes(), done.stderr
    assert done.stderr.count("simplejpeg is not installed, so OpenCV decodes JPEGs") == 1, done.stderr


def test_plain_pytorch_serves_where_numba_is_missing_and_it_is_said_once() -> None:
    code = """
import torch
from tpvformer import ops
x, offset, mask = torch.rand(1, 16, 5, 6), torch.zeros(1, 18, 5, 6), torch.ones(1, 9, 5, 6)
weight = torch.rand(4, 16, 3, 3)
for _ in range(2):
    y = ops.modulated_deform_conv2d(x, offset, mask, weight, padding=1)
torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight, padding=1), atol=1e-4, rtol=1e-4)
"""
    done = without("numba,llvmlite", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("plain PyTorch is used instead") == 1, done.stderr


# ---- other systems


SYSTEM = Path(__file__).parents[1] / "support" / "other_system.py"


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_everything_imports_and_a_frame_is_predicted(system: str, tmp_path: Path) -> None:
    file = write_config(tmp_path / "tiny.py", tiny_config(write_tiny(tmp_path / "set", (40, 60)), precision="auto"))
    torch.save(tiny_model().state_dict(), tmp_path / "w.pth")
    paths = [str(file), str(tmp_path / "w.pth"), str(tmp_path / "out")]
    done = programs.run([sys.executable, str(SYSTEM), system, *paths], env=environment(), cwd=ROOT, seconds=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    expected = {
        "win32": "signals ['SIGTERM'] peak False",
        "darwin": "signals ['SIGTERM', 'SIGUSR1', 'SIGHUP'] peak True",
    }
    assert expected[system] in done.stdout
    assert len(list((tmp_path / "out").glob("*.npz"))) == 1


def test_many_processes_are_refused_on_windows_in_one_sentence(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    words = ["--py-config", "demo", "--work-dir", str(tmp_path / "w"), "--processes", "2"]
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert "2 processes at once are for Linux and macOS" in said and said.count("\n") == 1
    assert not (tmp_path / "w").exists()
