"""Reading tensor files without running their code: PyTorch archives (new and pre-1.6 format) and safetensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Union

import torch
from torch import Tensor

from tpvformer.compat.archive_check import read_torch
from tpvformer.compat.archive_values import not_a_dictionary
from tpvformer.compat.checksum import check_seal
from tpvformer.compat.container import unpacked
from tpvformer.compat.mistaken import is_safetensors, mistaken_for_weights
from tpvformer.errors import CheckpointError
from tpvformer.files import replacing

PathLike = Union[str, "os.PathLike[str]"]


def read_archive(path: PathLike) -> Dict[str, Any]:
    """Read the dictionary in a weights file, with tensors on the CPU.

    A safetensors file (by its ending) is flat: name -> tensor. Objects beside the tensors become ``Inert``. Raises
    CheckpointError where the file is missing, is no dictionary, does not match its seal, or would run code if it were
    unpickled. No code of the file runs in any case.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; expected a checkpoint (.pth, .pt or .safetensors)")
    _refuse_mistaken(file)
    content: Any = _read_safetensors(file) if file.suffix == ".safetensors" else _read_sealed(file)
    strange = not_a_dictionary(content)
    if strange is not None:
        raise CheckpointError(f"{file}: {strange}")
    return dict(unpacked(content))


def read_notes(path: PathLike) -> Dict[str, str]:
    """Return the metadata of a safetensors file. Raises CheckpointError where it cannot be read."""
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as err:
        raise _no_safetensors(path, err) from err


def write_tensors(tensors: Mapping[str, Tensor], path: PathLike, notes: Optional[Mapping[str, str]] = None) -> None:
    """Write a flat state dict atomically: ``.safetensors``, with ``notes`` as metadata, or else a PyTorch archive."""
    file = Path(path)
    if not file.parent.is_dir():
        raise CheckpointError(f"{file}: the folder {file.parent} does not exist; create it first")
    with replacing(file) as partial:
        if file.suffix == ".safetensors":
            from safetensors.torch import save_file

            ordered = {name: tensor.contiguous() for name, tensor in tensors.items()}
            partial.touch()
            usual = partial.stat().st_mode  # the library would restrict it to the owner
            save_file(ordered, str(partial), None if notes is None else dict(notes))
            partial.chmod(usual)
        else:
            torch.save(dict(tensors), str(partial))


def _refuse_mistaken(file: Path) -> None:
    """Raise CheckpointError for a file that is not weights, and for one with the ending of another format."""
    try:
        other = mistaken_for_weights(file)
        tensors = is_safetensors(file)
        with file.open("rb") as opened:
            archive = opened.read(4) == b"PK\x03\x04"
    except OSError as err:
        raise CheckpointError(f"{file}: cannot be read ({err.strerror or err}); see to its permissions") from err
    if other is not None:
        raise CheckpointError(f"{file}: {other}")
    if file.suffix == ".safetensors" and archive:
        raise CheckpointError(f"{file}: is a PyTorch archive by its content; give it the ending .pth")
    if file.suffix != ".safetensors" and tensors:
        raise CheckpointError(f"{file}: is a safetensors file by its content; give it the ending .safetensors")


def _read_sealed(file: Path) -> Any:
    check_seal(file)
    return read_torch(file)


def _read_safetensors(file: Path) -> Dict[str, Tensor]:
    from safetensors.torch import load_file  # here, because it may be missing where only benchmarks run

    try:
        return load_file(str(file))
    except Exception as err:
        raise _no_safetensors(file, err) from err


def _no_safetensors(path: PathLike, err: Exception) -> CheckpointError:
    """Return the error for an unreadable file, from any exception: the library's own type is not a stable API."""
    return CheckpointError(f"{path}: not a readable safetensors file ({_first_line(err)})")


def _first_line(err: BaseException) -> str:
    return (str(err) or type(err).__name__).splitlines()[0]
