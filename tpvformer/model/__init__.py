"""Define the model of both published families: images -> backbone -> neck -> encoder -> aggregator."""

from tpvformer.model.tpvformer import Prediction, TPVFormer

__all__ = ["Prediction", "TPVFormer"]
