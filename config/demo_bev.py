"""The demonstration with the plane hw alone, a bird's-eye view, to measure what the other two planes add.

command   make demo first, for its data; then bash test/train_1p.sh --py_config=config/demo_bev.py
hardware  2 cores of an Intel Xeon, shared with other work, for the most part with OMP_NUM_THREADS=1
time      25 min, of them 17 min 26 s after a stop and resumption; not run on idle cores
number    of the demonstration's recipe before 2026-11-29, not run with the present one (benchmarks/results):
          46.0 % point mIoU on the demonstration's 89 unseen scenes (44.4 to 47.6 over scenes), 10.1 with the cameras
          exchanged; config/demo.py on the same machine and data: 53.2 (51.4 to 54.7). One run each, bf16. About half of
          the difference comes from the planes: with --set model.planes=[hw,zh,wz], which keeps hw's attention, 49.6
          (48.0 to 51.1). The other half comes from cross-view attention, which one plane cannot have
"""

import dataclasses

from tpvformer.compat import load_config

_tpv = load_config("config/demo.py")
config = dataclasses.replace(
    _tpv,
    name="demo_bev",
    model=dataclasses.replace(_tpv.model, planes=("hw",), view_attn="hw", position_dims=(16, 16)),
)
