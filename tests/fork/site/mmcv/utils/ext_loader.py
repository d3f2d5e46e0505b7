import importlib
import importlib.util


def load_ext(name, names):
    """The compiled module, of which every name that a file of mmcv may call must exist when the file is imported."""
    module = importlib.import_module("mmcv." + name)
    for function in names:
        assert hasattr(module, function), f"mmcv.{name} lacks {function}"
    return module


def check_ops_exist():
    spec = importlib.util.find_spec("mmcv._ext")
    return spec is not None and spec.loader is not None
