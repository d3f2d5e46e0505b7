"""Wrap all calls that depend on the kind of accelerator; no other file of the engine names one."""

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
    """Return the device of this process, made current, and remarks for the log.

    ``name`` is one of ``names.ACCEPTED``. ``local_size`` processes share this machine and each needs a card of its own:
    "auto" skips a kind with fewer cards, a named kind or card raises ConfigError. "auto" also raises ConfigError if
    CANN is set up but torch_npu cannot be imported, because such a machine is meant to run on its NPUs.
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
                remarks.append(
                    f"{kind} is untested: plain PyTorch operations in fp32 are used; compare with --device cpu"
                )
            return _make_current(kind, local_rank if asked.index is None else asked.index), remarks
        if asked.kind != "auto":
            raise ConfigError(f"device {asked} cannot be used: {problem}")
        if problem != _ABSENT:
            remarks.append(f"{kind} is skipped: {problem}")
    raise AssertionError("the processor can always be used")


def visible_cards(name: Union[str, torch.device] = "auto") -> int:
    """Return the number of processes that ``pick_device(name)`` could give a card each; 0 if it chooses the CPU."""
    asked = read_name(name)
    if asked.index is not None and asked.kind != "cpu":
        return 1
    for kind in KINDS if asked.kind == "auto" else (asked.kind,):
        if kind != "cpu" and (_software_problem(kind, asked.kind) or _card_problem(kind, 1)) is None:
            return 1 if kind in UNTESTED else _count(kind)
    return 0


_ABSENT = "this machine or this PyTorch has none"


def _software_problem(kind: str, name: str) -> Optional[str]:
    """Return why this Python cannot use such cards, or None.

    Raises ConfigError if ``name`` is "auto" and the machine is set up for them.
    """
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
    """Return why ``local_size`` processes cannot have a card each, or why card ``index`` cannot be used, or None."""
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
    """Return the number of cards of this kind that PyTorch sees."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    runtime: Any = getattr(torch, kind, None)  # older releases lack some
    return int(runtime.device_count()) if runtime is not None and runtime.is_available() else 0


def _has_autocast(kind: str) -> bool:  # with ``enabled=False``, as the model and the operations need
    try:
        torch.autocast(kind, enabled=False)
    except RuntimeError:
        return False
    return True


def _has_cann() -> bool:  # whether its set_env.sh was sourced
    return bool(os.environ.get("ASCEND_HOME_PATH"))


def _make_current(kind: str, index: int) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    if kind != "mps":  # one device only, and no function to set it
        _runtime(kind).set_device(index)
    if kind == "npu":  # before the first tensor: prebuilt kernels for all shapes, plain memory layouts
        _runtime(kind).set_compile_mode(jit_compile=False)
        _runtime(kind).config.allow_internal_format = False
        set_hf32(torch.device(kind), True)
    return torch.device(kind, index)


def set_hf32(device: torch.device, convolutions: bool) -> None:
    """Set the NPU's fp32 arithmetic; ``convolutions``: whether convolutions may round to 11 bits (HF32).

    The defaults differ between releases of torch_npu. The published runs allow it for convolutions. Matrix products
    never round, because they include the geometry.
    """
    if device.type == "npu":
        _runtime("npu").matmul.allow_hf32 = False
        _runtime("npu").conv.allow_hf32 = convolutions


def _runtime(kind: str) -> ModuleType:
    """Return ``torch.<kind>``: the module with set_device, synchronize and the memory counters."""
    module: ModuleType = getattr(torch, kind)
    return module


def collective_backend(device: torch.device) -> str:
    """Return the torch.distributed backend for tensors of this device. Raises ConfigError for an untested kind."""
    if device.type not in _COLLECTIVES:
        raise ConfigError(f"device {device.type}: several processes were never tried on it; start one alone")
    return _COLLECTIVES[device.type]


