"""The model, both families: images -> backbone -> neck -> encoder -> aggregator."""

from .tpvformer import Prediction, TPVFormer

__all__ = ["Prediction", "TPVFormer"]
