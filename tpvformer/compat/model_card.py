"""The model card beside saved weights: what the model is and how to use it, without scores."""

from __future__ import annotations

from tpvformer.config import Config

_TEXT = """---
library_name: tpvformer
tags:
- semantic-occupancy
- lidar-segmentation
- autonomous-driving
---
# {name}

A TPVFormer (arXiv:2302.07817): images of up to {cameras} calibrated cameras to the class of every voxel around them.

```python
from tpvformer import TPVFormer

model = TPVFormer.from_pretrained("path-or-hub-id")
result = model.predict(images, "rig.json")  # images by camera name; docs/rig.md says what a rig file is
result.save("scene.npz")
```

| | |
| --- | --- |
| voxels (x, y, z) | {voxels} |
| range (m) | x {r[0]:g} to {r[3]:g}, y {r[1]:g} to {r[4]:g}, z {r[2]:g} to {r[5]:g}, {frame} frame |
| classes | {classes} |
| numbers stored | {numbers} |
| family | {family}, {dim} channels |
| planes | {planes} |

Trained on, scores and licence of the weights: to be filled in by whoever publishes them.
"""


def model_card(config: Config, numbers: int) -> str:
    """Return the model card in Markdown; ``numbers``: how many numbers the weights have."""
    model = config.model
    return _TEXT.format(
        name=config.name,
        cameras=model.num_cams,
        voxels=" x ".join(map(str, model.grid.shape)),
        r=model.grid.pc_range,
        frame={"lidar": "lidar", "ego": "vehicle"}[model.grid.frame],
        classes=", ".join(config.data.label_classes.names),
        numbers=f"{numbers:,}",
        family={"cross_view": "cross-view attention", "hw": "attention within the plane hw"}[model.view_attn],
        dim=model.dim,
        planes=", ".join(model.planes),
    )
