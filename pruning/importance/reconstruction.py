"""Channels chosen by the output of the layer that reads them, and that layer refitted once they are gone.

ThiNet (arXiv 1707.06342): remove greedily the input channels of the next layer whose joint contribution to its output
on calibration data is smallest, then solve for the weights of those that stay.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from pruning.calibration import Calibration
from pruning.channels.graph import ChannelGraph
from pruning.channels.plan import RemovalPlan
from pruning.channels.topology import columns_of, readers
from pruning.copying import copy_model
from pruning.devices import wide
from pruning.importance.activations import Patches, observe_inputs
from pruning.importance.weights import NotFiniteError
from pruning.modules import Prunable

OUTPUTS_A_BATCH = 1024
"""Output values of the next layer looked at in each batch, drawn from all of its channels and positions."""
REFIT_ROWS = 2048
"""Output positions a refit is solved on at most."""
RIDGE = 1e-3
"""Weight of the distance to the weights before the refit, over the mean square of what they multiply."""


def reconstruction_obstacle(graph: ChannelGraph, number: int) -> str | None:
    """Why the group's removal has no single next layer to be measured at; None if it has."""
    found = readers(graph, number)
    if len(found) != 1:
        return f"criterion 'reconstruction' needs one layer that reads its channels, found {len(found)}"
    if graph.network.by_name[found[0]].convolution_groups > 1:
        return f"criterion 'reconstruction' needs a next layer in one group, and {found[0]!r} is grouped"
    if graph.network.by_name[found[0]].output_dim:
        return f"criterion 'reconstruction' needs a plain next layer, and {found[0]!r} is a transposed convolution"
    return None


class Reconstruction:
    """What the channels of each group the criterion is defined for add to the next layer's outputs on calibration data.

    Of more than `OUTPUTS_A_BATCH` output values in a batch that many are drawn.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, calibration: Calibration) -> None:
        self._grams = {number: _Gram(model, graph, number) for number in _defined_groups(graph)}

        def see(reader: str, module: Prunable, inputs: Tensor) -> None:
            for gram in self._grams.values():
                if gram.reader == reader:  # several groups, where it reads their concatenation
                    gram.add(module, inputs)

        observe_inputs(model, {gram.reader for gram in self._grams.values()}, calibration, see)

    @cached_property
    def orders(self) -> dict[int, np.ndarray]:
        """Scores (units,) of every group, by its number: 1 for the unit that goes first.

        Greedy: each step removes the unit with which the removed units together add least, in squares, to the next
        layer's outputs; ties by lowest index.

        Raises:
            NotFiniteError: the next layer's outputs hold NaN or infinite values (it is named).
        """
        return {number: gram.greedy() for number, gram in self._grams.items()}

    def unseen(self) -> dict[int, str]:
        """Number of each group whose channels add nothing to the next layer -> why it stays unpruned."""
        reason = "criterion 'reconstruction' found in the calibration data that its channels add nothing to {!r}"
        return {number: reason.format(gram.reader) for number, gram in self._grams.items() if gram.empty}


def _defined_groups(graph: ChannelGraph) -> list[int]:
    groups = enumerate(graph.network.groups)
    return [number for number, group in groups if not group.obstacle and not reconstruction_obstacle(graph, number)]


class _Gram:
    """Products of what a group's units add to the next layer's outputs, summed over outputs: (units, units)."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, number: int) -> None:
        self.reader = readers(graph, number)[0]
        self._units = columns_of(graph, number, self.reader, tuple(model.get_parameter(self.reader).shape))
        self._generator = torch.Generator().manual_seed(number)
        count = graph.network.groups[number].units
        self._sums = torch.zeros(count, count, dtype=torch.float64)

    def add(self, module: Prunable, inputs: Tensor) -> None:
        added = _contributions(module, inputs, self._units, len(self._sums), self._generator)
        self._sums += added.T @ added

    @property
    def empty(self) -> bool:
        return not self._sums.any()

    def greedy(self) -> np.ndarray:
        if not torch.isfinite(self._sums).all():
            raise NotFiniteError(f"{self.reader}: its outputs are NaN or infinite, so nothing can be ranked by them")
        return _greedy(self._sums.numpy())


