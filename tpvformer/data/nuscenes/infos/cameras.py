"""Assign camera embeddings to images by the name of the camera, whatever the order in a record."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Dict, Iterable, List, Sequence, Tuple

if TYPE_CHECKING:
    from tpvformer.data.record import Record

# the order of the public info files, by which published models index their camera embeddings
CAMERA_ORDER = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")


def embeddings(names: Iterable[str]) -> Dict[str, int]:
    """Return the camera embedding of each name: nuScenes' six have fixed ones, others get the rest alphabetically."""
    there = set(names)
    slots = {name: slot for slot, name in enumerate(CAMERA_ORDER) if name in there}
    taken = set(slots.values())
    free = (slot for slot in count() if slot not in taken)
    return {**slots, **{name: next(free) for name in sorted(there.difference(slots))}}


def camera_slots(names: Sequence[str]) -> List[int]:
    """Return the camera embeddings in the order of ``names``."""
    slots = embeddings(names)
    return [slots[name] for name in names]


def by_name(records: Sequence[Record]) -> List[Record]:
    """Return the records of one file with their cameras in the order of their embeddings.

    A name has the same embedding in the whole file, so a record that lacks a camera does not shift the others.
    """
    slots = embeddings(name for record in records for name in record.camera_names)
    orders: Dict[Tuple[str, ...], List[int]] = {}
    made = []
    for record in records:
        names = record.camera_names
        if names not in orders:
            orders[names] = sorted(range(len(names)), key=lambda i: slots[names[i]])
        order = orders[names]
        taken = tuple(slots[names[i]] for i in order)
        if order != list(range(len(order))):
            record = replace(
                record,
                camera_names=tuple(names[i] for i in order),
                images=tuple(record.images[i] for i in order),
                lidar2img=record.lidar2img[order],
                sizes=tuple(record.sizes[i] for i in order) if record.sizes else (),
            )
        made.append(record if taken == tuple(range(len(taken))) else replace(record, slots=taken))
    return made


def given_to(records: Iterable[Record]) -> Dict[str, int]:
    """Return the embedding of each camera of the records, by name."""
    given: Dict[str, int] = {}
    for record in records:
        given.update(zip(record.camera_names, record.slots or range(len(record.camera_names))))
    return given


def other_letters(records: Sequence[Record]) -> str:
    """Return a warning about cameras with nuScenes' names in other capitalisation; "" where there are none."""
    given = given_to(records)
    found = [name for name in sorted(given) if name not in CAMERA_ORDER and name.upper() in CAMERA_ORDER]
    if not found:
        return ""
    listed = ", ".join(f"{name} {given[name]}" for name in found)
    return (
        f"names of cameras are compared letter by letter, so {found[0]} is not nuScenes' {found[0].upper()}; the "
        f"embeddings are given in alphabetical order: {listed}; for published weights write "
        "nuScenes' names (docs/rig.md)"
    )


def note_on(source: str, records: Sequence[Record]) -> str:
    """Return a note about cameras in an info file that are not nuScenes'; "" where there are none."""
    given = given_to(record for record in records if not record.rig)
    spelt = other_letters(records)
    if spelt:
        return f"{source}: {spelt}"
    own = sorted(set(given).difference(CAMERA_ORDER), key=lambda name: given[name])
    if not own:
        return ""
    listed = ", ".join(f"{name} {given[name]}" for name in own)
    return (
        f"{source}: cameras that are not nuScenes' take the embeddings left, in alphabetical order: {listed}; "
        "published weights expect each camera under nuScenes' name of the one that looks its way (docs/rig.md)"
    )
