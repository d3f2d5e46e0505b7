"""A procedural street: layout, objects, and one ray caster for six cameras and a lidar."""
