"""Which of torchvision's classifiers a state dict is of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
LIKE = 0.5
"""Networks whose number of parameters differs by a larger share are not looked at; that much may be in an output layer.
"""
ENOUGH = 0.9
"""Share of the tensors that have to agree in name and shape."""


def nearest_network(state: Mapping[str, Tensor]) -> str | None:
    """The network whose tensors, but for those of its output layer, have these names and shapes; None if there is none.

    No weights are made for it. RegNets are not recognised, as they cannot be built without.
    """
    from search.networks import torchvision_networks as library  # only a refusal needs it

    held = sum(tensor.numel() for name, tensor in state.items() if name.rpartition(".")[2] not in BUFFERS)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    best, found = ENOUGH, None
    for name in library.classifiers():
        if abs(library.published_parameters(name) - held) > LIKE * library.published_parameters(name):
            continue
        classes, shape = library.own_task(name)
        try:
            with torch.device("meta"):
                own = library.build(name, classes, shape).state_dict()
        except NotImplementedError:
            continue
        equal = sum(shapes.get(key) == tuple(tensor.shape) for key, tensor in own.items())
        if (share := equal / max(len(own), len(shapes))) > best:
            best, found = share, f"{library.SOURCE}:{name}"
    return found
