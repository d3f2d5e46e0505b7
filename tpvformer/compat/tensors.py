"""Files of tensors, read without running anything: PyTorch archives (new and pre-1.6 format) and safetensors."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from pathlib import Path
from typing import Any, ContextManager, Dict, Mapping, Optional, Union

import torch
from torch import Tensor

from tpvformer.compat.archive_check import check_archive, first_not_plain
from tpvformer.compat.errors import CheckpointError
from tpvformer.compat.seal import check_seal

PathLike = Union[str, "os.PathLike[str]"]

# What trainers store beside the weights and nothing here needs: best scores as NumPy scalars, arrays, and the curves
# that mmengine, mmdetection3d's trainer, keeps in each checkpoint.
_BESIDE_WEIGHTS = (
    *(f"numpy.{core}.multiarray.{part}" for core in ("core", "_core") for part in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
    "mmengine.logging.history_buffer.HistoryBuffer",
)


def read_archive(path: PathLike) -> Dict[str, Any]:
    """The dictionary a weights file holds, tensors on the CPU.

    A safetensors file (by its ending) is flat: name -> tensor. Raises CheckpointError where the file is missing, is no
    dictionary, does not match its seal, or holds anything but tensors and plain Python values; such a pickle is not
    executed.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; expected a checkpoint (.pth, .pt or .safetensors)")
    content: Any = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}; expected a dictionary of tensors")
    return content


def read_notes(path: PathLike) -> Dict[str, str]:
    """The texts that a safetensors file carries beside its tensors. Raises CheckpointError where it cannot be read."""
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as err:
        raise _no_safetensors(path, err) from err


def write_tensors(tensors: Mapping[str, Tensor], path: PathLike, notes: Optional[Mapping[str, str]] = None) -> None:
    """Write a flat state dict; ``.safetensors`` by its ending, which may carry ``notes``, else a PyTorch archive.

    Never leaves half a file.
    """
    file = Path(path)
    if not file.parent.is_dir():
        raise CheckpointError(f"{file}: the folder {file.parent} does not exist; create it first")
    partial = file.with_name(file.name + ".partial")
    if file.suffix == ".safetensors":
        from safetensors.torch import save_file

        ordered = {name: tensor.contiguous() for name, tensor in tensors.items()}
        partial.touch()
        usual = partial.stat().st_mode  # which the library would narrow to the owner alone
        save_file(ordered, str(partial), None if notes is None else dict(notes))
        partial.chmod(usual)
    else:
        torch.save(dict(tensors), str(partial))
    os.replace(partial, file)


def _read_safetensors(file: Path) -> Dict[str, Tensor]:
    from safetensors.torch import load_file  # here, because a machine that only measures may lack it

    try:
        return load_file(str(file))
    except Exception as err:
        raise _no_safetensors(file, err) from err


def _no_safetensors(path: PathLike, err: Exception) -> CheckpointError:
    """For any error, because the library raises a type of its own that it does not promise to keep."""
    return CheckpointError(f"{path}: not a readable safetensors file ({_first_line(err)})")


def _read_torch(file: Path) -> Any:
    check_seal(file)
    check_archive(file)
    try:
        with _others_as_nothing(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # PyTorch 2.1 says so of its own reading
            content = torch.load(str(file), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as err:  # damaged bytes end in KeyError, EOFError, RuntimeError, UnpicklingError and others
        text = str(err)
        culprit = re.search(r"(?:GLOBAL|[Uu]nsupported class|function) ([A-Za-z_]\w*(?:\.\w+)+)", text)
        if culprit:
            raise CheckpointError(
                f"{file}: refused, opening it would run {culprit.group(1)}; only tensors and plain values are taken, "
                "save it again as a plain state dict (torch.save of model.state_dict())"
            ) from err
        if "TorchScript" in text:
            raise CheckpointError(f"{file}: a TorchScript archive; expected a state dict of tensors") from err
        raise CheckpointError(
            f"{file}: not a readable PyTorch checkpoint of tensors; it is damaged, cut short or of another kind"
        ) from err
    strange = first_not_plain(content)
    if strange is not None:
        raise CheckpointError(
            f"{file}: refused, its entry {strange[:80]!r} is no dense tensor on the CPU; save it again"
        )
    return content


class _Nothing:
    """Stands where something stood that is not needed; keeps nothing of it."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _others_as_nothing() -> ContextManager[None]:
    """Read _BESIDE_WEIGHTS as ``_Nothing`` where PyTorch can be told to (2.6 on); older ones refuse the file."""
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        return contextlib.nullcontext()
    return torch.serialization.safe_globals([(_Nothing, name) for name in _BESIDE_WEIGHTS])


def _first_line(err: BaseException) -> str:
    return (str(err) or type(err).__name__).splitlines()[0]
