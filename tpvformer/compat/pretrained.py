"""Weights together with their configuration: the package's own, a saved folder, a work dir, a file, a hub's repository.

A saved folder has ``config.json``, ``model.safetensors`` and ``README.md``, the model card: text and tensors, no code.
The safetensors file contains the text of ``config.json`` as well, so that it can be used alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from tpvformer import __version__
from tpvformer.compat.checkpoints import FORMAT as RUN_FORMAT
from tpvformer.compat.checkpoints import Model
from tpvformer.compat.config_file import shipped
from tpvformer.compat.hub import download, is_hub_id
from tpvformer.compat.infer_config import infer_config
from tpvformer.compat.model_card import model_card
from tpvformer.compat.tensors import PathLike, read_archive, read_notes, write_tensors
from tpvformer.compat.wrappers import named_tensors
from tpvformer.config import Config, DataConfig, from_dict
from tpvformer.config.formats import BUILT_IN, formats
from tpvformer.errors import CheckpointError, ConfigError
from tpvformer.files import replacing
from tpvformer.untrusted.names import is_file_name
from tpvformer.untrusted.text import TextError, parse_json, parse_yaml

FORMAT = "tpvformer-model-1"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
EMBEDDED = ("demo", "demo_dense")  # the names of the weights inside the package
_RUN_FILES = ("best.pth", "latest.pth")  # of a work dir
RUN_CONFIG = "config.yaml"  # of a work dir
_PLACES = ("root", "train_infos", "val_infos", "test_infos", "occupancy_root", "image_cache")


class Pretrained(NamedTuple):
    """Weights and their configuration: ``content`` is for ``load_content``, ``source`` is its name in messages."""

    config: Config
    content: Dict[str, Any]
    source: str


def open_pretrained(source: PathLike, config: Optional[Config] = None, revision: Optional[str] = None) -> Pretrained:
    """Open weights with their configuration: a path, one of ``EMBEDDED`` or ``owner/name`` on the hub.

    ``config`` replaces the stored configuration. A path is a folder of ``save_pretrained`` or its safetensors file
    alone, the work dir of a run (its best.pth, else latest.pth), a run's checkpoint, or weights of the reference or of
    mmdetection3d's port; the configuration of the last two is inferred from their shapes where ``config`` is not given.
    Raises CheckpointError.
    """
    path = find_weights(source, revision)
    content = read_archive(path)
    if config is None:
        config = _stored(path, content) or infer_config(named_tensors(content, str(path)), str(path))
    return Pretrained(config, content, str(path))


def find_weights(source: PathLike, revision: Optional[str] = None) -> Path:
    """Return the weights file of a source that ``open_pretrained`` accepts; any other path is returned as it is.

    The strings of ``EMBEDDED`` name weights inside the package; ``./demo`` and ``Path("demo")`` are paths. Raises
    CheckpointError for a folder without weights, for a repository that cannot be downloaded, and for "demo" where the
    working directory has weights of that name, because either could be meant.
    """
    path = Path(source)
    if isinstance(source, str) and "://" in source:
        raise CheckpointError(f"{source}: is an address; download the file and name it, nothing is fetched from here")
    if not str(source).strip():
        raise CheckpointError("the weights' name is empty; name a file, a folder or the package's demo")
    if source in EMBEDDED:  # which no Path is
        return _inside(path)
    if isinstance(source, str) and not path.exists():
        _refuse_a_name(source)
    if not path.exists() and is_hub_id(str(source)):
        path = download(str(source), revision, (CONFIG, WEIGHTS))
    return _file_in(path) if path.is_dir() else path


def _refuse_a_name(source: str) -> None:
    """Raise CheckpointError for a name of a configuration, or another single word, that names no weights."""
    name = source[: -len(".py")] if source.endswith(".py") else source
    if name in shipped():
        raise CheckpointError(
            f"{source}: is the name of a configuration, of which this package has no weights; docs/configs.md says "
            f"where published ones come from, and TPVFormer({name!r}) makes fresh ones"
        )
    if not Path(source).suffix and not set(source) & set("/\\"):
        raise CheckpointError(
            f"{source}: is neither a file nor a folder here, nor the name of weights in this package "
            f"({', '.join(EMBEDDED)}); docs/python.md lists what can be opened"
        )


def embedded_file(name: str) -> Path:
    """Return the file of the weights inside the package that have a name of ``EMBEDDED``."""
    return Path(__file__).parents[1] / "weights" / f"{name}.safetensors"


def starting_weights(load_from: str) -> Path:
    """Return the weights file that ``train.load_from`` names: a file, a saved folder, a work dir, one of ``EMBEDDED``.

    A file need not exist. Raises CheckpointError for a folder without weights.
    """
    path = Path(load_from)
    if load_from in EMBEDDED and not path.exists():
        return embedded_file(load_from)
    return _file_in(path) if path.is_dir() else path


def config_of(path: Path) -> Config:
    """Return the configuration stored with a weights file or inferred from its shapes. Raises CheckpointError."""
    return _stored(path, {}) or open_pretrained(path).config


def save_folder(model: Model, config: Config, folder: Path, half: bool = False) -> None:
    """Write config.json, model.safetensors and README.md, each atomically. config.json has no paths of this machine.

    ``half`` stores the parameters as float16; they are read back as float32. Raises CheckpointError where the folder
    cannot be written, and where a number is too large for float16.
    """
    config = _without_places(config)
    tree = {"format": FORMAT, "version": __version__, "config": dataclasses.asdict(config)}
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if half:
        tensors.update(_halved(model))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(tree, indent=2) + "\n"
        write_tensors(tensors, folder / WEIGHTS, {CONFIG: text})
        _write(folder / CONFIG, text)
        _write(folder / CARD, model_card(config, sum(tensor.numel() for tensor in tensors.values())))
    except OSError as err:
        raise CheckpointError(f"{folder}: cannot be written ({err.strerror or err}); name another folder") from err


def _halved(model: Model) -> Dict[str, Tensor]:
    """Return the state dict with parameters as float16. Batch norm's statistics stay float32, because a variance may be
    outside of float16's range, 6e-8 to 65504."""
    halved = {name: parameter.detach().cpu().half() for name, parameter in model.named_parameters()}
    for name, tensor in halved.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} holds numbers that are no finite float16 (65504 at most); save it in full")
    return halved


