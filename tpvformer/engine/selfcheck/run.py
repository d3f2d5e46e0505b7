"""Run all checks, each a line of a table; a failed check does not stop the others."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch

from tpvformer import ops
from tpvformer.config import Config
from tpvformer.engine.bench.inputs import SIZE
from tpvformer.engine.device.accelerator import device_facts, exact_arithmetic, pick_device, refuse_fallbacks
from tpvformer.engine.device.precision import choose, prepare
from tpvformer.engine.logging.environment import environment_info
from tpvformer.engine.selfcheck import checks
from tpvformer.engine.selfcheck.operations import cases, compare
from tpvformer.runtime.processor import mib

FALLBACK = ("fall back to run on the cpu", "fallback to cpu", "falling back to cpu")


class Line(NamedTuple):
    """Hold the outcome of one check; ``ok`` is None for plain information."""

    check: str
    ok: Optional[bool]
    detail: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAILED", None: ""}[self.ok]
        return f"{mark:<6}  {self.check:<52}  {self.detail}".rstrip()


def selfcheck(
    config: Optional[Config], device_name: str, size: Optional[Tuple[int, int]], say: Callable[[str], None]
) -> Dict[str, Any]:
    """Check the device; return the results as plain values. ``say`` receives each line as soon as it is known.

    The timed steps are those of ``config`` with images of ``size`` (W, H). The default is the published configuration
    of 64 channels with nuScenes' images, or a small one on a CPU, which would take an hour. ``passed`` is True if all
    checks passed. Raises ConfigError if the device cannot be used at all.
    """
    refuse_fallbacks()
    device, remarks = pick_device(device_name)
    on_cpu = device.type == "cpu"
    published = Config("tpv_lidarseg_dim64")
    timed = config or (checks.shrunk(published) if on_cpu else published)
    lines: List[Line] = []

    def tell(check: str, ok: Optional[bool], detail: str) -> None:
        lines.append(Line(check, ok, " ".join(detail.split())))
        say(str(lines[-1]))

    def attempt(check: str, run: Callable[[], Tuple[Optional[bool], str]]) -> None:
        try:
            tell(check, *run())
        except Exception as err:  # drivers raise many types; the other checks still run
            tell(check, False, f"{type(err).__name__}: {str(err).strip() or 'no message'}"[:300])

    for name, fact in device_facts(device).items():
        tell(name, None, fact)
    for remark in remarks:
        tell("remark", None, remark)
    for operation, problem in ops.kernels(device).items():
        tell(f"kernel: {operation}", problem is None, problem or "found")
    timings: Dict[str, Any] = {}

    def time_steps() -> Tuple[Optional[bool], str]:
        width, height = size or (checks.SMALL_SIZE if on_cpu else SIZE)
        precision = choose(timed.train.precision, device)
        prepare(timed, device)
        timings.update(checks.timing(timed, device, (width, height)))
        text = f"{timings['median_ms']:.1f} ms ({timings['least_ms']:.1f} to {timings['most_ms']:.1f}), "
        text += f"peak {mib(timings['peak_memory_mib'])}, loss {timings['loss']:.4f}"
        return math.isfinite(timings["loss"]), f"{width}x{height}, {precision}: {text}"

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with exact_arithmetic(device):
            for case in cases():
                attempt(case.name, lambda case=case: compare(case, device))
            attempt("optimiser", lambda: checks.optimiser(device))
            compared = config or published
            attempt(f"training step of a small {compared.name}", lambda: checks.training_step(compared, device))
        attempt(f"{checks.STEPS} training steps of {timed.name}", time_steps)
    fallen = sorted({str(w.message).strip() for w in heard if any(t in str(w.message).lower() for t in FALLBACK)})
    tell("no operation fell back to the CPU", not fallen, fallen[0][:200] if fallen else "no such warning was given")

    passed = all(line.ok is not False for line in lines)
    return {
        **environment_info(device, "tpvformer"),
        "config": timed.name,
        "passed": passed,
        "checks": [line._asdict() for line in lines],
        "timing": timings,
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_RELEVANT)},
        "torch_build": torch.__config__.show().splitlines()[0],
    }


_RELEVANT = ("ASCEND_", "TASK_QUEUE", "COMBINED_", "CPU_AFFINITY", "TORCH_", "PYTORCH_", "OMP_", "TPVFORMER_")
