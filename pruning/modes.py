"""Training and evaluation modes of the modules of a network."""

from __future__ import annotations

from torch import nn


def train_containers_(model: nn.Module) -> nn.Module:
    """Put modules that hold others into training mode, so that the model takes its training path, and the
    rest into eval mode, so that norms neither need a large batch nor learn from it."""
    for module in model.modules():
        module.training = next(module.children(), None) is not None
    return model
