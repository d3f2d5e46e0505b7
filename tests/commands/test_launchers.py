"""The shell launchers: flags, places, exit codes, and numbers that belong to the run they are printed after."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any, Dict, List

import programs
import pytest
from engine_tools import POINTS, ROOT, environment, tiny_config, write_config
from launchers import BLOCK, block, keys
from programs import Start, state, wait_until
from tiny_nuscenes import write_tiny

from tpvformer.engine.distributed import launch as many
from tpvformer.engine.distributed.launch import one_a_card, threads
from tpvformer.engine.logging.modelzoo_log import publish
from tpvformer.errors import ConfigError

ONE, EIGHT, MANY = (ROOT / "test" / f"train_{name}.sh" for name in ("1p", "8p", "multi_node"))
KEYS = ["Network", "RankSize", "BatchSize", "DeviceType", "CaseName", "ActualFPS", "TrainingTime", "ActualLoss"]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    return write_config(folder / "tiny.py", tiny_config(write_tiny(folder / "set", POINTS), epochs=1))


def launch(script: Path, *flags: str, cwd: Path = ROOT, **extra: str) -> programs.Done:
    return programs.run(["bash", str(script), *flags], cwd=cwd, env=environment(**extra))


def test_help_is_no_error() -> None:
    for script in (ONE, EIGHT, MANY):
        for flag in ("-h", "--help"):
            done = launch(script, flag)
            assert done.returncode == 0
            assert "--py_config" in done.stdout


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--batch=3"], "unknown or empty flag '--batch=3'"),
        (["--py_config="], "unknown or empty flag '--py_config='"),
        (["--performance=yes"], "--performance is 'yes'; expected 0 or 1"),
        ([], "--py_config is missing"),
        (["--py_config=no/such.py"], "is no file"),
        (["extra"], "unknown or empty flag 'extra'"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(flags: List[str], reason: str) -> None:
    done = launch(ONE, *flags)
    assert done.returncode == 2
    assert reason in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("", "--nnodes is missing"),
        ("--nnodes=two", "--nnodes is 'two'; expected a whole number"),
        ("--nnodes=0", "--nnodes is '0'; expected 1 or more"),
        ("--nnodes=3:2 --rdzv_endpoint=h:1", "--nnodes is '2'; expected 3 or more"),
        ("--nnodes=1:2 --node_rank=0 --master_addr=h", "--nnodes=1:2 needs --rdzv_endpoint"),
        ("--nnodes=2", "--node_rank is missing"),
        ("--nnodes=2 --node_rank=0", "--master_addr is missing"),
        ("--nnodes=2 --node_rank=2 --master_addr=h", "--node_rank is '2'; expected less than --nnodes=2"),
        ("--nnodes=2 --node_rank=0 --master_addr=h --master_port=70000", "'70000'; expected 65535 or less"),
        ("--nnodes=2 --node_rank=0 --master_addr=h --max_restarts=1", "--max_restarts and --rdzv_id need"),
        ("--nnodes=2 --rdzv_endpoint=host", "--rdzv_endpoint is 'host'; expected HOST:PORT"),
        ("--nnodes=2 --rdzv_endpoint=h:1 --node_rank=0", "with --rdzv_endpoint machines find their numbers"),
        ("--nnodes=2 --rdzv_endpoint=h:1 --nproc_per_node=", "--nproc_per_node is ''; expected a whole number"),
        ("--nnodes=2 --rdzv_endpoint=h:1", "--py_config is missing"),
        ("--nnodes=2 --rdzv_endpoint=h:1 --batch=1", "unknown or empty flag '--batch=1'"),
    ],
)
def test_mistakes_about_machines(flags: str, reason: str) -> None:
    done = launch(MANY, *flags.split())
    assert done.returncode == 2
    assert reason in done.stderr and done.stderr.count("\n") == 1
    assert not done.stdout


def test_training_then_rerun_then_failure(config: Path, tmp_path: Path) -> None:
    """One work dir, three runs: the numbers are always those of the run that has just ended, or there are none."""
    here = config.parent
    first = launch(ONE, f"--py_config={config.name}", "--work_dir=runs with blanks/a", cwd=here)
    assert first.returncode == 0, first.stderr
    work_dir = here / "runs with blanks" / "a"
    results = block(first.stdout)
    assert list(results) == BLOCK
    assert float(results["Final Performance images/sec"]) == pytest.approx(
        1e3 / float(results["TrainingTime for step(ms)"]), rel=1e-2
    )
    written = keys(work_dir / "tiny_bs1_1p_miou.log")
    assert list(written) == [*KEYS, "E2ETrainingTime", "miou"]
    assert written["CaseName"] == "tiny_bs1_1p_miou"
    assert written["RankSize"] == written["BatchSize"] == "1"
    assert written["miou"] == results["Final Train Accuracy"]
    assert len((work_dir / "train_tiny_bs1_1p_miou_loss.txt").read_text().splitlines()) == 7

    again = launch(ONE, f"--py_config={config}", f"--work_dir={work_dir}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "all 1 epochs are done already" in again.stdout
    repeated = block(again.stdout)
    assert repeated["Final Performance images/sec"] == repeated["TrainingTime for step(ms)"] == "n/a"
    assert repeated["Final Train Accuracy"] == results["Final Train Accuracy"]
    assert len(list(work_dir.glob("2*.log"))) == 2

    broken = write_config(here / "broken.py", tiny_config(write_tiny(tmp_path / "set", (9,)), epochs=1))
    (tmp_path / "set" / "infos.pkl").unlink()
    failed = launch(ONE, f"--py_config={broken}", f"--work_dir={work_dir}")
    assert failed.returncode == 2
    assert "training ended with exit code 2; there are no results" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not block(failed.stdout)
    assert not (work_dir / "summary.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_launcher_passes_a_signal_on_and_its_command_continues(
    start: Start, number: signal.Signals, config: Path, tmp_path: Path
) -> None:
    command = ["bash", str(ONE), f"--py_config={config}", f"--work_dir={tmp_path / 'w'}"]
    process = start(command, env=environment())
    process.until("[TRAIN]")
    process.send_signal(number)
    status, said, errors = process.wait(120), process.out, process.err
    assert status == 0, errors
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C (SIGINT)"
    assert f"stopped by {name} at epoch 0" in said and not block(said)
    assert errors.endswith("train_1p.sh: training was stopped and is saved; the same command resumes it\n")
    assert errors.count("\n") == (1 if number == signal.SIGTERM else 3)  # that Ctrl-C was heard
    again = launch(ONE, *command[2:])
    assert again.returncode == 0, again.stderr
    assert "resumed" in again.stdout and list(block(again.stdout)) == BLOCK


def test_performance_run(config: Path, tmp_path: Path) -> None:
    done = launch(ONE, f"--py_config={config}", f"--work_dir={tmp_path}", "--performance=1")
    assert done.returncode == 0, done.stderr
    results = block(done.stdout)
    assert float(results["Final Performance images/sec"]) > 0
    assert results["Final Train Accuracy"] == "n/a"
    assert not list(tmp_path.glob("*.pth"))
    assert keys(tmp_path / "tiny_bs1_1p_perf.log")["CaseName"] == "tiny_bs1_1p_perf"


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """An interpreter that notes how it was called, leaves a summary in w, and ends as FAKE_STATUS says."""
    script = tmp_path / "fake python"
    script.write_text(
        "#!/bin/bash\n"
        f'[ "$1" = -m ] || exit 0\n'
        f'printf "%s\\n" "$PWD" "${{OMP_NUM_THREADS:-unset}}" "${{RANK:-unset}}" "${{WORLD_SIZE:-unset}}" "$@" '
        f">> {shlex.quote(str(tmp_path / 'calls'))}\n"
        f"touch {shlex.quote(str(tmp_path / 'w' / 'summary.json'))}\n"
        "exit ${FAKE_STATUS:-0}\n"
    )
    script.chmod(0o755)
    return script


def test_eight_processes_on_any_machine(config: Path, tmp_path: Path, recorder: Path) -> None:
    env = {"PYTHON": str(recorder), "RANK": "5", "WORLD_SIZE": "1"}
    work_dir = tmp_path / "w"
    plain = environment(**env)
    plain.pop("OMP_NUM_THREADS")
    command = ["bash", str(EIGHT), f"--py_config={config}", f"--work_dir={work_dir}"]
    programs.run(command, cwd=tmp_path, env=plain, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    cwd, omp, rank, world = calls[:4]
    assert Path(cwd) == ROOT
    assert omp == rank == world == "unset"  # the program itself shares out the cores
    train = ["-m", "tpvformer", "train", "--py-config", str(config), "--work-dir", str(work_dir)]
    train += ["--max-processes", "8"]
    assert calls[4 : 4 + len(train)] == train
    assert calls[8 + len(train) :][:3] == ["-m", "tpvformer", "results"]


def test_an_exported_cdpath_chooses_no_folder(config: Path, tmp_path: Path, recorder: Path) -> None:
    """With it cd prints the folder it found there."""
    for flag in (f"--py_config={config}", "--py_config=tests/commands/test_launchers.py"):
        (tmp_path / "calls").unlink(missing_ok=True)
        done = launch(Path("test/train_1p.sh"), flag, "--work_dir=w", CDPATH=str(ROOT), PYTHON=str(recorder))
        calls = (tmp_path / "calls").read_text().splitlines()
        assert calls[0] == str(ROOT) and calls[7:9] == ["--py-config", str(ROOT / flag.partition("=")[2])], done.stderr
    (ROOT / "w").rmdir()


TICKS = """#!/bin/bash
[ "$1" = -m ] || exit 0
while :; do echo . >> "$TICKS"; sleep 0.05; done
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_ctrl_z_stops_the_training_too(start: Start, config: Path, tmp_path: Path) -> None:
    python, ticks = tmp_path / "python", tmp_path / "ticks"
    python.write_text(TICKS)
    python.chmod(0o755)
    command = ["bash", str(ONE), f"--py_config={config}", f"--work_dir={tmp_path / 'w'}"]
    script = start(command, env=environment(PYTHON=str(python), TICKS=str(ticks)))
    script.until(ticks.exists)
    (child,) = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
    for number, states in ((signal.SIGTSTP, "T"), (signal.SIGCONT, "SR")):
        script.send_signal(number)
        for pid in (child, script.pid):
            wait_until(lambda pid=pid, states=states: state(pid) in states)
    count = len(ticks.read_text())
    script.until(lambda: len(ticks.read_text()) > count)


