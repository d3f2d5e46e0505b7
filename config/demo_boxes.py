"""The demonstration with 3-D boxes: a head for boxes learns beside the classes of points, from the demo's weights.

command   bash test/train_1p.sh --py_config=config/demo_boxes.py
hardware  not run
time      not run
number    not run

Differs from config/demo.py in the head, whose map has cells of half a metre, and in its start.
"""

from dataclasses import replace

from tpvformer.compat import load_config
from tpvformer.config import DetectionConfig

_demo = load_config("config/demo.py")
config = replace(
    _demo,
    name="demo_boxes",
    model=replace(_demo.model, detection=DetectionConfig(scale=2)),
    loss=replace(_demo.loss, detection=1.0),
    train=replace(_demo.train, load_from="demo"),
)
