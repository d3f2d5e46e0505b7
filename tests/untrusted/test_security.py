"""What docs/security.md promises about the network and about packages."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path

import programs
import pytest
import torch.distributed as dist
from engine_tools import POINTS, environment, tiny_config, write_config
from needs import can_unshare_network
from programs import LOOPBACK, listening
from tiny_nuscenes import write_tiny

from tpvformer.engine.agent import main as agent
from tpvformer.engine.distributed.rendezvous import address_to_listen_at, listen_at
from tpvformer.errors import ConfigError

# Python tells its audit hooks of every connection and of every name that is looked up
GUARD = """
import ipaddress, sys

def refuse(event, args):
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
        if isinstance(address, tuple) and not ipaddress.ip_address(address[0]).is_loopback:
            raise SystemExit(f"GUARD: {event} {address}")
    elif event == "socket.getaddrinfo" and args[0] not in (None, "localhost", "127.0.0.1", "::1"):
        raise SystemExit(f"GUARD: {event} {args[0]}")

sys.addaudithook(refuse)
"""
TRAIN = GUARD + "from tpvformer.cli import main; sys.exit(main(sys.argv[1:]))"


def test_a_training_needs_no_network(tmp_path: Path) -> None:
    """A step under the guard, and where that is permitted in a network namespace without even loopback."""
    config = write_config(tmp_path / "tiny.py", tiny_config(write_tiny(tmp_path / "set", POINTS)))
    flags = ["train", "--py-config", str(config), "--work-dir", str(tmp_path / "w"), "--max-steps", "1"]
    alone = ["unshare", "-n"] if can_unshare_network() else []
    command = [*alone, sys.executable, "-c", TRAIN, *flags, "--device", "cpu"]
    done = programs.run(command, env=environment())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w" / "summary.json").exists()


@pytest.mark.parametrize("attempt", ["s.connect(('192.0.2.1', 9))", "socket.getaddrinfo('example.invalid', 80)"])
def test_the_guard_can_fail(attempt: str) -> None:
    code = f"{GUARD}\nimport socket\ns = socket.socket()\n{attempt}"
    done = programs.run([sys.executable, "-c", code])
    assert done.returncode == 1 and done.stderr.startswith("GUARD: "), done.stderr


def test_installed_packages_are_consistent() -> None:
    done = programs.run([sys.executable, "-m", "pip", "check"])
    if "No module named pip" in done.stderr:
        pytest.skip("this environment has no pip")
    # which of its parts a build of torch needs is the user's choice, who installs it first
    problems = [line for line in done.stdout.splitlines() if "requires" in line and not line.startswith("torch ")]
    assert not problems and (done.returncode == 0 or "requires" in done.stdout), done.stdout


def test_names_are_not_taken_for_addresses() -> None:
    assert address_to_listen_at("localhost") == "127.0.0.1"
    assert address_to_listen_at("10.1.2.3") == "10.1.2.3"
    assert address_to_listen_at("node-0.example") is address_to_listen_at("") is None
    with pytest.raises(ValueError):
        ipaddress.ip_address("node-0.example")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_a_store_listens_at_its_address_alone_and_torch_s_own_takes_it_over() -> None:
    before = listening([os.getpid()])
    store = listen_at("127.0.0.1", 0, timedelta(seconds=20))
    assert store is not None
    assert listening([os.getpid()]) - before <= {LOOPBACK}
    options = {"is_master": True, "multi_tenant": True, "wait_for_workers": False}
    theirs = dist.TCPStore("127.0.0.1", store.port, timeout=timedelta(seconds=20), **options)
    theirs.set("key", "value")
    assert store.get("key") == b"value"
    assert listening([os.getpid()]) - before <= {LOOPBACK}
    plain = dist.TCPStore("127.0.0.1", 0, timeout=timedelta(seconds=20), **options)
    assert not listening([os.getpid()]) - before <= {LOOPBACK}, "torch has learned it; what is this package's for?"
    del plain


def test_a_port_that_is_taken_and_an_address_that_is_not_ours() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert listen_at("127.0.0.1", taken.getsockname()[1], timedelta(seconds=1)) is None
    assert listen_at("192.0.2.77", 0, timedelta(seconds=1)) is None


@pytest.mark.parametrize("endpoint", ["10.0.0.1:port", "10.0.0.1:70000"])
def test_an_endpoint_that_is_none(endpoint: str, capsys) -> None:
    flags = ["--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint}", "-m", "tpvformer", "train"]
    assert agent(flags) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert issubclass(ConfigError, ValueError)
