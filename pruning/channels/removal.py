"""Removing output channels from a model; every removal must equal its mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pruning.channels.graph import check_fits
from pruning.channels.plan import RemovalPlan
from pruning.channels.structure import apply_structure
from pruning.copying import copy_model
from pruning.devices import device_of, forked_rng, read_at_once, wide
from pruning.memory import out_of_memory
from pruning.modules import model_tensors
from pruning.multiplications import eager
from pruning.outputs import map_tensors, tensors_in
from pruning.trees import NetworkInputs, run

TOLERANCE = 1e-4
"""Largest accepted difference between mask and removal, relative to the largest |output|."""
NOT_RUNNING = "the new network does not run"
HALF = (torch.float16, torch.bfloat16)


class RemovalMismatch(ValueError):
    """Removing the channels would not equal masking them; the message says by how much or why."""


def shrink(model: nn.Module, plan: RemovalPlan) -> nn.Module:
    """A new model without the plan's channels, checked against the mask on the plan's example input.

    Args:
        model: the traced model, or one of the same architecture with other weights; it is not changed.

    Raises:
        RemovalMismatch: in eval mode the outputs differ by more than 1e-4 of the largest |output|.
        ValueError: a model with other tensors than the traced one.
    """
    masked = mask_removed(model, plan)
    small = apply_structure(model, plan.structure)
    difference = output_difference(masked, copy_model(small), plan.graph.example_input)
    if difference is not None:
        raise RemovalMismatch(f"removal does not equal the mask: {difference}")
    return small


def mask_removed(model: nn.Module, plan: RemovalPlan) -> nn.Module:
    """A new model of dense shape in which everything of the removed channels is zero; statistics of norms are not
    changed.

    That is: the channel's weights, its bias, and a norm's scale and shift, also where these are buffers. Raises
    `ValueError` for a model with other tensors than the traced one.
    """
    check_fits(model, plan.graph.network)
    masked = copy_model(model)
    zero_removed_(model_tensors(masked), plan)
    return masked


def zero_removed_(tensors: Mapping[str, Tensor], plan: RemovalPlan) -> None:
    """Set everything of the removed channels to zero in tensors of dense shape, by their names in the traced model."""
    gone = [(name, dim, torch.nonzero(~stays).flatten()) for name, dim, stays in _staying_outputs(plan)]
    for (name, dim), owners in plan.graph.owners.items():
        if name in plan.graph.zeroed and dim in plan.structure.kept.get(name, {}):
            left = set(range(len(owners))) - set(plan.structure.kept[name][dim])
            gone.append((name, dim, torch.tensor(sorted(left))))
    with torch.no_grad():
        for name, dim, indices in gone:
            tensors[name].index_fill_(dim, indices.to(tensors[name].device), 0)


def removal_masks(plan: RemovalPlan) -> dict[str, Tensor]:
    """Parameter name -> bool mask of its dense shape, False where `mask_removed` sets it to zero."""
    shapes = {tensor.name: tensor.shape for tensor in plan.graph.network.tensors}
    masks = {}
    for name, dim, stays in _staying_outputs(plan):
        masks[name] = torch.zeros(shapes[name], dtype=torch.bool)
        masks[name].index_fill_(dim, torch.nonzero(stays).flatten(), True)
    return masks


def _staying_outputs(plan: RemovalPlan) -> Iterator[tuple[str, int, Tensor]]:
    """(parameter, its dimension of output channels, bool tensor of that length: stays), if it loses some."""
    network = plan.graph.network
    for tensor in network.tensors:
        dim = network.output_dim(tensor.name)
        kept = plan.structure.kept.get(tensor.name, {}).get(dim)
        if tensor.parameter and kept is not None:
            stays = torch.zeros(tensor.shape[dim], dtype=torch.bool)
            stays[list(kept)] = True
            yield tensor.name, dim, stays


def output_difference(first: nn.Module, second: nn.Module, example: NetworkInputs) -> str | None:
    """How the second model's outputs differ from the first's in eval mode, in one line; None if they agree.

    They agree within 1e-4 of the largest |output| of the first. Both models are put into eval mode. A lack of memory is
    raised, since it says nothing about the networks.
    """
    expected = outputs_of(first, example)
    try:
        actual = outputs_of(second, example)
    except Exception as error:
        raise_lack(error)
        return f"{NOT_RUNNING}, {one_line(error)}"
    return difference_of(expected, actual)


def difference_of(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> str | None:
    """How outputs differ from the expected ones, in one line; None if they agree within 1e-4 of the largest expected
    one.
    """
    if not expected:
        return "the network gives no tensors that could be compared"
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return "the shape of the network's outputs changes"
    pairs = zip(expected, actual, strict=True)
    found = read_at_once(one for wanted, got in pairs for one in (wanted.abs().max(), (wanted - got).abs().max()))
    for largest, error in zip(found[::2], found[1::2], strict=True):
        if not error <= TOLERANCE * largest:
            return f"outputs differ by {error:.2g}, the largest is {largest:.2g}"
    return None


def outputs_of(model: nn.Module, example: NetworkInputs, training: bool = False) -> list[Tensor]:
    """The nonempty output tensors as float64, computed in at least 32-bit precision; changes the mode of `model`."""
    model.train(training)
    if any(tensor.dtype in HALF for tensor in tensors_in(example)):
        model = model.float()
        example = map_tensors(example, lambda tensor: tensor.float() if tensor.dtype in HALF else tensor)
    device = device_of(model, example)
    exact = torch.backends.cudnn.flags(enabled=False)  # cuDNN may compute in TF32, too coarse for TOLERANCE
    with torch.no_grad(), forked_rng(device), exact, eager():
        return comparable(run(model, example.to(device)))


def comparable(output: object) -> list[Tensor]:
    """The nonempty tensors of an output as float64."""
    return [wide(tensor) for tensor in tensors_in(output) if tensor.numel()]


def raise_lack(error: Exception) -> None:
    """Raise an error again if it is a lack of memory, which says nothing about a removal."""
    if out_of_memory(error):
        raise error


def one_line(error: Exception) -> str:
    """An exception's type and the first line of its message."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line[:120]}"
