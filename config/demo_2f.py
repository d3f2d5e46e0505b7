"""The demonstration with a past: points and boxes, from the frame before too.

command   tpvformer synth --out data/demo_2f --scenes 280 --frames 4 --size 224x128 --seed 1
          bash test/train_1p.sh --py_config=config/demo_2f.py
hardware  one thread of an AMD EPYC with AVX2 a run, four runs and other work on two hyperthreads
time      not run alone
number    in fp32, two seeds, on 116 frames of 29 unseen streets: 79.4 and 78.5 % point mIoU, 6.4 and 6.2 % flicker,
          32.3 and 31.5 % mAP; without a past, at the same steps: 77.4 and 77.0, 8.2 and 7.9, 29.7 and 29.1. With the
          first form of the comparison of two frames; controls, and what is not reached: docs/time.md "Measured"

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
