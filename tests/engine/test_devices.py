"""Devices by the names that PyTorch gives them; what is not there, or was never tried, is one sentence."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, List

import programs
import pytest
import torch
from engine_tools import environment

from tpvformer.engine.device import accelerator as device
from tpvformer.engine.device.accelerator import image_dtype, pick_device, visible_cards
from tpvformer.engine.device.names import ACCEPTED, read_name
from tpvformer.errors import ConfigError

CHOSEN: List[Any] = []


@pytest.fixture(autouse=True)
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards of CUDA, as far as questions about them go."""
    del CHOSEN[:]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", CHOSEN.append)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cuda", "cuda:0"),
        ("cuda:1", "cuda:1"),
        (torch.device("cuda:1"), "cuda:1"),
        (torch.device("cuda"), "cuda:0"),
        ("auto", "cuda:0"),
    ],
)
def test_a_card_by_its_name_or_number(name: Any, expected: str) -> None:
    assert str(pick_device(name)[0]) == expected
    assert [f"cuda:{index}" for index in CHOSEN] == [expected]


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_processor(name: Any) -> None:
    assert pick_device(name, local_rank=1, local_size=2) == (torch.device("cpu"), [])


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:", "cuda:-1", "auto:1", "CUDA", "", "cuda:1:2", "meta"])
def test_other_names_are_refused_with_those_that_are_known(name: str) -> None:
    for ask in (pick_device, visible_cards):
        with pytest.raises(ConfigError, match="is unknown; expected auto, cpu, cuda, ") as caught:
            ask(name)
        assert str(caught.value) == f"device {name!r} is unknown; expected {ACCEPTED}"


def test_a_number_beyond_the_visible_cards() -> None:
    with pytest.raises(ConfigError, match=r"^device cuda:2 cannot be used: 2 visible, cuda:0 to cuda:1$"):
        pick_device("cuda:2")
    with pytest.raises(ConfigError, match="device cpu:1 cannot be used: there is one"):
        pick_device("cpu:1")


def test_several_processes_need_a_card_each() -> None:
    with pytest.raises(
        ConfigError, match=r"^device cuda:1 is one card, and 2 processes need a card each; ask for cuda,"
    ):
        pick_device("cuda:1", local_rank=0, local_size=2)
    assert str(pick_device("cuda", local_rank=1, local_size=2)[0]) == "cuda:1"
    assert visible_cards("cuda:1") == 1, "one process is started for it"
    assert visible_cards("cuda") == 2


def test_names_that_every_part_of_the_command_reads() -> None:
    assert str(read_name("npu:3")) == "npu:3"
    for name in ACCEPTED.replace(" (one card by its number)", "").replace(" or", ",").split(", "):
        assert str(read_name(name)) == name


# ---- Apple's and Intel's cards, with plain operations


def test_mps_serves_in_fp32_and_says_that_it_is_untested(monkeypatch) -> None:
    waited: List[int] = []
    monkeypatch.setattr(torch, "autocast", serves)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    runtime = SimpleNamespace(
        synchronize=lambda: waited.append(1),
        get_rng_state=lambda: torch.zeros(3, dtype=torch.uint8),
        set_rng_state=lambda state: waited.append(len(state)),
    )
    monkeypatch.setattr(torch, "mps", runtime)
    place, remarks = pick_device("mps")
    assert str(place) == "mps:0"
    assert remarks == ["mps is untested: plain PyTorch operations in fp32 are used; compare with --device cpu"]
    device.synchronize(place)
    device.set_device_random_state(place, device.device_random_state(place))
    assert waited == [1, 3]
    assert device.pin_options(place) == {"pin_memory": False}
    assert device.device_name(place) == "mps"
    assert device.has_fused_adamw(place) is False
    assert device.device_facts(place)["cards"] == "1 visible"
    device.reset_peak_memory(place)
    assert device.peak_memory_mib(place)  # of the process, whose memory the card uses
    assert image_dtype(place, "fp32") is None
    with pytest.raises(ConfigError, match="train.precision=bf16: never tried on mps; use fp32 or auto"):
        image_dtype(place, "bf16")
    with pytest.raises(ConfigError, match="2 processes need a card each, 1 visible"):
        pick_device("mps", 0, 2)
    with pytest.raises(ConfigError, match="several processes were never tried on it"):
        device.collective_backend(place)
    monkeypatch.setattr(torch, "autocast", raises)  # as of older releases, which have none for such a card
    with pytest.raises(ConfigError, match="has no autocast for it; a later one has"):
        pick_device("mps")


def serves(*_: Any, **__: Any) -> None:
    """An autocast that knows every device, as of newer releases."""


def raises(*_: Any, **__: Any) -> None:
    raise RuntimeError("User specified an unsupported autocast device_type")


def test_xpu(monkeypatch) -> None:
    runtime = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        set_device=CHOSEN.append,
        get_device_name=lambda place: "an Arc",
        max_memory_allocated=lambda place: 2**21,
    )
    monkeypatch.setattr(torch, "autocast", serves)
    monkeypatch.setattr(torch, "xpu", runtime, raising=False)
    place, remarks = pick_device("xpu:1")
    assert (str(place), CHOSEN, len(remarks)) == ("xpu:1", [1], 1)
    assert device.device_name(place) == "an Arc"
    assert visible_cards("xpu") == 1, "several processes were never tried"
    assert device.peak_memory_mib(place) == 2.0


@pytest.mark.parametrize("name", ["mps", "xpu", "xpu:0"])
def test_cards_that_are_not_there(name: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delattr(torch, "xpu", raising=False)  # as in PyTorch 2.1
    with pytest.raises(ConfigError, match=f"^device {name} cannot be used: this machine or this PyTorch has none$"):
        pick_device(name)
    assert str(pick_device("auto")[0]) == "cuda:0", "auto does not try them"


def test_the_help_says_what_is_accepted_without_pytorch() -> None:
    code = (
        "import sys; from tpvformer.cli import _parser\n"
        "try: _parser(['train']).parse_args(['train', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    env = environment(COLUMNS="300")
    done = programs.run([sys.executable, "-c", code], env=env)
    assert ACCEPTED in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("False\n")
