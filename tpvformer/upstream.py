"""Run the reference's own scripts on this package: their flags in, our commands out.

In a checkout of the reference with TPVFormer.patch applied, ``python train.py ...`` calls ``main`` with the path of
that script; eval.py, visualization/vis_frame.py and visualization/vis_scene.py do the same. Paths are relative to the
working directory, as in the reference.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Generator, List, Optional, Tuple

from tpvformer import cli
from tpvformer.commands.parser import FilledParser, text
from tpvformer.config import Config
from tpvformer.engine.device.names import ACCEPTED
from tpvformer.errors import ConfigError

_MACHINES = (
    "the reference counts machines in WORLD_SIZE and RANK, PyTorch counts processes; for several machines start "
    "torchrun --nnodes=N --node_rank=R --nproc_per_node=CARDS --master_addr=A --master_port=P and the script on each"
)

_PICTURE = "points as predicted on the six cameras, predicted and true voxels from above, whatever --mode says"


def main(script: str, argv: Optional[List[str]] = None) -> int:
    """Run the reference's ``script``; return the exit status, as ``cli.main`` does."""
    argv = sys.argv[1:] if argv is None else argv
    name = Path(script).name
    cli.open_streams()
    cli.prepare_torch()
    _hide_script()
    return cli.in_one_line(name, lambda: _run(Path(script), argv))


def _run(script: Path, argv: List[str]) -> int:
    if getattr(sys.modules.get("tpvformer.engine.foreign.script"), "RUNNING", None):
        raise ConfigError(
            "an older TPVFormer.patch is applied here, which does not know tpvformer run; take it off with git apply "
            "-R, or replace it by the one of this version"
        )
    run = _SCRIPTS.get(script.name)
    if run is None:
        raise ConfigError(f"is no script of the reference that is known here; known: {', '.join(_SCRIPTS)}")
    args, more = _parser(script.name, argv)
    cli.check_environment()
    _forget_machines()
    root = script.resolve().parent
    root = root.parent if root.name == "visualization" else root
    in_root = root == Path.cwd()
    word = os.environ.get("TPVFORMER_OWN_MODEL", "")
    said = word == "0" or (run in (_train, _eval) and bool(word or _own_flag(args)))  # pictures show this package's
    if _speaks() and not said and not (in_root and run in (_train, _eval)):  # their logs contain the remarks
        from tpvformer.compat import checkout

        for remark in checkout.remarks(root):
            print(f"{script.name}: {remark}", file=sys.stderr)
    return run(args, more)


def _hide_script() -> None:
    """Make multiprocessing treat this program as ``python -m tpvformer``.

    Loader workers that are not forked (spawn, forkserver) import the main module again. That is the script, and its
    other lines import packages that need not be installed.
    """
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("tpvformer.__main__")


def _forget_machines() -> None:
    """Remove WORLD_SIZE and RANK without LOCAL_RANK: the reference's users export them with another meaning."""
    if "LOCAL_RANK" in os.environ:
        return
    machines = os.environ.get("WORLD_SIZE") or "1"
    if machines != "1":
        raise ConfigError(f"environment: WORLD_SIZE is {machines!r} without LOCAL_RANK; {_MACHINES}")
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def _speaks() -> bool:
    """Return whether this is the process that prints."""
    return os.environ.get("RANK", "0") == "0"


