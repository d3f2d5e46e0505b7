"""What pyproject.toml cannot say: config/ is installed inside the package, where ``--py-config NAME`` looks for it."""

from setuptools import find_namespace_packages, setup

setup(
    # the two folders of files for OpenMMLab lie beside the package, in a checkout and in an installation
    packages=[*find_namespace_packages(include=["tpvformer*", "mmcv_need", "mmdet_need"]), "tpvformer.configs"],
    package_dir={"tpvformer.configs": "config"},
)
