"""A procedural street: its layout, its objects, and one ray caster that six cameras and a lidar share."""
