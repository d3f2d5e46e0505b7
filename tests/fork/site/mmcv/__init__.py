"""As much of mmcv 1.x as the fork of the tests imports: written for them, with mmcv's names and behaviour.

Its operations are in mmcv._ext, which is not here, as in an mmcv that was installed without a compiler.
"""

__version__ = "1.7.2"
