"""The path that `search.training.dense_model` had in 0.1, for code that imports it from here."""

from search.training.dense_model import DenseModel, build_model, dense_model

__all__ = ["DenseModel", "build_model", "dense_model"]
