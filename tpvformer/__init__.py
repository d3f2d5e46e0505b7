"""TPVFormer: car cameras to 3D semantics through three planes (Huang et al., CVPR 2023, arXiv:2302.07817)."""

__version__ = "0.1.0"
