"""Moved to `search.training.dense_model`; kept for old imports."""

from search.training.dense_model import DenseModel, build_model, dense_model

__all__ = ["DenseModel", "build_model", "dense_model"]
