from .former import EditedFormer

__all__ = ["EditedFormer"]
