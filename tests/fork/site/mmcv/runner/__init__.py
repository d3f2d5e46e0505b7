import functools

import torch
import torchvision  # of which only the name and the version are looked at
from torch import nn

assert torchvision.__version__


class BaseModule(nn.Module):
    """A module that keeps how it is to be initialised, and does it when asked."""

    def __init__(self, init_cfg=None):
        super().__init__()
        self.init_cfg = init_cfg
        self._is_init = False

    @property
    def is_init(self):
        return self._is_init

    def init_weights(self):
        self._is_init = True
        for child in self.children():
            if hasattr(child, "init_weights"):
                child.init_weights()


def auto_fp16(apply_to=None, out_fp32=False):
    """Half precision inside a method, where the object's ``fp16_enabled`` is true; it is false unless switched on."""

    def decorate(method):
        @functools.wraps(method)
        def run(self, *args, **kwargs):
            if not getattr(self, "fp16_enabled", False):
                return method(self, *args, **kwargs)
            with torch.autocast("cpu", torch.bfloat16):
                return method(self, *args, **kwargs)

        return run

    return decorate
