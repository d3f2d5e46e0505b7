from . import ext_loader
from .registry import Registry, build_from_cfg

__all__ = ["Registry", "build_from_cfg", "ext_loader"]
