"""Which output channels belong together, and which of them can be removed.

The coupling is read from one followed pass (see `pruning.channels.coupling`). Every removal is compared with its mask
on the example input (see `pruning.channels.removal`), so that whatever a pass cannot show ends in a stated reason or a
`RemovalMismatch`, never in a wrong network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruning.channels.division import Traced
from pruning.channels.graph import NEVER_RUNS, ChannelGraph
from pruning.channels.removal import one_line
from pruning.channels.topology import following_norms
from pruning.copying import copy_model
from pruning.devices import device_of
from pruning.file.stored_form import foldable
from pruning.memory import out_of_memory
from pruning.modules import check_example, check_model, prunable_weights, train_containers_
from pruning.multiplications import Multiplications, count_multiplications, eager
from pruning.sparse_file import DTYPE_CODES
from pruning.trees import NetworkInputs, run
from pruning.unprunable import unprunable_weights
from pruning.unsupported import check_kind
from spaces.network import Layer, Network, StoredTensor

_KINDS = {
    nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d", nn.Linear: "linear",
    nn.ConvTranspose1d: "conv_transpose1d", nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}  # fmt: skip
_NOT_REACHED = "no operation takes its weight as it is"


def trace_channels(model: nn.Module, example_input: NetworkInputs) -> ChannelGraph:
    """Find the groups of output channels that can only be removed together, and try them out.

    Works on a copy in eval mode, so frozen and training models are fine too, and `model` is not changed. Groups that
    cannot lose channels, and layers outside any group, have an obstacle: the reason. Layers that run only in training
    mode (auxiliary heads) are followed too. About a quarter of all units is removed once and compared with the mask;
    groups that differ, or without which training fails, get an obstacle too.

    Args:
        example_input: a batch (N, ...) that the model accepts, or several inputs as `ModelInputs`; on any device.

    Raises:
        ValueError: not a model, an example input that is not a tensor, is empty or not finite, or on which the model
            does not run, or a model that cannot be stored or followed (see `pruning.unsupported.check_kind`).
        MemoryError, torch.OutOfMemoryError, RuntimeError: there is too little memory.
    """
    check_model(model)
    check_example(example_input)
    check_kind(model)
    with torch.inference_mode(False), eager():
        example = example_input.detach().clone().to(device_of(model, example_input))
        trial = copy_model(model).eval()
        try:
            calls, counted = _observe(trial, example)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise ValueError(f"the model does not run on the example input: {one_line(error)}") from error
        bare = _bare_network(trial, calls, counted)
        all_run = all(layer.positions for layer in bare.prunable)
        training_calls = Counter() if all_run else _observe_training(trial, example)
        norms = following_norms(trial, example)
        return Traced(trial, bare, example, norms, calls, training_calls).graph()


def _observe(model: nn.Module, example: NetworkInputs) -> tuple[Counter[nn.Module], Multiplications]:
    """How often each module runs in one forward pass, and what is multiplied in it."""
    with _counted_calls(model) as calls, torch.random.fork_rng(devices=[]):
        return calls, count_multiplications(model, example)


def _observe_training(model: nn.Module, example: NetworkInputs) -> Counter[nn.Module]:
    """How often each module runs when the model takes its training path; empty if it fails there."""
    with _counted_calls(model) as calls, torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            run(train_containers_(model), example)
        except Exception as error:
            if out_of_memory(error):
                raise
            return Counter()
        return calls


@contextmanager
def _counted_calls(model: nn.Module) -> Iterator[Counter[nn.Module]]:
    calls: Counter[nn.Module] = Counter()
    hooks = [m.register_forward_hook(lambda module, *_: calls.update([module])) for m in model.modules()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _bare_network(model: nn.Module, calls: Mapping[nn.Module, int], counted: Multiplications) -> Network:
    """Tensors and layers without groups; every layer has the obstacle of being in none."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tensors: list[StoredTensor] = []
    aliases: dict[str, str] = {}
    first_names: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        first = first_names.setdefault(_storage(tensor), name) if tensor.numel() else name
        if first != name:
            aliases[name] = first
        elif tensor.dtype not in DTYPE_CODES:
            raise ValueError(f"tensor {name!r} has type {tensor.dtype}, which model files here cannot hold")
        else:
            tensors.append(StoredTensor(name, tuple(tensor.shape), DTYPE_CODES[tensor.dtype], name in parameters))
    layers = []
    for name, weight in prunable_weights(model).items():
        module = model.get_submodule(name.rpartition(".")[0])
        kind = next(word for cls, word in _KINDS.items() if isinstance(module, cls))
        obstacle = _NOT_REACHED if calls[module] else NEVER_RUNS
        shape, groups = tuple(weight.shape), getattr(module, "groups", 1)
        layers.append(Layer(name, kind, shape, counted.positions.get(name, 0), groups, obstacle=obstacle))
    layers += unprunable_weights(model, counted.positions)
    unlisted = counted.positions.keys() - {layer.name for layer in layers}
    others = counted.others + sum(counted.positions[name] * model.get_parameter(name).numel() for name in unlisted)
    norms = tuple(foldable(model))
    return Network(tuple(tensors), tuple(layers), (), aliases, others, counted.uncounted, norms)


def _storage(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
