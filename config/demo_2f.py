"""The demonstration with a past: points and boxes, from the frame before too.

command   tpvformer synth --out data/demo_2f --scenes 280 --frames 4 --size 224x128 --seed 1
          bash test/train_1p.sh --py_config=config/demo_2f.py
hardware  not run
time      not run
number    not run

Differs from config/demo_boxes.py in model.history, in its data, streets of four frames of which three have a past, and
in the number of epochs. It starts from the weights inside the package, which know no boxes and no past.
"""

from dataclasses import replace

from tpvformer.compat import load_config
from tpvformer.config import HistoryConfig

_boxes = load_config("config/demo_boxes.py")
_data = "data/demo_2f"
config = replace(
    _boxes,
    name="demo_2f",
    model=replace(_boxes.model, history=HistoryConfig()),
    data=replace(
        _boxes.data,
        root=_data,
        train_infos=f"{_data}/nuscenes_infos_train.pkl",
        val_infos=f"{_data}/nuscenes_infos_val.pkl",
    ),
    train=replace(_boxes.train, epochs=2),
)