def _contributions(module: Prunable, inputs: Tensor, units: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """What each unit adds to sampled output values: (values, units)."""
    patches, weight = Patches(module, inputs), module.weight.detach().flatten(1)
    every = patches.count * len(weight)
    drawn = torch.arange(every)
    if every > OUTPUTS_A_BATCH:
        drawn = torch.randint(every, (OUTPUTS_A_BATCH,), generator=generator)
    products = (patches.rows(drawn // len(weight)) * weight[drawn % len(weight)]).cpu().double()
    mine = units >= 0
    return torch.zeros(len(drawn), count, dtype=torch.float64).index_add_(1, units[mine], products[:, mine])


def _greedy(gram: np.ndarray) -> np.ndarray:
    """Place (from 1) of each unit in the order that adds least to the squared sum of those removed."""
    places, with_removed = np.zeros(len(gram)), np.zeros(len(gram))
    for place in range(1, len(gram) + 1):
        added = np.where(places == 0, gram.diagonal() + 2 * with_removed, np.inf)
        chosen = int(np.argmin(added))
        places[chosen] = place
        with_removed += gram[chosen]
    return places


def refit_next_layers(dense: nn.Module, small: nn.Module, plan: RemovalPlan, calibration: Calibration) -> nn.Module:
    """A new model like `small` whose next layers give the outputs of `dense` again as well as they can.

    For every layer that lost input columns of a group it alone reads, in the network's order: ridge least squares
    from what it takes in now to the outputs it had, on calibration data; biases stay.

    Args:
        dense: the model before the removal.
        small: `dense` after `shrink` by `plan`.
        plan: what was removed.
    """
    fitted = copy_model(small)
    for reader in _readers_that_lost(plan):
        rows = plan.structure.kept[reader].get(0)
        kept = slice(None) if rows is None else torch.tensor(rows)
        before, now = (_rows(model, reader, calibration) for model in (dense, fitted))
        weight = fitted.get_parameter(reader)
        wanted = before @ wide(dense.get_parameter(reader).detach().flatten(1))[kept].T
        with torch.no_grad():
            weight.copy_(_ridge(now, wanted, wide(weight.flatten(1))).reshape(weight.shape))
    return fitted


def _readers_that_lost(plan: RemovalPlan) -> list[str]:
    graph, kept = plan.graph, plan.structure.kept
    alone = {readers(graph, number)[0] for number in _defined_groups(graph)}
    return [layer.name for layer in graph.network.prunable if layer.name in alone and 1 in kept.get(layer.name, {})]


def _rows(model: nn.Module, reader: str, calibration: Calibration) -> Tensor:
    """Rows of the reader's patches over all batches (float64), the same places for every model of one architecture."""
    share = -(-REFIT_ROWS // len(list(calibration.batches())))
    generator, rows = torch.Generator().manual_seed(0), []

    def see(_: str, module: Prunable, inputs: Tensor) -> None:
        patches = Patches(module, inputs)
        numbers = torch.arange(patches.count)
        if patches.count > share:
            numbers = torch.randperm(patches.count, generator=generator)[:share]
        rows.append(wide(patches.rows(numbers)))

    observe_inputs(model, [reader], calibration, see)
    return torch.cat(rows)


def _ridge(inputs: Tensor, outputs: Tensor, start: Tensor) -> Tensor:
    """The weights (outputs, columns) that minimise |inputs W^T - outputs|^2 + ridge |W - start|^2.

    Args:
        inputs: (rows, columns).
        outputs: (rows, outputs).
        start: (outputs, columns).
    """
    rows, columns = inputs.shape
    missing = outputs - inputs @ start.T
    ridge = RIDGE * float(inputs.square().sum()) / columns
    if ridge == 0:
        return start
    small = inputs.T @ inputs if columns <= rows else inputs @ inputs.T
    small.diagonal().add_(ridge)
    if columns <= rows:
        return start + torch.linalg.solve(small, inputs.T @ missing).T
    return start + (inputs.T @ torch.linalg.solve(small, missing)).T
