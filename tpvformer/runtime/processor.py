"""Read the processor's features, decide whether its bf16 is fast, and measure this process's memory."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Tuple

import torch

FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "bf16")  # they affect the speed here
_BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # instructions that multiply bf16 numbers; "bf16" is Arm's
_LINUX_NAMES = {"asimd": "neon"}
_TORCH_NAMES = {"avx512_f": "avx512f", "arm_neon": "neon", "arm_bf16": "bf16"}  # of torch.cpu.get_capabilities
_TORCH_ASKS = {"avx2": "_is_avx2_supported", "avx512f": "_is_avx512_supported"}
_TORCH_ASKS["avx512_bf16"] = "_is_avx512_bf16_supported"
# values of ONEDNN_MAX_CPU_ISA, oneDNN's limit of instruction sets, that exclude bf16 products
_ISA_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


class Processor(NamedTuple):
    """Hold the processor's name and its ``features`` out of FEATURES.

    ``onednn``: whether PyTorch's oneDNN supports bf16. ``limit``: the environment setting that makes bf16 slow, as
    typed, else empty.
    """

    name: str
    features: FrozenSet[str]
    onednn: bool
    limit: str = ""

    def __str__(self) -> str:
        return ", ".join(name for name in FEATURES if name in self.features) or "none of " + ", ".join(FEATURES)


class Verdict(NamedTuple):
    """Hold whether bf16 is faster than fp32 on a device, and the reason."""

    fast: bool
    why: str


def fast_bf16(processor: Processor) -> Verdict:
    """Return whether this processor's bf16 is faster than its fp32.

    Fast bf16 needs instructions that multiply bf16 and a oneDNN that uses them. With AVX-512 alone oneDNN accepts bf16
    too, but converts it back and forth. Without oneDNN's bf16, PyTorch's own convolutions are slower still.
    """
    found = [name for name in _BF16 if name in processor.features]
    if not found:
        if not processor.features:
            return Verdict(False, "this processor is not known to have bf16 instructions")
        arm = "neon" in processor.features
        return Verdict(False, f"{processor} without {'bf16' if arm else 'avx512_bf16 or amx_bf16'}")
    if processor.limit:
        return Verdict(False, f"{found[0]}, but {processor.limit}")
    if not processor.onednn:
        return Verdict(False, f"{found[0]}, but this PyTorch's oneDNN takes no bf16 here")
    return Verdict(True, found[0])


def read_processor() -> Processor:
    """Return the facts of this machine's processor; unknown features count as absent."""
    name, features = _linux()
    if not features and sys.platform == "darwin":
        name, features = _macos()
    if not features:
        features = _torch()
    known = frozenset(features) & frozenset(FEATURES)
    return Processor(name or platform.processor() or platform.machine(), known, _onednn_takes_bf16(), _limit())


def _linux() -> Tuple[str, List[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", []
    return read_cpuinfo(text, platform.machine())


def read_cpuinfo(text: str, machine: str) -> Tuple[str, List[str]]:
    """Return name and features from the text of Linux's /proc/cpuinfo on a ``machine`` such as "x86_64" or "aarch64".

    Only features of all cores count. An emulator such as qemu-user shows the host's text, with instructions that the
    process does not have; the label tells them apart: x86 has "flags", Arm has "Features".
    """
    name, features = "", None
    label = "Features" if machine in ("aarch64", "arm64", "armv7l", "armv8l") else "flags"
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = name or value
        elif key == label:
            here = {_LINUX_NAMES.get(word, word) for word in value.split()}
            features = here if features is None else features & here
    return name, sorted(features or ())


def _macos() -> Tuple[str, List[str]]:
    """Return name and features by sysctl, which prints 1 for a present feature and nothing for unknown names."""
    asked = {"avx2": "hw.optional.avx2_0", "avx512f": "hw.optional.avx512f"}
    asked.update(neon="hw.optional.neon", bf16="hw.optional.arm.FEAT_BF16")
    features = [feature for feature, key in asked.items() if _sysctl(key) == "1"]
    if platform.machine() == "arm64" and "neon" not in features:
        features.append("neon")  # every Apple processor has it
    return _sysctl("machdep.cpu.brand_string"), features


def _sysctl(key: str) -> str:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _torch() -> List[str]:
    """Return features by PyTorch; newer releases report more, 2.1 reports none."""
    told: Dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    features = [_TORCH_NAMES.get(name, name) for name, has in told.items() if has is True]
    for feature, question in _TORCH_ASKS.items():
        ask = getattr(torch.cpu, question, None)
        if ask is not None and ask():
            features.append(feature)
    return features


def _onednn_takes_bf16() -> bool:
    """Return whether PyTorch uses oneDNN for bf16 here; not if it was built without oneDNN or has it disabled."""
    if not (torch.backends.mkldnn.is_available() and getattr(torch.backends.mkldnn, "enabled", True)):
        return False
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # no such operation in this build
        return False


def _limit() -> str:
    """Return the environment setting that makes bf16 no faster than fp32; empty if there is none.

    Either oneDNN does not use the instructions, by the first of its two variables that is set. Or PyTorch runs
    everything except convolutions without vectors, which takes the same time in bf16 and fp32.
    """
    aten = os.environ.get("ATEN_CPU_CAPABILITY", "")
    if aten == "default":
        return f"ATEN_CPU_CAPABILITY={aten}"
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        if name in os.environ:
            value = os.environ[name]
            return f"{name}={value}" if value.strip().upper() in _ISA_WITHOUT_BF16 else ""
    return ""


def reset_peak_memory() -> None:
    """Reset the peak memory counter of this process. Works on Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def mib(amount: Optional[float]) -> str:
    """Format an amount of memory."""
    return "not known" if amount is None else f"{amount:.0f} MiB"


def peak_memory_mib() -> Optional[float]:
    """Return the peak memory of this process in MiB; None if Python cannot read it, as on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