def _inside(same: Path) -> Path:
    """Return the weights inside the package. Raises CheckpointError where the path ``same`` has weights, too."""
    if same.is_file() or (same.is_dir() and _found_in(same)):
        raise CheckpointError(
            f"{same}: is the name of weights inside this package, and there are weights called so here; write "
            f"./{same} for yours, or go to another folder for the package's"
        )
    return embedded_file(str(same))


def _file_in(folder: Path) -> Path:
    found = _found_in(folder)
    if found is None:
        names = ", ".join((WEIGHTS, *_RUN_FILES))
        expected = "expected a saved model or the work dir of a run"
        other = _newest_in(folder)
        if other is not None:
            expected += f"; it holds {other.name}: name that file, {other}"
        raise CheckpointError(f"{folder}: holds none of {names}; {expected}")
    return found


def _newest_in(folder: Path) -> Optional[Path]:
    """Return the checkpoint of a folder with the highest number in its name, such as epoch_24.pth; None without one."""

    def place(file: Path) -> Tuple[int, str]:
        numbers = re.findall(r"\d+", file.stem)
        return int(numbers[-1][:18]) if numbers else -1, file.name

    files = (file for suffix in (".pth", ".pt", ".safetensors") for file in folder.glob(f"*{suffix}"))
    return max((file for file in files if file.is_file() and not file.name.startswith(".")), key=place, default=None)


