"""The neighbours of a layer: the BatchNorm that follows it, and the layers that read a group's channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.channels.graph import ChannelGraph
from pruning.modules import observed, prunable_weights
from pruning.outputs import tensors_in
from pruning.trees import NetworkInputs, run


def following_norms(model: nn.Module, example_input: NetworkInputs) -> dict[str, str]:
    """Layer -> name of the BatchNorm with a scale whose input is the layer's output, in one forward pass.

    A layer whose output goes through something else first, such as a sum or an activation that makes a new tensor, has
    none.
    """
    outputs: dict[int, tuple[str, Tensor]] = {}  # by identity; holding the tensors keeps identities unique
    found: dict[str, str] = {}

    def remember(layer: str, output: object) -> None:
        outputs.update({id(tensor): (layer, tensor) for tensor in tensors_in(output)})

    def meet(norm: str, inputs: tuple[object, ...]) -> None:
        if inputs and id(inputs[0]) in outputs:
            found[outputs[id(inputs[0])][0]] = norm

    with observed(model) as network, torch.no_grad():
        for layer in prunable_weights(network):
            module = network.get_submodule(layer.rpartition(".")[0])
            module.register_forward_hook(lambda _, __, output, layer=layer: remember(layer, output))
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm) and module.affine:
                module.register_forward_pre_hook(lambda _, inputs, name=name: meet(name, inputs))
        run(network, example_input)
    return found


def readers(graph: ChannelGraph, number: int) -> list[str]:
    """The layers with input columns that leave with units of this group, in the network's order."""
    places = ((layer.name, graph.owners.get((layer.name, layer.input_dim))) for layer in graph.network.prunable)
    return [name for name, owners in places if owners is not None and (owners[:, 0] == number).any()]


def columns_of(graph: ChannelGraph, number: int, reader: str, shape: tuple[int, ...]) -> Tensor:
    """For each column of the reader's weight (flattened, inputs second), the unit of this group that it leaves with, or
    -1.
    """
    owners = torch.from_numpy(graph.owners[reader, graph.network.by_name[reader].input_dim])
    units = torch.where(owners[:, 0] == number, owners[:, 1], -1)
    return units.repeat_interleave(torch.Size(shape[2:]).numel())
