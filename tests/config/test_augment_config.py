"""The section of geometric augmentation: off by default, made by one of its fields, refused in one sentence."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from tpvformer.config import AugmentConfig, Config, from_dict, override
from tpvformer.errors import ConfigError


def test_it_is_left_out_unless_a_field_asks_for_it() -> None:
    assert Config("run").data.augment is None and not Config("run").data.class_balanced
    changed = override(Config("run"), ["data.augment.rotation=22.5", "data.augment.scale=[0.95,1.05]"])
    assert changed.data.augment == AugmentConfig(rotation=22.5, scale=(0.95, 1.05))
    assert from_dict(yaml.safe_load(changed.dump())) == changed
    assert override(changed, ["data.augment=null"]) == Config("run")


@pytest.mark.parametrize(
    "field, in_space, of_images",
    [
        ({}, False, False),
        ({"rotation": 1.0}, True, False),
        ({"scale": (1.0, 1.1)}, True, False),
        ({"flip_x": True}, True, False),
        ({"flip_y": True}, True, False),
        ({"image_resize": (0.9, 1.0)}, False, True),
        ({"image_flip": True}, False, True),
    ],
)
def test_what_a_setting_changes(field: dict, in_space: bool, of_images: bool) -> None:
    made = AugmentConfig(**field)
    assert (made.in_space, made.of_images) == (in_space, of_images)


@pytest.mark.parametrize(
    "text, message",
    [
        ("data.augment.rotation=-5", r"data\.augment\.rotation is -5\.0; expected at least 0"),
        ("data.augment.rotation=400", r"data\.augment\.rotation is 400\.0; expected 180 at most"),
        (
            "data.augment.scale=[1.05,0.95]",
            r"data\.augment\.scale is \(1\.05, 0\.95\); expected the least factor first",
        ),
        ("data.augment.scale=[1]", r"data\.augment\.scale is \(1\.0,\); expected 2 finite numbers"),
        ("data.augment.image_resize=[0,1]", r"data\.augment\.image_resize is \(0\.0, 1\.0\); expected numbers 0\.25"),
        ("data.augment.image_resize=[2,1]", r"image_resize is \(2\.0, 1\.0\); expected the least factor first"),
        ("data.augment.flip_z=true", "AugmentConfig has no field 'flip_z'; did you mean 'flip_y'|'flip_x'"),
        ("data.augment=3", "'augment' is a section"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        override(Config("run"), [text])
    assert "\n" not in str(caught.value)


def test_every_field_is_off_by_default() -> None:
    made = AugmentConfig()
    assert not made.in_space and not made.of_images
    assert dataclasses.asdict(made) == {
        "rotation": 0.0,
        "scale": (1.0, 1.0),
        "flip_x": False,
        "flip_y": False,
        "image_resize": (1.0, 1.0),
        "image_flip": False,
    }
