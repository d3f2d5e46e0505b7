"""What others made: configuration files and weights, in and out."""

from tpvformer.compat.checkpoints import Report, export_reference, load_weights, save_reference
from tpvformer.compat.config_file import load_config
from tpvformer.errors import CheckpointError

__all__ = ["CheckpointError", "Report", "export_reference", "load_config", "load_weights", "save_reference"]
