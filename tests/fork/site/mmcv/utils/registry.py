class Registry:
    """Classes by name; ``build`` makes one from a dictionary with its ``type``."""

    def __init__(self, name):
        self.name, self.module_dict = name, {}

    def register_module(self, name=None, force=False, module=None):
        def register(cls):
            key = name or cls.__name__
            if not force and key in self.module_dict:
                raise KeyError(f"{key} is already registered in {self.name}")
            self.module_dict[key] = cls
            return cls

        return register if module is None else register(module)

    def build(self, cfg, **more):
        return build_from_cfg(cfg, self, more)


def build_from_cfg(cfg, registry, default_args=None):
    args = {**(default_args or {}), **cfg}
    kind = args.pop("type")
    if kind not in registry.module_dict:
        raise KeyError(f"{kind} is not in the {registry.name} registry")
    try:
        return registry.module_dict[kind](**args)
    except Exception as err:  # as mmcv 1.x: the same kind of error, with the name of the class before it
        raise type(err)(f"{kind}: {err}") from err
