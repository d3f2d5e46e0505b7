"""Write a model compiled by AOTInductor for this processor."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Dict, Generator, List

import torch

from tpvformer.config import Config
from tpvformer.errors import ConfigError
from tpvformer.export import traced
from tpvformer.model import TPVFormer


def export_aoti(network: TPVFormer, config: Config, out: Path, cameras: int, size: traced.Size) -> str:
    """Write a .pt2 package, which ``torch._inductor.aoti_load_package`` runs, for images of ``size``; returns a line.

    Compiling takes minutes and needs a C++ compiler, the one that CXX names or g++. Raises ConfigError.
    """
    traced.check(network, config, out, "--aoti", cameras, size)
    import torch._inductor as inductor  # loads for seconds
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        compiler = get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        raise ConfigError("--aoti needs a C++ compiler; install g++ or name another in CXX") from None
    program = traced.trace(network, config, cameras, size)
    threads = {"cpp.dynamic_threads": True}  # as many as whoever runs it says, not as many as this process has

    def write(partial: str) -> None:
        inductor.aoti_compile_and_package(program, package_path=partial, inductor_configs=dict(threads))

    try:
        with traced.quiet(), _sampling_whole():
            traced.save(out, write)
    except RuntimeError as err:
        cause = getattr(err, "inner_exception", err)  # PyTorch 2.7 and newer wrap what happens inside
        if not isinstance(cause, CppCompileError):
            raise
        errors = [line.strip() for line in cause.output.splitlines() if "error" in line] or ["it says nothing"]
        raise ConfigError(f"--aoti: {compiler} cannot compile the model: {errors[0]}") from err
    return traced.line(out, cameras, size, "AOTInductor")


@contextlib.contextmanager
def _sampling_whole() -> Generator[None, None, None]:
    """Within it inductor calls PyTorch's function for grid_sample. Taken apart into gathers, as it does by default, a
    pass takes four times as long on a CPU, and compiling twice.
    """
    from torch._inductor import decomposition

    name = torch.ops.aten.grid_sampler_2d.default
    tables: List[Dict[Any, Any]] = [decomposition.decompositions, decomposition.select_decomp_table()]
    removed = [(table, table.pop(name)) for table in tables if name in table]
    try:
        yield
    finally:
        for table, function in removed:
            table[name] = function
