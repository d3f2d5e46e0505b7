"""The reference's scripts as entry points: what their flags become, what else they say; its configurations as files."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import programs
import pytest
import stand_in
import torch
from engine_tools import ROOT, environment, tiny_config, tiny_model, write_config
from tiny_nuscenes import write_tiny

from tpvformer import cli, upstream
from tpvformer.compat import load_config
from tpvformer.config import override
from tpvformer.engine.device import accelerator as device
from tpvformer.engine.distributed import launch
from tpvformer.errors import ConfigError
from tpvformer.labels import RAW_TO_CLASS

pytestmark = pytest.mark.usefixtures("quick")
Calls = List[Tuple[int, List[str]]]


@pytest.fixture(autouse=True)
def one_process(monkeypatch) -> None:
    """Neither torchrun's variables nor those of the reference's users; the tests' own main module is given back."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)


@pytest.fixture
def calls(monkeypatch, tmp_path: Path) -> Calls:
    """The commands that would run, each with its number of processes; a training leaves its summary."""
    seen: Calls = []
    monkeypatch.chdir(tmp_path)

    def ran(processes: int, argv: List[str]) -> int:
        seen.append((processes, argv))
        if argv[0] == "train":
            folder = Path(argv[argv.index("--work-dir") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text("{}")
        return 0

    monkeypatch.setattr(cli, "main", lambda argv: ran(1, argv))
    monkeypatch.setattr(launch, "launch", ran)
    return seen


def test_flags_of_train(calls: Calls, tmp_path: Path) -> None:
    flags = ["--py-config", "config/a.py", "--work-dir", "w", "--resume-from", "c.pth", "--max-epochs", "3"]
    assert upstream.main(str(tmp_path / "train.py"), [*flags, "--set", "train.seed=1", "--own_model"]) == 0
    (_, train), (_, results) = calls
    assert train[0] == "train" and train[1 : 1 + len(flags)] == flags
    assert train[1 + len(flags) :] == ["--own-model", "--set", "train.seed=1", "--device", "auto"]
    assert results[:4] == ["results", "--work-dir", "w", "--duration"]


def test_defaults_of_train(calls: Calls, tmp_path: Path) -> None:
    upstream.main(str(tmp_path / "train.py"), ["--resume-from", ""])
    config = ["--py-config", "config/tpv_lidarseg.py"]
    assert calls[0][1] == ["train", *config, "--work-dir", "out/tpv_lidarseg", "--device", "auto"]


def test_a_training_that_fails_has_no_results(calls: Calls, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cli, "main", lambda argv: calls.append((1, argv)) or 37)
    assert upstream.main(str(tmp_path / "train.py"), []) == 37
    assert len(calls) == 1


def test_flags_of_eval(calls: Calls, tmp_path: Path, capsys) -> None:
    given = ["--py-config", "c.py", "--ckpt-path", "w.pth", "--work-dir", "x", "--permute-cameras"]
    assert upstream.main(str(tmp_path / "eval.py"), given) == 0
    assert calls == [(1, ["eval", *given[:4], "--permute-cameras", "--device", "auto"])]
    with pytest.raises(SystemExit) as end:
        upstream.main(str(tmp_path / "eval.py"), [])
    assert end.value.code == 2 and "--ckpt-path" in capsys.readouterr().err


def test_a_process_a_visible_card(calls: Calls, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(device, "visible_cards", lambda name: {"auto": 3, "cpu": 0}[name])
    script = str(tmp_path / "train.py")
    for flags, processes in (([], 3), (["--device", "cpu"], 1), (["--processes", "2"], 2), (["--processes", "1"], 1)):
        calls.clear()
        assert upstream.main(script, flags) == 0
        assert [number for number, _ in calls] == [processes, 1]
        assert all("--processes" not in command for _, command in calls)
    assert upstream.main(str(tmp_path / "eval.py"), ["--ckpt-path", "w.pth"]) == 0
    assert calls[-1][0] == 3


@pytest.mark.parametrize("rank", ["0", "1"])
def test_torchrun_has_started_the_processes(calls: Calls, tmp_path: Path, monkeypatch, rank: str) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device, "visible_cards", lambda name: 2)
    assert upstream.main(str(tmp_path / "train.py"), []) == 0
    assert [command[0] for _, command in calls] == (["train", "results"] if rank == "0" else ["train"])
    assert os.environ["RANK"] == rank and all(number == 1 for number, _ in calls)


def test_machines_as_the_reference_counts_them(calls: Calls, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(device, "visible_cards", lambda name: 8)
    assert upstream.main(str(tmp_path / "train.py"), []) == 0
    assert calls[0][0] == 8 and "RANK" not in os.environ and "WORLD_SIZE" not in os.environ
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert upstream.main(str(tmp_path / "train.py"), []) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "WORLD_SIZE is '2'" in err and "torchrun --nnodes" in err


def test_cards_are_counted(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert [device.visible_cards(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [5, 5, 1, 0]
    with pytest.raises(ConfigError, match="'nonsense' is unknown"):
        device.visible_cards("nonsense")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.visible_cards() == 0


def test_help_needs_no_torch_and_other_scripts_are_refused(tmp_path: Path, capsys) -> None:
    code = "import sys; from tpvformer.upstream import main\ntry: main('train.py', ['-h'])\n"
    code += "except SystemExit as end: print('STATUS', end.code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    done = programs.run([sys.executable, "-c", code], env=environment())
    assert "STATUS 0 False False" in done.stdout and "--resume-from" in done.stdout
    assert upstream.main("dump_pkl.py", []) == 2
    assert capsys.readouterr().err.startswith("dump_pkl.py: is no script of the reference that is known here")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A folder with a configuration, weights, and a set of two scenes."""
    folder = tmp_path_factory.mktemp("drawn")
    config = tiny_config(write_tiny(folder / "set", (40, 50, 60)))
    write_config(folder / "tiny.py", config)
    torch.save(tiny_model().state_dict(), folder / "weights.pth")
    stand_in.write_scenes(Path(config.data.root, config.data.version), 3)
    return folder


def draw(folder: Path, script: str, *flags: str) -> int:
    given = ["--py-config", str(folder / "tiny.py"), "--ckpt-path", str(folder / "weights.pth"), "--device", "cpu"]
    return upstream.main(str(folder / "visualization" / script), [*given, *flags])


def test_every_key_frame_of_a_scene(drawn: Path, tmp_path: Path, capsys) -> None:
    assert draw(drawn, "vis_scene.py", "--save-path", str(tmp_path), "--scene-idx", "1", "0") == 0
    out = capsys.readouterr().out.splitlines()
    assert "mayavi" in out[0] and len(out) == 4
    names = ["scene-0000/000.png", "scene-0000/001.png", "scene-0001/000.png"]
    assert sorted(tmp_path.rglob("*.png")) == [tmp_path / name for name in names]
    assert "validation frame 2" in out[1] and "validation frame 0" in out[2]
    assert draw(drawn, "vis_scene.py", "--save-path", str(tmp_path / "first")) == 0
    assert len(list((tmp_path / "first").rglob("*.png"))) == 2


@pytest.mark.parametrize(
    ("script", "flags", "reason"),
    [
        ("vis_frame.py", ("--frame-idx", "0", "3"), "index is 3; .* holds frames 0 to 2"),
        ("vis_scene.py", ("--scene-name", "scene-7"), "--scene-name is scene-7; .* holds scene-0000, scene-0001"),
        ("vis_scene.py", ("--scene-idx", "2"), "--scene-idx is 2; .* holds scenes 0 to 1"),
    ],
)
def test_pictures_that_are_not_there(drawn: Path, script: str, flags: Tuple[str, ...], reason: str, capsys) -> None:
    assert draw(drawn, script, *flags) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.match(f"{script}: {reason}", err), err


@pytest.mark.parametrize(
    ("table", "content", "reason"),
    [
        ("scene", None, "No such file"),
        ("sample", "[{", "not a table whose rows have 'token' and 'scene_token'"),
        ("scene", '[{"token": 1}]', "not a table whose rows have 'token' and 'name'"),
        ("sample", "[]", "has no scene for it"),
    ],
)
def test_scene_tables_that_are_no_use(drawn: Path, table: str, content: str, reason: str, capsys) -> None:
    file = drawn / "set/v1.0-mini" / f"{table}.json"
    before = file.read_text()
    file.unlink() if content is None else file.write_text(content)
    try:
        assert draw(drawn, "vis_scene.py") == 2
    finally:
        file.write_text(before)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and reason in err


PUBLISHED = ("tpv_lidarseg", "tpv_lidarseg_dim64", "tpv_lidarseg_dim96", "tpv04_occupancy")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_as_files_of_the_reference(tmp_path: Path, name: str) -> None:
    bases = ("dataset_params", "optimizer", "train_data_loader", "val_data_loader")
    file = stand_in.write_config(tmp_path / f"config/{name}.py", stand_in.published(name), bases)
    assert load_config(file) == override(load_config(ROOT / f"config/{name}.py"), ["data.workers=1"])


def test_edits_are_honoured(tmp_path: Path) -> None:
    def edit(**changes: Any) -> Any:
        values = stand_in.tree("tiny10")
        for path, value in changes.items():
            section, _, key = path.rpartition("__")
            (values[section] if section else values)[key] = value
        stand_in.write_config(tmp_path / "c.py", values, ("dataset_params", "optimizer"))
        return load_config(tmp_path / "c.py")

    plain = edit()
    edited = edit(
        train_data_loader__data_path="elsewhere/",
        val_data_loader__data_path="elsewhere",
        train_data_loader__imageset="a.pkl",
        val_data_loader__imageset="./b.pkl",
        train_data_loader__num_workers=4,
        val_data_loader__num_workers=4,
        dataset_params__version="v1.0-mini",
        optimizer__lr=1e-3,
        load_from="w.pth",
        print_freq=7,
        grad_max_norm=5,
        max_epochs=2,
        scale_rate=0.5,
    )
    data = dataclasses.replace(
        plain.data,
        root="elsewhere",
        version="v1.0-mini",
        train_infos="a.pkl",
        val_infos="b.pkl",
        workers=4,
        image_scale=0.5,
    )
    train = dataclasses.replace(plain.train, epochs=2, print_every=7, load_from="w.pth")
    optim = dataclasses.replace(plain.optim, lr=1e-3, clip_norm=5.0)
    assert edited == dataclasses.replace(plain, data=data, train=train, optim=optim)


def test_an_edited_label_table_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    stand_in.write_config(tmp_path / "config/c.py", stand_in.tree("tiny10"))
    folder = tmp_path / "config/label_mapping"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    table: Dict[str, Dict[int, Any]] = {"labels": {0: "noise"}, "learning_map": dict(enumerate(RAW_TO_CLASS[:32]))}

    def write() -> None:
        lines = (
            line for name, part in table.items() for line in (f"{name}:", *(f"  {k}: {v}" for k, v in part.items()))
        )
        (folder / "nuscenes.yaml").write_text("\n".join(lines))

    write()
    assert load_config("config/c.py").data.label_map == "nuscenes"
    table["learning_map"][14] = 3
    write()
    for content in (None, "a: [1"):
        if content is not None:
            (folder / "nuscenes.yaml").write_text(content)
        assert cli.main(["eval", "--py-config", "config/c.py", "--ckpt-path", "x.pth"]) == 2
    changed, broken = capsys.readouterr().err.splitlines()
    assert "nuscenes.yaml: raw label 14 becomes class 3; expected 2" in changed
    assert "nuscenes.yaml: not YAML" in broken


def test_missing_backbone_weights_are_one_sentence(drawn: Path, tmp_path: Path, capsys) -> None:
    config = load_config(drawn / "tiny.py")
    file = write_config(
        tmp_path / "c.py", dataclasses.replace(config, train=dataclasses.replace(config.train, load_from="ckpts/r.pth"))
    )
    assert upstream.main(str(tmp_path / "train.py"), ["--py-config", str(file), "--work-dir", str(tmp_path / "w")]) == 2
    out, err = capsys.readouterr()
    assert "ckpts/r.pth does not exist; put the pre-trained backbone there" in err and err.count("\n") == 1
    assert "Final Performance" not in out
