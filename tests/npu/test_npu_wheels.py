"""The vendor's wheels have the names and signatures that ops/npu.py, engine/device and engine/optim use.

The wheels are downloaded and read as text: nothing of them is imported, unpacked or run. Skipped where no registry
answers. TPVFORMER_WHEELS names a folder that keeps them between runs.
"""

from __future__ import annotations

import ast
import os
import sys
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import programs
import pytest

from tpvformer.ops import npu

DRIVING = ("26.1.0.post1", "26.2.0.post1")
TORCH_NPU = ("2.1.0.post10", "2.1.0.post17", "2.8.0.post4")  # CANN 8.0.0 (the published run's), 8.3.RC1, 9.0.0
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64")
SECONDS = 60  # for one wheel, 7 to 36 MB


class Signature(NamedTuple):
    """Names that may be given by position, in order, and how many of them must be; names that are keywords only."""

    positional: Tuple[str, ...]
    required: int
    keyword_only: Tuple[str, ...] = ()

    def takes(self, count: int) -> bool:
        return self.required <= count <= len(self.positional)


class Wheel:
    """The Python files of a wheel, parsed."""

    def __init__(self, file: Path) -> None:
        self._archive = zipfile.ZipFile(file)
        self._trees: Dict[str, ast.Module] = {}

    def tree(self, path: str) -> ast.Module:
        if path not in self._trees:
            self._trees[path] = ast.parse(self._archive.read(path).decode("utf-8"), path)
        return self._trees[path]

    def text(self, path: str) -> str:
        return self._archive.read(path).decode("utf-8")

    def has(self, path: str) -> bool:
        return path in self._archive.namelist()

    def defines(self, path: str, name: str, seen: Tuple[Tuple[str, str], ...] = ()) -> Optional[Tuple[str, ast.AST]]:
        """(file, node) where a module gets ``name`` from: a definition, an assignment, or an import, followed."""
        if (path, name) in seen:  # modules import each other in circles
            return None
        seen = (*seen, (path, name))
        for node in _statements(self.tree(path).body):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
                return path, node
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                return path, node
            if isinstance(node, ast.ImportFrom):
                source = self._module(path, node)
                for alias in node.names:
                    if alias.name == "*" and source is not None and source != path:
                        found = self.defines(source, name, seen)
                        if found is not None:
                            return found
                    if (alias.asname or alias.name) == name:
                        inner = None if source is None else self.defines(source, alias.name, seen)
                        return (path, node) if inner is None else inner
        return None

    def _module(self, path: str, node: ast.ImportFrom) -> Optional[str]:
        """The file that an import from a package's own module names."""
        if node.level == 0:
            base = (node.module or "").split(".")
        else:
            base = path.split("/")[: -node.level] + (node.module or "").split(".")
        stem = "/".join(part for part in base if part)
        return next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if self.has(p)), None)

    def function(self, path: str, name: str) -> Signature:
        """How ``name`` of a module is called: a function, a class's constructor, or ``Function.apply``."""
        found = self.defines(path, name)
        assert found is not None, f"{path} has no {name}"
        file, node = found
        if isinstance(node, ast.Assign):
            apply = node.value
            assert isinstance(apply, ast.Attribute) and apply.attr == "apply", name
            assert isinstance(apply.value, ast.Name), name
            return self.method(file, apply.value.id, "forward")  # whose ctx is not given
        if isinstance(node, ast.ClassDef):
            return self.method(file, node.name, "__init__")
        assert isinstance(node, ast.FunctionDef), f"{name} in {file} is {type(node).__name__}"
        return _signature(node, 0)

    def method(self, path: str, kind: str, name: str) -> Signature:
        """A method's signature without its first parameter; looked for in base classes of other files too."""
        found = self.defines(path, kind)
        assert found is not None and isinstance(found[1], ast.ClassDef), f"{path} has no class {kind}"
        file, holder = found
        for node in holder.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return _signature(node, 1)
        bases = [base.id for base in holder.bases if isinstance(base, ast.Name)]
        assert bases, f"{kind} in {file} has no {name}"
        return self.method(file, bases[0], name)


