"""Cameras of one's own: a JSON file that describes them and names their frames (docs/rig.md)."""
