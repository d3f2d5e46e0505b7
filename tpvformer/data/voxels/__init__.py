"""Points to voxels."""