def _parser(name: str, argv: List[str]) -> Tuple[argparse.Namespace, List[str]]:
    """Parse the flags of one script; flags that train.py and eval.py do not define go to our command of that name."""
    ours = {"train.py": "train", "eval.py": "eval"}.get(name)
    about = f"The reference's {name} on the package tpvformer."
    if ours:
        about += f" Other flags are those of 'tpvformer {ours}'."
    parser = FilledParser(prog=name, description=about)
    parser.add_argument(
        "--py-config", "--py_config", default="config/tpv_lidarseg.py", help="configuration (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help=f"{ACCEPTED} (default: auto)")
    if ours:
        parser.add_argument(
            "--own-model",
            "--own_model",
            action=argparse.BooleanOptionalAction,
            help="this checkout's own model code, which is executed, in place of tpvformer's (default: "
            "TPVFORMER_OWN_MODEL, else tpvformer's)",
        )
        parser.add_argument("--processes", type=int, help="processes to start (default: one a visible card, else one)")
    if name == "train.py":
        parser.add_argument(
            "--work-dir", "--work_dir", type=text, help="where the run is written (default: out/<configuration>)"
        )
        parser.add_argument(
            "--resume-from", type=text, default="", help="checkpoint (default: latest.pth of the work dir)"
        )
        parser.add_argument("--max-epochs", type=text, help="instead of the configuration's")
        return parser.parse_known_args(argv)
    parser.add_argument("--work-dir", "--work_dir", type=text, help="accepted; nothing is written there")
    parser.add_argument("--ckpt-path", required=True, help="weights: the reference's or ours")
    if ours:
        return parser.parse_known_args(argv)
    parser.add_argument("--save-path", type=Path, default=Path("out/pictures"), help="folder (default: %(default)s)")
    parser.add_argument("--vis-train", action="store_true", help="frames of the training set")
    parser.add_argument("--mode", type=int, choices=(0, 1, 2), default=0, help="accepted; a picture shows all three")
    if name == "vis_frame.py":
        parser.add_argument("--frame-idx", type=int, nargs="+", default=[0], help="numbers of frames (default: 0)")
    else:
        parser.add_argument("--scene-name", nargs="+", default=[], help="names of scenes")
        parser.add_argument("--scene-idx", type=int, nargs="+", default=[], help="numbers of scenes (default: 0)")
    return parser.parse_args(argv), []


def _train(args: argparse.Namespace, more: List[str]) -> int:
    began = time.perf_counter()
    work_dir = args.work_dir or f"out/{Path(args.py_config).stem}"
    command = ["train", "--py-config", args.py_config, "--work-dir", work_dir]
    if args.resume_from:
        command += ["--resume-from", args.resume_from]
    if args.max_epochs:
        command += ["--max-epochs", args.max_epochs]
    with _kept_from_git(Path(work_dir)):
        status = _start(args, [*command, *_own_flag(args), *more])
    if status == 0 and _speaks() and Path(work_dir, "summary.json").is_file():  # not if a signal stopped it
        return cli.main(["results", "--work-dir", work_dir, "--duration", f"{time.perf_counter() - began:.1f}"])
    return status


def _eval(args: argparse.Namespace, more: List[str]) -> int:
    return _start(args, ["eval", "--py-config", args.py_config, "--ckpt-path", args.ckpt_path, *_own_flag(args), *more])


def _own_flag(args: argparse.Namespace) -> List[str]:
    return [] if args.own_model is None else ["--own-model" if args.own_model else "--no-own-model"]


def _start(args: argparse.Namespace, command: List[str]) -> int:
    """Run a command here, or in one process for each visible card as the reference does, unless torchrun has."""
    from tpvformer.engine.device.accelerator import visible_cards
    from tpvformer.engine.distributed.launch import launch

    command = [*command, "--device", args.device]
    processes = args.processes
    if processes is None:
        processes = visible_cards(args.device)
    if processes > 1 and "RANK" not in os.environ:
        return launch(processes, command)
    return cli.main(command)


def _frame(args: argparse.Namespace, _: List[str]) -> int:
    frames = {args.save_path / f"{index}.png": index for index in args.frame_idx}
    theirs = "vis_frame.py: the reference opens a mayavi window; here a PNG a frame is written"
    return _draw(args, _config(args), frames, theirs)


def _scene(args: argparse.Namespace, _: List[str]) -> int:
    from tpvformer.data.formats import load_infos
    from tpvformer.data.nuscenes.scenes import frames_by_scene

    config = _config(args)
    infos = config.data.train_infos if args.vis_train else config.data.val_infos
    scenes = frames_by_scene(config.data.root, config.data.version, [record.token for record in load_infos(infos)])
    known = list(scenes)
    for number in args.scene_idx:
        if not 0 <= number < len(known):
            raise ConfigError(f"--scene-idx is {number}; {infos} holds scenes 0 to {len(known) - 1}")
    wanted = [*args.scene_name, *(known[number] for number in args.scene_idx)] or known[:1]
    frames: Dict[Path, int] = {}
    for name in wanted:
        if name not in scenes:
            some = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
            raise ConfigError(f"--scene-name is {name}; {infos} holds {some}")
        frames.update({args.save_path / name / f"{i:03d}.png": index for i, index in enumerate(scenes[name])})
    theirs = "vis_scene.py: the reference renders key frames and sweeps in mayavi; here a PNG a key frame is written"
    return _draw(args, config, frames, theirs)


def _config(args: argparse.Namespace) -> Config:
    from tpvformer.compat import load_config

    return load_config(args.py_config)


def _draw(args: argparse.Namespace, config: Config, frames: Dict[Path, int], differs: str) -> int:
    from tpvformer.predict.draw import draw_frames

    print(f"{differs}, {_PICTURE}", flush=True)
    split = "train" if args.vis_train else "val"
    with _kept_from_git(args.save_path):
        for line in draw_frames(config, Path(args.ckpt_path), frames, args.device, split):
            print(line, flush=True)
    return 0


@contextlib.contextmanager
def _kept_from_git(folder: Path) -> Generator[None, None, None]:
    """Hide ``folder`` from git status if it is created inside the context, below this checkout."""
    new = not folder.exists()
    try:
        yield
    finally:
        inside = Path.cwd() in folder.absolute().parents and Path(".git").exists()
        if new and inside and _speaks() and folder.is_dir():
            with contextlib.suppress(OSError):
                (folder / ".gitignore").write_text("*\n", encoding="ascii")


_SCRIPTS: Dict[str, Callable[[argparse.Namespace, List[str]], int]] = {
    "train.py": _train,
    "eval.py": _eval,
    "vis_frame.py": _frame,
    "vis_scene.py": _scene,
}
