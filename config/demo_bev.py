"""The demonstration with the plane hw alone: a bird's-eye view, to see what the other two planes add.

command   make demo first, for its data; then bash test/train_1p.sh --py_config=config/demo_bev.py
hardware  2 CPU cores
time      not run
number    not run
"""

import dataclasses

from tpvformer.compat import load_config

_tpv = load_config("config/demo.py")
config = dataclasses.replace(
    _tpv,
    name="demo_bev",
    model=dataclasses.replace(_tpv.model, planes=("hw",), view_attn="hw", position_dims=(16, 16)),
)
