"""TPVFormer.patch on a stand-in for a checkout of the reference: it goes on and off, and the commands there run."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Dict, Tuple

import cv2
import programs
import pytest
import stand_in
from engine_tools import ROOT, environment
from launchers import BLOCK, block

sys.path.append(str(ROOT / "tools"))

import make_patch  # noqa: E402

PATCH = str(stand_in.PATCH)
REFUSED = "patch does not apply"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A bare checkout."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    stand_in.make(folder)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A patched checkout with configuration, data and weights."""
    folder = tmp_path_factory.mktemp("reference") / "a checkout"
    folder.mkdir()
    stand_in.make(folder)
    stand_in.git(folder, "apply", PATCH)
    stand_in.furnish(folder)
    return folder


def test_the_file_is_what_its_sources_say(tmp_path: Path, monkeypatch, capsys) -> None:
    assert stand_in.PATCH.read_bytes() == make_patch.make_patch().encode(), "run python tools/make_patch.py"
    assert make_patch.main(["--check"]) == 0
    monkeypatch.setattr(make_patch, "PATCH", tmp_path / "TPVFormer.patch")
    assert make_patch.main(["--check"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert make_patch.main([]) == 0
    assert (tmp_path / "TPVFormer.patch").read_bytes() == stand_in.PATCH.read_bytes()


def test_it_holds_no_line_of_the_reference() -> None:
    text = stand_in.PATCH.read_text()
    assert not re.search(r"^-(?!-- )", text, re.MULTILINE), "it removes a line"
    _, *parts = re.split(r"^diff --git ", text, flags=re.MULTILINE)
    for part in parts:
        name = part.split()[0][2:]
        _, at, body = part.partition("\n@@ ")
        if not at:
            assert name == "requirements.txt" and "similarity index 100%\n" in part
            continue
        header, *lines = body.splitlines()
        kept = [line for line in lines if not line.startswith("+")]
        added = len(lines) - len(kept)
        if name in stand_in.SCRIPTS:
            assert kept == [" "] == lines[-1:] and header == f"-1,1 +1,{added + 1} @@" and added <= 15
        else:
            assert kept == [] and header == f"-0,0 +1,{added} @@" and "new file mode" in part
    names = [part.split()[0][2:] for part in parts]
    assert names[:4] == list(stand_in.SCRIPTS) and names[4:6] == ["requirements.txt"] * 2
    rename, new = parts[4:6]
    assert "rename to requirements.reference.txt" in rename and "new file mode 100644" in new


def test_the_launchers_in_it_are_the_repository_s(tree: Path) -> None:
    stand_in.git(tree, "apply", PATCH)
    for file in (ROOT / "test").iterdir():
        twin = tree / "test" / file.name
        assert twin.read_bytes() == file.read_bytes()
        assert os.access(twin, os.X_OK) == os.access(file, os.X_OK) == file.name.startswith("train_")


@pytest.mark.parametrize("flags", [(), ("--index",), ("--3way",)], ids=str)
def test_on_and_off(tree: Path, flags: Tuple[str, ...]) -> None:
    before = stand_in.snapshot(tree)
    stand_in.git(tree, "apply", "--check", *flags[:1], PATCH)
    stand_in.git(tree, "apply", *flags, PATCH)
    after = stand_in.snapshot(tree)
    assert after["requirements.reference.txt"] == before["requirements.txt"]
    for script in stand_in.SCRIPTS:
        assert after[script][0] == before[script][0]
        assert after[script][1] == make_patch.HOOK.encode() + before[script][1]
    untouched = set(before) - {*stand_in.SCRIPTS, "requirements.txt"}
    assert all(after[name] == before[name] for name in untouched)
    again = stand_in.git(tree, "apply", PATCH, check=False)
    assert again.returncode != 0 and stand_in.snapshot(tree) == after
    stand_in.git(tree, "apply", "-R", "--check", PATCH)
    stand_in.git(tree, "apply", "-R", *flags[:1], PATCH)
    assert stand_in.snapshot(tree) == before
    assert stand_in.git(tree, "status", "--porcelain", "--ignored").stdout == ""


def test_it_goes_on_whatever_follows_the_blank_line(tree: Path) -> None:
    for script, rest in zip(stand_in.SCRIPTS, ("", "\n", "import os", "x = '\r'\n" * 999)):
        (tree / script).write_text("\n" + rest, newline="")
    (tree / "requirements.txt").write_bytes(b"\x00no text\r\n")
    (tree / "train.py").chmod(0o755)
    before = stand_in.snapshot(tree)
    stand_in.git(tree, "apply", PATCH)
    assert (tree / "train.py").stat().st_mode & 0o777 == 0o755
    stand_in.git(tree, "apply", "-R", PATCH)
    assert stand_in.snapshot(tree) == before


def test_it_goes_on_an_unpacked_archive(tree: Path) -> None:
    before = stand_in.snapshot(tree)
    (tree / ".git").rename(tree.parent / "gone")
    stand_in.git(tree, "apply", PATCH)
    assert (tree / "requirements.reference.txt").read_bytes() == before["requirements.txt"][1]
    stand_in.git(tree, "apply", "-R", PATCH)
    assert stand_in.snapshot(tree) == before


@pytest.mark.parametrize("first", ["# a comment\n", " \n", "\r\n"])
def test_it_is_refused_whole_where_a_script_begins_otherwise(tree: Path, first: str) -> None:
    (tree / "eval.py").write_text(first + "import os\n", newline="")
    before = stand_in.snapshot(tree)
    refused = stand_in.git(tree, "apply", PATCH, check=False)
    assert refused.returncode != 0 and "eval.py: patch does not apply" in refused.stderr
    assert stand_in.snapshot(tree) == before


def test_a_script_that_is_imported_is_left_alone(tree: Path) -> None:
    (tree / "train.py").write_text("\nANSWER = 42\n")
    stand_in.git(tree, "apply", PATCH)
    done = run(tree, sys.executable, "-c", "import train; print(train.ANSWER)")
    assert done.stdout == "42\n"


def test_tpvformer_run_executes_the_checkout_s_own_script(tree: Path) -> None:
    (tree / "train.py").write_text("\nimport sys\nprint('their loop', sys.argv[1:])\n")
    stand_in.git(tree, "apply", PATCH)
    command = [sys.executable, "-m", "tpvformer", "run", "--device", "cpu", "train.py", "--py_config", "x"]
    assert run(tree, *command).stdout == "their loop ['--py_config', 'x']\n"
    older = "\nimport sys\nfrom tpvformer.upstream import main\nsys.exit(main(__file__))\n"
    (tree / "train.py").write_text(older)
    assert "an older TPVFormer.patch is applied here" in run(tree, *command, status=2).stderr


def run(folder: Path, *command: str, status: int = 0, **extra: str) -> programs.Done:
    """Run a command in a checkout where ``python`` is this interpreter, with this package installed."""
    path = stand_in.link_python(folder.parent / "bin") + os.pathsep + os.environ["PATH"]
    env = environment(PATH=path, **extra)
    done = programs.run(command, cwd=folder, env=env)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "the old program" not in done.stderr
    return done


def check_block(output: str) -> Dict[str, str]:
    """The summary block stands once, at the end, and has numbers."""
    assert output.count("Final Performance images/sec") == 1
    assert output.splitlines()[-1].startswith("written to ")
    results = block(output)
    assert list(results) == BLOCK and all(float(value) >= 0 for value in results.values())
    return results


def untracked(folder: Path) -> str:
    """What git lists beside the checkout's own files and those of the patch."""
    return stand_in.git(folder, "status", "--porcelain").stdout


@pytest.mark.parametrize("flags", [(), ("--work_dir=runs/a",)], ids=str)
def test_the_launchers_leave_no_untracked_folder(tree: Path, tmp_path: Path, flags: Tuple[str, ...]) -> None:
    """A training of nothing: the interpreter does nothing, in the launcher's own folder or in one of the user's."""
    stand_in.git(tree, "apply", PATCH)
    (tree / "config").mkdir()
    (tree / "config/tiny.py").write_text("x = 1\n")
    before = untracked(tree)
    idle = tmp_path / "idle"
    idle.write_text("#!/bin/sh\nexit 0\n")
    idle.chmod(0o755)
    run(tree, "bash", "test/train_1p.sh", "--py_config=config/tiny.py", *flags, PYTHON=str(idle))
    assert (tree / (flags[0][11:] if flags else "output/train_1p/tiny")).is_dir() and untracked(tree) == before


@pytest.mark.parametrize("script", stand_in.SCRIPTS)
def test_without_the_package_a_script_says_how_to_get_it(checkout: Path, script: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # -S: without site-packages, where this package is installed
    done = programs.run([sys.executable, "-S", script], cwd=checkout, env=env)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "pip install PATH" in done.stderr and script in done.stderr


def test_without_the_package_a_launcher_says_how_to_get_it(checkout: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\ncase "$2" in *tpvformer*) exec "{sys.executable}" -S "$@" ;; esac\nexit 0\n')
    bare.chmod(0o755)
    env = {name: value for name, value in environment(PYTHON=str(bare)).items() if name != "PYTHONPATH"}
    command = ["bash", "test/train_1p.sh", "--py_config=config/tiny.py"]
    done = programs.run(command, cwd=checkout, env=env)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no package tpvformer; pip install PATH" in done.stderr


@pytest.fixture(scope="module")
def trained(checkout: Path) -> str:
    """What ``bash launcher.sh CONFIG WORKDIR``, which runs train.py, prints."""
    return run(checkout, "bash", "launcher.sh", "config/tiny.py", "out").stdout


def test_launcher_and_train(checkout: Path, trained: str) -> None:
    results = check_block(trained)
    assert float(results["Final Performance images/sec"]) > 0
    assert "336 tensors loaded" in trained  # of ckpts/r101_dcn_fcos3d_pretrain.pth
    assert trained.count("tpvformer04/, tpvformer10/") == 1 and "cannot be told" in trained  # another first commit
    assert (checkout / "out/latest.pth").exists() and (checkout / "out/tiny_bs1_1p_miou.log").exists()
    assert " out/" not in untracked(checkout)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_eval(checkout: Path, tmp_path: Path, start: str) -> None:
    """Also with loader workers that import the main module again, which is a script of the reference."""
    (tmp_path / "sitecustomize.py").write_text(f"import multiprocessing\nmultiprocessing.set_start_method({start!r})\n")
    flags = ("--py-config", "config/tiny.py", "--ckpt-path", "out/latest.pth", "--work-dir", "out")
    done = run(checkout, "python", "eval.py", *flags, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    *_, pts, vox, loss = done.stdout.splitlines()
    assert "Current val miou pts is" in pts and "Current val miou vox is" in vox and "over 2 samples" in loss
    assert "barrier" in done.stdout and "miou_reference" in done.stdout


def test_pictures(checkout: Path) -> None:
    flags = ("--py-config", "config/tiny.py", "--work-dir", "out", "--ckpt-path", "ckpts/published.pth")
    frame = ("visualization/vis_frame.py", *flags, "--save-path", "out/frames", "--frame-idx", "1", "0", "--mode", "2")
    done = run(checkout, "python", *frame)
    assert "mayavi window" in done.stdout.splitlines()[0]
    assert [line.split(":")[0] for line in done.stdout.splitlines()[1:]] == ["out/frames/1.png", "out/frames/0.png"]
    assert done.stderr.count("\n") == 1 and "cannot be told" in done.stderr
    scene = ("visualization/vis_scene.py", *flags, "--save-path", "out/scenes", "--vis-train", "--scene-name")
    done = run(checkout, "python", *scene, "scene-0000")
    assert "training frame 1" in done.stdout
    names = ["frames/0.png", "frames/1.png", "scenes/scene-0000/000.png", "scenes/scene-0000/001.png"]
    assert sorted(checkout.glob("out/*/**/*.png")) == sorted(checkout / "out" / name for name in names)
    assert all(cv2.imread(str(checkout / "out" / name)).shape[2] == 3 for name in names)
    assert " out/" not in untracked(checkout)


def test_one_process_launcher(checkout: Path, tmp_path: Path) -> None:
    done = run(checkout, "bash", "test/train_1p.sh", "--py_config=config/tiny.py", f"--work_dir={tmp_path}")
    check_block(done.stdout)
    assert done.stdout.count("cannot be told") == 1