def _found_in(folder: Path) -> Optional[Path]:
    files = (folder / name for name in (WEIGHTS, *_RUN_FILES))
    return next((file for file in files if file.is_file()), None)


def _stored(path: Path, content: Dict[str, Any]) -> Optional[Config]:
    """Return the configuration beside or inside a weights file; None without one. Raises CheckpointError."""
    if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        return _read_config(path.parent / CONFIG)
    if path.suffix == ".safetensors":
        notes = read_notes(path)
        if CONFIG in notes:
            return _parsed(notes[CONFIG], f"{path}: its {CONFIG}")
    if content.get("format") != RUN_FORMAT or not isinstance(content.get("config"), dict):
        return None  # the configuration of another program
    config = _built(content["config"], str(path))
    run = path.parent / RUN_CONFIG
    if not run.is_file():
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **_read_places(read_run_config(run))))


def read_run_config(file: Path) -> Config:
    """Read the configuration in a run's work dir. Of its paths and addresses only local paths to read from are kept.

    Output paths and remote addresses must come from the user, not from a file. Raises ConfigError.
    """
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{file} cannot be read ({err.strerror}); a run writes it when it starts") from err
    except ValueError as err:  # TextError, or not UTF-8
        raise ConfigError(f"{file} is not YAML ({err}); a run writes it when it starts") from err
    try:
        config = from_dict(_of_known_format(tree) if isinstance(tree, dict) else tree)
    except ConfigError as err:
        raise ConfigError(f"{file}: {err}") from err
    remote = [name for name in _PLACES if "://" in getattr(config.data, name)]
    if remote:
        warnings.warn(
            f"{file}: data.{remote[0]} is on another machine, which is only asked where it is typed; add "
            f"--set data.{remote[0]}=URL",
            stacklevel=2,
        )
    bare = _without_places(config)
    return dataclasses.replace(bare, data=dataclasses.replace(bare.data, **_read_places(config)))


def _read_places(config: Config) -> Dict[str, str]:
    """Return the local paths of a configuration that data are read from, by field."""
    places = {name: getattr(config.data, name) for name in _PLACES if name != "image_cache"}
    return {name: value for name, value in places.items() if "://" not in value}


def _read_config(file: Path) -> Config:
    try:
        return _parsed(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as err:
        raise CheckpointError(f"{file}: cannot be read ({err}); restore the file") from err


def _parsed(text: str, source: str) -> Config:
    try:
        tree = parse_json(text)
    except TextError as err:
        raise CheckpointError(f"{source}: cannot be read ({err}); restore the file") from err
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or not isinstance(tree.get("config"), dict):
        raise CheckpointError(f'{source}: is not of the format "{FORMAT}"; expected what save_pretrained wrote')
    return _built(tree["config"], source)


def _built(tree: Dict[str, Any], source: str) -> Config:
    """Return the configuration of a tree stored with weights, without its paths, which only the user may choose."""
    try:
        return _without_places(from_dict(_of_known_format(tree)))
    except (ConfigError, TypeError) as err:
        raise CheckpointError(f"{source}: {err}; it was written by another version, or damaged") from err


def _of_known_format(tree: Dict[str, Any]) -> Dict[str, Any]:
    """Return a stored configuration with nuScenes' format if no data set of the stored name is registered here.

    Weights do not need the data set that they were trained on.
    """
    data = tree.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("format"), str) or data["format"] in formats():
        return tree
    return {**tree, "data": {**data, "format": BUILT_IN[0]}} if is_file_name(data["format"]) else tree


def _without_places(config: Config) -> Config:
    usual = DataConfig()
    data = dataclasses.replace(config.data, **{name: getattr(usual, name) for name in _PLACES})
    if not is_file_name(data.version):  # the name of a folder below data.root
        data = dataclasses.replace(data, version=usual.version)
    return dataclasses.replace(config, data=data, train=dataclasses.replace(config.train, load_from=None))


def _write(file: Path, text: str) -> None:
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")