def _statements(body: List[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when a module is imported, conditions aside."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _statements([*node.body, *node.orelse])


def _signature(node: ast.FunctionDef, skip: int) -> Signature:
    names = [a.arg for a in [*node.args.posonlyargs, *node.args.args]][skip:]
    keyword_only = tuple(a.arg for a in node.args.kwonlyargs)
    return Signature(tuple(names), len(names) - len(node.args.defaults), keyword_only)


def fetch(package: str, version: str, folder: Path) -> Wheel:
    """The wheel for CPython 3.11 on x86-64; skips the test if no registry hands it out."""
    folder = Path(os.environ.get("TPVFORMER_WHEELS") or folder)
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                   "--python-version=3.11", "--retries=0", "--timeout=5", "--disable-pip-version-check",
                   *(f"--platform={tag}" for tag in PLATFORMS), f"--dest={folder}",
                   f"{package}=={version}"]  # fmt: skip
        try:
            done = programs.run(command, seconds=SECONDS)
        except programs.Overdue:
            pytest.skip(f"{package} {version} was not downloaded within {SECONDS} s")
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            pytest.skip(f"{package} {version} cannot be downloaded: {last}")
    return Wheel(next(iter(folder.glob(pattern))))


@pytest.fixture(scope="module", params=DRIVING)
def driving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return fetch("mx-driving", request.param, tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module", params=TORCH_NPU)
def torch_npu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return fetch("torch-npu", request.param, tmp_path_factory.mktemp("wheels"))


# ---- mx_driving


def exported(wheel: Wheel) -> List[str]:
    node = wheel.defines("mx_driving/__init__.py", "__all__")
    assert node is not None and isinstance(node[1], ast.Assign)
    names: List[str] = ast.literal_eval(node[1].value)
    return names


# how ops/npu.py calls each kernel: by position, this many arguments, whose names in the newer wrappers are these
CALLS = {
    "attention": "value value_spatial_shapes value_level_start_index sampling_locations attention_weights",
    "convolution": "x offset mask weight bias stride padding dilation groups deformable_groups",
    "max_pool": "x kernel_size stride padding",
    "add_relu": "x y",
}


def test_kernels_are_there_and_take_what_they_are_given(driving: Wheel) -> None:
    names = exported(driving)
    assert set(CALLS) == set(npu.NAMES)
    for kernel, parameters in CALLS.items():
        module, name = npu.NAMES[kernel][0]
        assert module == "mx_driving" and name in names
        assert driving.function("mx_driving/__init__.py", name).positional == tuple(parameters.split()), name
        for older_module, older in npu.NAMES[kernel][1:]:
            file = older_module.replace(".", "/") + ".py"
            assert driving.function(file, older).takes(len(parameters.split())), older


def test_the_older_name_warns_and_the_older_module_too(driving: Wheel) -> None:
    """Which is why ops/npu.py does not touch them where the newer names exist."""
    assert "npu_multi_scale_deformable_attn_function" in exported(driving)
    attention = driving.text("mx_driving/ops/multi_scale_deformable_attn.py")
    assert "DeprecationWarning" in attention and "DeprecationWarning" in driving.text("mx_driving/fused.py")


def test_importing_it_redirects_cuda_and_asks_for_a_card(driving: Wheel) -> None:
    """Which is why ops/npu.py imports it late."""
    assert "from torch_npu.contrib import transfer_to_npu" in driving.text("mx_driving/__init__.py")
    asked = driving.tree("mx_driving/ops/modulated_deform_conv2d.py").body
    assert any("get_device_name(0)" in ast.unparse(node) for node in asked if isinstance(node, ast.Assign))


def test_the_convolution_takes_plain_numbers_and_drops_the_bias(driving: Wheel) -> None:
    file = "mx_driving/ops/modulated_deform_conv2d.py"
    forward = _body(driving, file, "ModulatedDeformConv2dFunction", "forward")
    for name in ("stride", "padding", "dilation"):
        assert f"ctx.{name} = _pair({name})" in forward
    assert "bias" not in forward.split("):", 1)[1].replace("deform", "")
    assert f"% {npu.CHANNEL_STEP} != 0" in forward and "weight.size(2) != 3" in forward


def test_max_pooling_has_no_gradient_and_refuses_unknown_chips(driving: Wheel) -> None:
    file = "mx_driving/ops/npu_max_pool2d.py"
    found = driving.defines(file, "MaxPool2d")
    assert found is not None and isinstance(found[1], ast.ClassDef)
    assert [node.name for node in found[1].body if isinstance(node, ast.FunctionDef)] == ["forward"]
    assert "NotImplementedError" in driving.text(file)


def test_add_relu_works_in_place_from_two_million_elements(driving: Wheel) -> None:
    assert "x.numel() >= 2000000" in driving.text("mx_driving/ops/npu_add_relu.py")


def _body(wheel: Wheel, path: str, kind: str, name: str) -> str:
    found = wheel.defines(path, kind)
    assert found is not None and isinstance(found[1], ast.ClassDef)
    return next(ast.unparse(n) for n in found[1].body if isinstance(n, ast.FunctionDef) and n.name == name)


# ---- torch_npu


def test_fused_adamw(torch_npu: Wheel) -> None:
    file = "torch_npu/optim/__init__.py"
    made = torch_npu.method(file, "NpuFusedAdamW", "__init__")
    assert made.positional[:5] == ("params", "lr", "betas", "eps", "weight_decay") and made.required == 1
    assert torch_npu.method(file, "NpuFusedAdamW", "step") == Signature(("closure",), 0)
    assert torch_npu.method(file, "NpuFusedAdamW", "zero_grad") == Signature(("set_to_none",), 0)
    assert torch_npu.method(file, "NpuFusedAdamW", "clip_grad_norm_fused_") == Signature(("max_norm", "norm_type"), 1)
    base = torch_npu.text("torch_npu/optim/npu_fused_optim_base.py")
    assert "set_to_none is not supported" in base and "if p.grad is None:" in base
    assert "state['step'] = 0" in torch_npu.text("torch_npu/optim/npu_fused_adamw.py")  # counted in Python


def test_the_runtime_has_what_device_py_asks_for(torch_npu: Wheel) -> None:
    file = "torch_npu/npu/__init__.py"
    names = (
        "is_available device_count set_device synchronize get_device_name is_bf16_supported set_compile_mode config "
        "matmul conv max_memory_allocated reset_peak_memory_stats get_rng_state set_rng_state"
    )
    for name in names.split():
        assert torch_npu.defines(file, name) is not None, name
    assert torch_npu.function(file, "set_compile_mode") == Signature(("jit_compile",), 0)
    for name in ("set_device", "synchronize", "get_device_name", "max_memory_allocated", "reset_peak_memory_stats"):
        assert torch_npu.function(file, name).takes(1), name
    assert torch_npu.function(file, "get_rng_state").takes(1) and torch_npu.function(file, "set_rng_state").takes(2)
    for name in ("is_available", "device_count", "is_bf16_supported"):
        assert torch_npu.function(file, name).takes(0), name


def test_settings(torch_npu: Wheel) -> None:
    """A setting that does not exist would be ignored without a word."""
    file = "torch_npu/npu/npu_config.py"
    init = torch_npu.text("torch_npu/npu/__init__.py")
    for name, kind, setting in (
        ("config", "_npuConfig", "allow_internal_format"),
        ("matmul", "_allowHF32Matmul", "allow_hf32"),
        ("conv", "_allowHF32Conv", "allow_hf32"),
    ):
        assert f"{name} = npu_config.{kind}()" in init
        assert f"name == '{setting}'" in _body(torch_npu, file, kind, "__setattr__")


def test_gradient_scaler(torch_npu: Wheel) -> None:
    made = torch_npu.method("torch_npu/npu/amp/__init__.py", "GradScaler", "__init__")
    assert made.positional[:4] == ("init_scale", "growth_factor", "backoff_factor", "growth_interval")
    assert made.required == 0
    for name in ("scale", "unscale_", "step", "update"):
        assert torch_npu.method("torch_npu/npu/amp/__init__.py", "GradScaler", name)


def test_profiler(torch_npu: Wheel) -> None:
    file = "torch_npu/profiler/__init__.py"
    order = torch_npu.function(file, "schedule").positional
    assert order[:4] == ("wait", "active", "warmup", "repeat")  # PyTorch's: wait, warmup, active
    given = torch_npu.method(file, "profile", "__init__").keyword_only
    assert {"activities", "schedule", "on_trace_ready"} <= set(given)
    assert torch_npu.function(file, "tensorboard_trace_handler").positional[0] == "dir_name"
    used = torch_npu.text("torch_npu/profiler/profiler_interface.py")
    assert "ProfilerActivity.CPU" in used and "ProfilerActivity.NPU" in used  # an enumeration of the C++ part