def fast_bf16(device: torch.device) -> processor.Verdict:
    """Return whether the image network is faster in bf16 than in fp32 on this device, and the reason."""
    if device.type == "cpu":
        return processor.fast_bf16(processor.read_processor())
    if device.type == "cuda":
        major, minor = _runtime("cuda").get_device_capability(device)
        return processor.Verdict(major >= 8, f"compute capability {major}.{minor}")
    if device.type == "npu":
        return processor.Verdict(False, "bf16 on an NPU only where it is asked for")
    return processor.Verdict(False, f"{device.type} is untested")


def allow_tf32(device: torch.device, allowed: bool) -> str:
    """Set whether fp32 products and convolutions on CUDA round their factors to TF32, for the whole process.

    Returns a line for the log; an empty one if the device has no TF32, and then nothing is changed.
    """
    if device.type != "cuda" or _runtime("cuda").get_device_capability(device)[0] < 8:
        return ""
    _set_tf32("high" if allowed else "highest", allowed)
    if allowed:
        return "TF32 is allowed in what stays fp32 (train.tf32=false forbids it)"
    return "TF32 is forbidden (train.tf32=false)"


def _set_tf32(products: str, convolutions: bool) -> None:
    """Set TF32 of products, as torch.set_float32_matmul_precision takes it, and of convolutions."""
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def time_convolutions(device: torch.device) -> None:
    """Let a card choose among its convolutions by timing them, once a shape; not where runs are to be repeatable."""
    if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        torch.backends.cudnn.benchmark = True


def image_dtype(device: torch.device, precision: str) -> Optional[torch.dtype]:
    """Return the type of the image network under a precision, "fp32", "bf16" or "fp16"; None means fp32.

    Raises ConfigError if the device does not support it.
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
    """Return the fp16 gradient scaler of this device, with PyTorch's interface and defaults (2^16, halved, doubled)."""
    if device.type == "npu":
        return _runtime("npu").amp.GradScaler()
    general = getattr(torch.amp, "GradScaler", None)  # from PyTorch 2.3 on
    return _runtime("cuda").amp.GradScaler() if general is None else general(device.type)


def adamw(device: torch.device) -> Tuple[Type[torch.optim.Optimizer], Dict[str, Any]]:
    """Return the fastest AdamW for tensors of this device, and its arguments."""
    if device.type == "npu":
        fused = getattr(importlib.import_module("torch_npu.optim"), "NpuFusedAdamW", None)
        return (torch.optim.AdamW, {"foreach": True}) if fused is None else (fused, {})
    return torch.optim.AdamW, {"fused": True} if has_fused_adamw(device) else {}


def has_fused_adamw(device: torch.device) -> bool:
    """Return whether PyTorch's AdamW(fused=True) supports tensors of this device."""
    return device.type == "cuda" or (device.type == "cpu" and _version() >= (2, 4))


def image_layout(device: torch.device) -> torch.memory_format:
    """Return the memory format of images: channels last, except on an NPU, whose kernels would copy them."""
    return torch.contiguous_format if device.type == "npu" else torch.channels_last


def pin_options(device: torch.device) -> Dict[str, Any]:
    """Return arguments of ``make_loader``: page-locked memory if it makes copies to the device asynchronous."""
    if device.type == "npu" and _version() < (2, 6):  # later releases choose the available accelerator
        return {"pin_memory": True, "pin_memory_device": "npu"}
    return {"pin_memory": pins_memory(device)}


def pins_memory(device: torch.device) -> bool:
    """Return whether copies from page-locked memory to this device are asynchronous."""
    return device.type in ("cuda", "npu")


def _version() -> Tuple[int, ...]:  # (major, minor) of PyTorch
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def transfer_runtime(device: torch.device) -> Optional[ModuleType]:
    """Return the module that creates streams for copies; None if copies do not overlap with computation."""
    return _runtime(device.type) if device.type == "cuda" else None