def test_cores_are_shared_out(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(20)), raising=False)
    assert [threads(processes) for processes in (1, 8, 64)] == [20, 2, 1]


@pytest.mark.parametrize(
    ("cards", "processes", "line"),
    [
        (0, 8, ""),
        (1, 1, "1 card is visible: 1 process is started instead of 8, and a step takes 1 batch instead of 8\n"),
        (4, 4, "4 cards are visible: 4 processes are started instead of 8, and a step takes 4 batches instead of 8\n"),
        (8, 8, ""),
        (16, 8, ""),
    ],
)
def test_one_process_a_card(cards: int, processes: int, line: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(many, "visible_cards", lambda name: {"auto": cards, "cpu": 0}[name])
    assert (one_a_card(8, "auto"), one_a_card(8, "cpu")) == (processes, 8)
    assert capsys.readouterr().out == line


def test_exit_codes_pass_through(config: Path, tmp_path: Path, recorder: Path) -> None:
    done = launch(ONE, f"--py_config={config}", f"--work_dir={tmp_path / 'w'}", PYTHON=str(recorder), FAKE_STATUS="37")
    assert done.returncode == 37
    assert "results" not in (tmp_path / "calls").read_text().split()


def test_default_work_dir_and_interpreter_checks(config: Path, tmp_path: Path) -> None:
    done = launch(ONE, f"--py_config={config}", PYTHON=str(tmp_path / "none"))
    assert done.returncode == 2
    assert "is no program" in done.stderr


def sourced(**extra: str) -> Dict[str, str]:
    command = f". {shlex.quote(str(ROOT / 'test' / 'env_npu.sh'))}; env -0"
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **extra}
    out = programs.run(["bash", "-euc", command], env=env)
    assert out.returncode == 0, out.stderr
    return dict(item.split("=", 1) for item in out.stdout.split("\0") if "=" in item)


