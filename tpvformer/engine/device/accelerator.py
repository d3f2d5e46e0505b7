"""The one file of the engine that knows accelerators by name."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any, ContextManager, Dict, Generator, List, Optional, Tuple, Type, Union

import torch

from tpvformer.engine.device.names import KINDS, UNTESTED, read_name
from tpvformer.errors import ConfigError
from tpvformer.runtime import processor

_COLLECTIVES = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}


def pick_device(
    name: Union[str, torch.device] = "auto", local_rank: int = 0, local_size: int = 1
) -> Tuple[torch.device, List[str]]:
    """The device of this process, made current, and remarks worth a line in the log.

    ``name`` is what device_names.ACCEPTED says. ``local_size`` processes share this machine and each needs a card of
    its own: "auto" passes over a kind with fewer cards, a named kind or card is refused with ConfigError. So is "auto"
    where CANN is set up but torch_npu cannot be had: who prepared the machine for Ascend's cards does not want the
    processor.
    """
    asked = read_name(name)
    if asked.index is not None and asked.kind != "cpu" and local_size > 1:
        raise ConfigError(
            f"device {asked} is one card, and {local_size} processes need a card each; ask for {asked.kind}, which "
            "gives every process its own"
        )
    remarks: List[str] = []
    for kind in KINDS if asked.kind == "auto" else (asked.kind,):
        problem = _software_problem(kind, asked.kind) or _card_problem(kind, local_size, asked.index)
        if problem is None:
            if kind in UNTESTED:
                remarks.append(f"{kind} is untested: plain PyTorch operations in fp32 serve; compare with --device cpu")
            return _make_current(kind, local_rank if asked.index is None else asked.index), remarks
        if asked.kind != "auto":
            raise ConfigError(f"device {asked} cannot be used: {problem}")
        if problem != _ABSENT:
            remarks.append(f"{kind} is passed over: {problem}")
    raise AssertionError("the processor can always be used")


def visible_cards(name: Union[str, torch.device] = "auto") -> int:
    """How many processes ``pick_device(name)`` would give a card each; 0 where it chooses the processor."""
    asked = read_name(name)
    if asked.index is not None and asked.kind != "cpu":
        return 1
    for kind in KINDS if asked.kind == "auto" else (asked.kind,):
        if kind != "cpu" and (_software_problem(kind, asked.kind) or _card_problem(kind, 1)) is None:
            return 1 if kind in UNTESTED else _count(kind)
    return 0


_ABSENT = "this machine or this PyTorch has none"


def _software_problem(kind: str, name: str) -> Optional[str]:
    """Why this Python cannot drive such cards. ConfigError if ``name`` is "auto" and the machine is set up for them."""
    if kind != "npu":
        return None
    if importlib.util.find_spec("torch_npu") is None:
        if not _has_cann():
            return _ABSENT
        problem = "torch_npu is not installed"
    else:
        try:
            importlib.import_module("torch_npu")
            return None
        except (ImportError, OSError, RuntimeError) as err:
            problem = f"torch_npu does not load ({err})"
    if not _has_cann():
        return f"{problem}; source CANN's set_env.sh first"
    if name == "auto":
        raise ConfigError(
            f"CANN is set up here (ASCEND_HOME_PATH), but {problem}; install the torch_npu that fits this CANN and "
            f"PyTorch {torch.__version__}, or ask for the processor with --device cpu"
        )
    return problem


def _card_problem(kind: str, local_size: int, index: Optional[int] = None) -> Optional[str]:
    """Why ``local_size`` processes cannot have a card each, or one process not card number ``index``."""
    if kind == "cpu":
        return f"there is one, cpu, whose {torch.get_num_threads()} threads work together" if index else None
    cards = _count(kind)
    if cards == 0:
        return "CANN is set up here, but no card is visible" if kind == "npu" and _has_cann() else _ABSENT
    if kind in UNTESTED and not _has_autocast(kind):
        return f"PyTorch {torch.__version__} has no autocast for it; a later one has"
    if index is not None and index >= cards:
        return f"{cards} visible, {kind}:0" + (f" to {kind}:{cards - 1}" if cards > 1 else "")
    if cards < local_size:
        return f"{local_size} processes need a card each, {cards} visible"
    return None


def _count(kind: str) -> int:
    """How many cards of this kind PyTorch sees."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    runtime: Any = getattr(torch, kind, None)  # older releases lack some
    return int(runtime.device_count()) if runtime is not None and runtime.is_available() else 0


