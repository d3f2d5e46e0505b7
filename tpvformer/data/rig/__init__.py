"""Read rig files: JSON that describes cameras and lists their frames (docs/rig.md)."""