@pytest.mark.skipif(Path("/usr/local/Ascend").exists(), reason="this machine has CANN")
def test_ascend_environment_is_left_alone_elsewhere() -> None:
    assert {"TASK_QUEUE_ENABLE", "HCCL_CONNECT_TIMEOUT"}.isdisjoint(sourced())


def test_ascend_environment_fills_in_what_is_not_set(tmp_path: Path) -> None:
    values = sourced(ASCEND_HOME_PATH=str(tmp_path), TASK_QUEUE_ENABLE="1")
    assert values["TASK_QUEUE_ENABLE"] == "1"
    assert values["HCCL_CONNECT_TIMEOUT"] == "1200"


def test_cann_is_found_in_the_home_folder(tmp_path: Path) -> None:
    script = tmp_path / "Ascend" / "ascend-toolkit" / "set_env.sh"
    script.parent.mkdir(parents=True)
    script.write_text('echo "$UNSET_ON_PURPOSE" > /dev/null; export ASCEND_HOME_PATH=/found\n')
    assert sourced(HOME=str(tmp_path))["ASCEND_HOME_PATH"] == "/found"
    assert "ASCEND_HOME_PATH" not in sourced(HOME=str(tmp_path), etp_running_flag="true")


@pytest.mark.parametrize("package", ["ascend-toolkit", "cann", "nnae"])
def test_cann_is_found_where_its_installer_says(tmp_path: Path, package: str) -> None:
    script = tmp_path / "opt" / package / "set_env.sh"
    script.parent.mkdir(parents=True)
    script.write_text("export ASCEND_HOME_PATH=/said\n")
    info = tmp_path / "ascend_cann_install.info"
    info.write_text(f"version=8.0.0\nInstall_Path={tmp_path / 'opt'}/\nUserName=root\n")
    assert sourced(ASCEND_INSTALL_INFO=str(info))["ASCEND_HOME_PATH"] == "/said"
    assert "ASCEND_HOME_PATH" not in sourced(ASCEND_INSTALL_INFO=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("addresses", "given", "expected"),
    [
        ("10.0.0.7", {}, "10.0.0.7"),
        ("fe80::1 10.0.0.7 fd00::2", {}, "10.0.0.7"),
        ("10.0.0.7 172.17.0.1", {}, None),  # a bridge of containers among them: nobody can tell
        ("", {}, None),
        ("10.0.0.7", {"HCCL_IF_IP": "10.0.0.9"}, "10.0.0.9"),
        ("10.0.0.7", {"HCCL_SOCKET_IFNAME": "eth1"}, None),
    ],
)
def test_the_only_address_is_hccl_s(tmp_path: Path, addresses: str, given: Dict[str, str], expected: Any) -> None:
    tool = tmp_path / "hostname"
    tool.write_text(f"#!/bin/sh\necho '{addresses}'\n")
    tool.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert sourced(ASCEND_HOME_PATH=str(tmp_path), PATH=path, **given).get("HCCL_IF_IP") == expected
    assert "HCCL_IF_IP" not in sourced(PATH=path, ASCEND_INSTALL_INFO="/none"), "no CANN, nothing is set"


def test_results_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run has finished"):
        publish(tmp_path)


def test_speed_is_that_of_the_real_number_of_processes(tmp_path: Path) -> None:
    summary = {
        "config": "c", "run": "r", "world_size": 4, "batch_size": 2, "global_batch": 8, "device_name": "card",
        "steps": 12, "measured_steps": 9, "step_time_ms": 500.0, "samples_per_s": 16.0, "final_loss": 1.5,
        "evaluation": {}, "best_val_miou_pts": 68.6612, "best_val_leading": 68.6612,
        "leading_metric": "miou_points", "duration_s": 7.0,
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "run": "older", "step": 1, "loss": 9}\n')
    results = block("\n".join(publish(tmp_path, duration=99)))
    assert results == dict(zip(BLOCK, ("16.000", "99.0", "500.000", "68.661")))
    assert keys(tmp_path / "c_bs2_4p_miou.log")["RankSize"] == "4"
    assert (tmp_path / "train_c_bs2_4p_miou_loss.txt").read_text() == ""