def _has_autocast(kind: str) -> bool:
    """Whether torch.autocast can be told to be off there, as the model and the operations do."""
    try:
        torch.autocast(kind, enabled=False)
    except RuntimeError:
        return False
    return True


def _has_cann() -> bool:
    """Whether CANN's set_env.sh was sourced."""
    return bool(os.environ.get("ASCEND_HOME_PATH"))


def _make_current(kind: str, index: int) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    if kind != "mps":  # there is one, and no function that chooses it
        _runtime(kind).set_device(index)
    if kind == "npu":  # before the first tensor: ready-made kernels for every shape, plain memory layouts
        _runtime(kind).set_compile_mode(jit_compile=False)
        _runtime(kind).config.allow_internal_format = False
        set_hf32(torch.device(kind), True)
    return torch.device(kind, index)


def set_hf32(device: torch.device, convolutions: bool) -> None:
    """Set the NPU's fp32 arithmetic, whose defaults differ between releases: whether convolutions may round to 11 bits.

    The published runs let them. Matrix products never may: geometry is among them.
    """
    if device.type == "npu":
        _runtime("npu").matmul.allow_hf32 = False
        _runtime("npu").conv.allow_hf32 = convolutions


def _runtime(kind: str) -> ModuleType:
    """``torch.<kind>``: the module with set_device, synchronize and the memory counters."""
    module: ModuleType = getattr(torch, kind)
    return module


def collective_backend(device: torch.device) -> str:
    """The torch.distributed backend that moves tensors of this device. Raises ConfigError where none was tried."""
    if device.type not in _COLLECTIVES:
        raise ConfigError(f"device {device.type}: several processes were never tried on it; start one alone")
    return _COLLECTIVES[device.type]


def fast_bf16(device: torch.device) -> processor.Verdict:
    """Whether the image network is faster in bf16 than in fp32 on this device, and by what one knows."""
    if device.type == "cpu":
        return processor.fast_bf16(processor.read_processor())
    if device.type == "cuda":
        major, minor = _runtime("cuda").get_device_capability(device)
        return processor.Verdict(major >= 8, f"compute capability {major}.{minor}")
    if device.type == "npu":
        return processor.Verdict(False, "bf16 on an NPU only where it is asked for")
    return processor.Verdict(False, f"{device.type} is untested")


def allow_tf32(device: torch.device, allowed: bool) -> str:
    """Whether fp32 products and convolutions on CUDA round their factors to TF32 from here on, in the whole process.

    Returns a line about it; empty where a device has no TF32, and nothing is changed.
    """
    if device.type != "cuda" or _runtime("cuda").get_device_capability(device)[0] < 8:
        return ""
    _set_tf32("high" if allowed else "highest", allowed)
    if allowed:
        return "TF32 is allowed in what stays fp32 (train.tf32=false forbids it)"
    return "TF32 is forbidden (train.tf32=false)"


def _set_tf32(products: str, convolutions: bool) -> None:
    """Of products as torch.set_float32_matmul_precision has it. PyTorch 2.1 to 2.13 know both without a warning."""
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def image_dtype(device: torch.device, precision: str) -> Optional[torch.dtype]:
    """What the image network runs in under a precision, "fp32", "bf16" or "fp16"; None is plain fp32.

    Raises ConfigError where the device has none.
    """
    if precision == "fp32":
        return None
    if device.type in UNTESTED:
        raise ConfigError(f"train.precision={precision}: never tried on {device.type}; use fp32 or auto")
    if precision == "fp16":
        if device.type == "cpu" and _version() < (2, 4):
            raise ConfigError(f"train.precision=fp16: PyTorch {torch.__version__} has none on a CPU; use bf16 or fp32")
        return torch.float16
    if device.type != "cpu" and not _runtime(device.type).is_bf16_supported():
        raise ConfigError(f"train.precision=bf16: {device_name(device)} has no bf16; use fp32")
    return torch.bfloat16


