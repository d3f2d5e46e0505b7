"""The demonstration with a past: points and boxes, from the frame before too.

command   make config/demo_boxes.py's data and run first; then
          bash test/train_1p.sh --py_config=config/demo_2f.py
hardware  not run
time      not run
number    not run

Differs from config/demo_boxes.py in model.history, and in its start from that run's weights.
"""

from dataclasses import replace

from tpvformer.compat import load_config
from tpvformer.config import HistoryConfig

_boxes = load_config("config/demo_boxes.py")
config = replace(
    _boxes,
    name="demo_2f",
    model=replace(_boxes.model, history=HistoryConfig()),
    train=replace(_boxes.train, epochs=1, load_from="output/demo_boxes/best.pth"),
)