def compile_options(device: torch.device, graphs: bool) -> Dict[str, Any]:
    """Return arguments of torch.compile for this device; ``graphs`` allows recording and replaying of kernels."""
    return {"mode": "reduce-overhead"} if device.type == "cuda" and graphs else {}


def packs_gradients(device: torch.device) -> bool:  # to memory of its fused optimizer, where they must stay
    return device.type == "npu"


def compiles_by_default(device: torch.device) -> bool:
    """Return whether training is compiled unless ``train.compile`` is false."""
    return device.type == "cuda"


def forked_random_state(device: torch.device) -> ContextManager[None]:
    """Keep the random numbers that the CPU and the device draw within it from changing those drawn after it."""
    on_cpu = device.type == "cpu"
    return torch.random.fork_rng([]) if on_cpu else torch.random.fork_rng([device.index or 0], device_type=device.type)


def compile_trials(device: torch.device) -> int:
    """Return the number of trial calls of a compiled function: recorded kernels run, are recorded, and are replayed."""
    return 1 if device.type == "cpu" else 3


def device_facts(device: torch.device) -> Dict[str, str]:
    """Return device, drivers and versions as text, for a report."""
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
    """Make operations that the NPU lacks an error instead of CPU work. Call it before ``pick_device``."""
    os.environ.setdefault("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")


@contextlib.contextmanager
def exact_arithmetic(device: torch.device) -> Generator[None, None, None]:
    """Disable rounding of fp32 inputs inside the context, for comparisons with a CPU; restore it afterwards."""
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


PROFILED = {"wait": 1, "warmup": 1, "active": 3}  # steps, as keywords: the order differs between profilers


def profiler(device: torch.device, folder: Path) -> ContextManager[Any]:
    """Record the steps of PROFILED inside the context; ``step()`` ends each. TensorBoard traces go to ``folder``."""
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
    """Wait until the device has finished all its work, before a clock is read."""
    if device.type != "cpu":
        _runtime(device.type).synchronize(*_numbered(device))


def _numbered(device: torch.device) -> Tuple[torch.device, ...]:
    """Return the device as an argument of its runtime's functions; those of mps, with one device, take none."""
    return () if device.type == "mps" else (device,)


def device_random_state(device: torch.device) -> torch.Tensor:
    """Return the card's random state (n) uint8 on the CPU; empty for a CPU, whose state is PyTorch's own."""
    if device.type == "cpu":
        return torch.empty(0, dtype=torch.uint8)
    state: torch.Tensor = _runtime(device.type).get_rng_state(*_numbered(device))
    return state


def set_device_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Restore a state of ``device_random_state``, unless it belongs to another kind of device."""
    if device.type != "cpu" and len(state) == len(device_random_state(device)):
        _runtime(device.type).set_rng_state(state, *_numbered(device))


def enable_determinism(device: torch.device) -> List[str]:
    """Make PyTorch use deterministic algorithms, before the device is used; return remarks on what still varies."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    if device.type == "cpu":
        return []
    return ["deterministic: what kernels add up in any order, as PyTorch's warnings say, still varies in its last bits"]


def device_name(device: torch.device) -> str:
    """Return a name for people: that of the card, or the kind."""
    ask = None if device.type == "cpu" else getattr(_runtime(device.type), "get_device_name", None)
    return device.type if ask is None else str(ask(device))


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory counter, where that is possible; for a CPU on Linux only."""
    reset = None if device.type == "cpu" else getattr(_runtime(device.type), "reset_peak_memory_stats", None)
    if reset is None:
        processor.reset_peak_memory()
    else:
        reset(device)


def peak_memory_mib(device: torch.device) -> Optional[float]:
    """Return the peak memory in MiB: of the card's tensors, or of this process; None if it is unknown."""
    peak = None if device.type == "cpu" else getattr(_runtime(device.type), "max_memory_allocated", None)
    return processor.peak_memory_mib() if peak is None else float(peak(device)) / 2**20
