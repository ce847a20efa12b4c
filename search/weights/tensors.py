"""What of a network's state is numbers."""

from __future__ import annotations

from torch import Tensor, nn


def tensors_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors of a state dict, without its other entries."""
    return [(name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor)]
