"""Configuration files and weights of the reference and of other programs: reading, converting and writing them."""

from tpvformer.compat.checkpoints import Report, export_reference, load_weights, save_reference
from tpvformer.compat.config_file import load_config
from tpvformer.errors import CheckpointError

__all__ = ["CheckpointError", "Report", "export_reference", "load_config", "load_weights", "save_reference"]