def gradient_scaler(device: torch.device) -> Any:
    """What keeps small fp16 gradients from vanishing, with PyTorch's interface and defaults (2^16, halved, doubled)."""
    if device.type == "npu":
        return _runtime("npu").amp.GradScaler()
    general = getattr(torch.amp, "GradScaler", None)  # from PyTorch 2.3 on
    return _runtime("cuda").amp.GradScaler() if general is None else general(device.type)


def adamw(device: torch.device) -> Tuple[Type[torch.optim.Optimizer], Dict[str, Any]]:
    """The quickest AdamW for tensors of this device, and the arguments that make it so."""
    if device.type == "npu":
        fused = getattr(importlib.import_module("torch_npu.optim"), "NpuFusedAdamW", None)
        return (torch.optim.AdamW, {"foreach": True}) if fused is None else (fused, {})
    return torch.optim.AdamW, {"fused": True} if has_fused_adamw(device) else {}


def has_fused_adamw(device: torch.device) -> bool:
    """Whether PyTorch's AdamW(fused=True) exists for tensors of this device."""
    return device.type == "cuda" or (device.type == "cpu" and _version() >= (2, 4))


def image_layout(device: torch.device) -> torch.memory_format:
    """How images lie in memory: channels last, but on an NPU, whose kernels would copy them back and forth."""
    return torch.contiguous_format if device.type == "npu" else torch.channels_last


def pin_options(device: torch.device) -> Dict[str, Any]:
    """Arguments of ``make_loader``: batches in page-locked memory, where they reach the device without waiting."""
    if device.type == "npu" and _version() < (2, 6):  # later ones pin for the accelerator that is there
        return {"pin_memory": True, "pin_memory_device": "npu"}
    return {"pin_memory": pins_memory(device)}


def pins_memory(device: torch.device) -> bool:
    """Whether batches in page-locked memory reach this device without waiting."""
    return device.type in ("cuda", "npu")


def _version() -> Tuple[int, ...]:
    """(major, minor) of PyTorch."""
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def transfer_runtime(device: torch.device) -> Optional[ModuleType]:
    """What makes queues for transfers alone, beside the one that computes; None where they would not overlap."""
    return _runtime(device.type) if device.type == "cuda" else None


def compile_options(device: torch.device, graphs: bool) -> Dict[str, Any]:
    """Arguments of torch.compile that suit this device; ``graphs`` allows to record kernels and replay them."""
    return {"mode": "reduce-overhead"} if device.type == "cuda" and graphs else {}


def compiles_by_default(device: torch.device) -> bool:
    """Return whether training is compiled unless ``train.compile`` is false."""
    return device.type == "cuda"


def forked_random_state(device: torch.device) -> ContextManager[None]:
    """Keep the random numbers that the CPU and the device draw within it from changing those drawn after it."""
    if device.type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device.index or 0], device_type=device.type)


def compile_trials(device: torch.device) -> int:
    """How many calls of a compiled function show all it may do: recorded kernels run, are recorded, are replayed."""
    return 1 if device.type == "cpu" else 3


def device_facts(device: torch.device) -> Dict[str, str]:
    """What somebody who cannot see this machine needs to know about its device and software, as text."""
    facts = {"device": f"{device}, {device_name(device)}", "PyTorch": torch.__version__}
    if device.type != "cpu":
        facts["cards"] = f"{_count(device.type)} visible"
    if device.type == "cuda":
        facts["CUDA"] = str(torch.version.cuda)
    if device.type == "npu":
        facts["torch_npu"] = str(getattr(importlib.import_module("torch_npu"), "__version__", "of unknown version"))
        facts["CANN"] = os.environ.get("ASCEND_HOME_PATH", "set_env.sh was not sourced")
    return facts


def refuse_fallbacks() -> None:
    """From here on an operation that the NPU lacks is an error instead of work for the CPU. Before ``pick_device``."""
    os.environ.setdefault("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")


@contextlib.contextmanager
def exact_arithmetic(device: torch.device) -> Generator[None, None, None]:
    """No rounding of fp32 inputs within, for comparisons with a CPU; afterwards what training uses again."""
    set_hf32(device, False)
    on_cuda = device.type == "cuda"
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) if on_cuda else ("highest", False)
    if on_cuda:
        _set_tf32("highest", False)
    try:
        yield
    finally:
        if on_cuda:
            _set_tf32(*before)
        set_hf32(device, True)


PROFILED = {"wait": 1, "warmup": 1, "active": 3}  # steps; by name, for the order differs between profilers


def profiler(device: torch.device, folder: Path) -> ContextManager[Any]:
    """Records the steps of PROFILED within; ``step()`` ends each. Traces for TensorBoard's viewer go to ``folder``."""
    on_npu = device.type == "npu"
    tool: Any = importlib.import_module("torch_npu.profiler") if on_npu else torch.profiler
    kinds = [tool.ProfilerActivity.CPU]
    if device.type in ("cuda", "npu"):
        kinds.append(tool.ProfilerActivity.NPU if on_npu else tool.ProfilerActivity.CUDA)
    folder.mkdir(parents=True, exist_ok=True)
    made: ContextManager[Any] = tool.profile(
        activities=kinds,
        schedule=tool.schedule(**PROFILED, repeat=1),
        on_trace_ready=tool.tensorboard_trace_handler(str(folder)),
    )
    return made


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given, so that a clock read next means something."""
    if device.type != "cpu":
        _runtime(device.type).synchronize(*_numbered(device))


def _numbered(device: torch.device) -> Tuple[torch.device, ...]:
    """The device as an argument of a function of its runtime; that of mps, which has but one, takes none."""
    return () if device.type == "mps" else (device,)


def device_random_state(device: torch.device) -> torch.Tensor:
    """The state of the card's random numbers (n) uint8 on the CPU; empty for a CPU, whose state is PyTorch's own."""
    if device.type == "cpu":
        return torch.empty(0, dtype=torch.uint8)
    state: torch.Tensor = _runtime(device.type).get_rng_state(*_numbered(device))
    return state


def set_device_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Put a state of ``device_random_state`` in place, unless it is that of another kind of device."""
    if device.type != "cpu" and len(state) == len(device_random_state(device)):
        _runtime(device.type).set_rng_state(state, *_numbered(device))


def enable_determinism(device: torch.device) -> List[str]:
    """Ask PyTorch for algorithms whose result does not depend on timing, before the device computes anything.

    Returns remarks on what that leaves.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    if device.type == "cpu":
        return []
    return ["deterministic: what kernels add up in any order, as PyTorch's warnings say, still varies in its last bits"]


def device_name(device: torch.device) -> str:
    """A name for people: the card's own, or the kind's."""
    ask = None if device.type == "cpu" else getattr(_runtime(device.type), "get_device_name", None)
    return device.type if ask is None else str(ask(device))


def reset_peak_memory(device: torch.device) -> None:
    """Count the highest memory use from here on, where that can be: for a CPU on Linux."""
    reset = None if device.type == "cpu" else getattr(_runtime(device.type), "reset_peak_memory_stats", None)
    if reset is None:
        processor.reset_peak_memory()
    else:
        reset(device)


def peak_memory_mib(device: torch.device) -> Optional[float]:
    """Highest memory use so far: of the card's tensors, else of this process; None where that cannot be told."""
    peak = None if device.type == "cpu" else getattr(_runtime(device.type), "max_memory_allocated", None)
    return processor.peak_memory_mib() if peak is None else float(peak(device)) / 2**20
