"""Which units go first: one model, one criterion, and whatever it looks at, ready to be asked.

Whoever needs an order of units asks `ImportanceScores`; what a criterion needs (weights, neighbouring layers,
calibration data) is known here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.calibration import Calibration
from pruning.channels.graph import ChannelGraph, leave_whole, refuse_groups
from pruning.channels.topology import columns_of, readers
from pruning.devices import back, fetched, wide
from pruning.importance.activations import activation_scores
from pruning.importance.gradients import obd_fisher, obd_hutchinson, taylor_products, taylor_squares
from pruning.importance.own_criteria import own_function
from pruning.importance.reconstruction import Reconstruction, reconstruction_obstacle
from pruning.importance.weights import (
    SUMS_OF_ELEMENTS,
    are_finite,
    checked_scores,
    element_scores,
    in_32_bits,
    scores_of_finite,
    spread,
    unit_sums,
    zeros_first,
)
from pruning.modules import inputs_of_weights, module_of, observed, output_dim, prunable_weights
from pruning.units import unit_scores, units
from spaces.allocation.histogram import ScoreHistogram, UnitScores
from spaces.criteria import check_criterion, criterion_word
from spaces.granularity import obstacle_to, pattern_of
from spaces.validation import unknown

_OF_PARAMETERS = {
    "taylor": taylor_squares,
    "taylor-group": taylor_products,
    "obd-fisher": obd_fisher,
    "obd-hutchinson": obd_hutchinson,
}
"""Criteria with terms of every parameter, (batches, *shape): a channel's bias and norm count with its weights."""
_OF_NEIGHBOURS = ("bn-scale", "next-layer", "reconstruction")
"""Criteria that look at the layers next to a channel group, and are not defined for every group."""
MOST_SORTED = 2**24
"""Units of a network that allocators compare one by one; of more, 17 million, they compare histograms."""
PIECE = 2**21
"""Weights counted at once, so that no layer's scores are in memory as a whole."""


class ImportanceScores:
    """The scores of a model's units by one criterion; larger is kept.

    Args:
        model: stays as it is (BatchNorm statistics, training flags and gradients too), and must not change
            while this is in use.
        criterion: a word of `spaces.criteria`, or one of the user's own.
        graph: the model's traced channel groups; `group` needs them.
        calibration: what data-driven criteria look at.
        seed: of `random`.

    Attributes:
        criterion: its word.
        model: as given.

    Raises:
        ValueError: an unknown or unregistered criterion, or a data-driven one without calibration data.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: str,
        graph: ChannelGraph | None = None,
        calibration: Calibration | None = None,
        seed: int = 0,
    ) -> None:
        self.criterion = check_criterion(criterion)
        self.model, self._graph, self._calibration, self._seed = model, graph, calibration, seed
        self._weights = prunable_weights(model)
        self._numbers = {name: number for number, name in enumerate(self._weights)}
        self._own = own_function(self.criterion)
        self._needs_data = criterion_word(self.criterion).needs_data
        if self._needs_data and calibration is None:
            raise ValueError(
                f"criterion {self.criterion!r} looks at calibration data: "
                "give calibration=pruning.Calibration(inputs, targets, loss)"
            )

    def elements(self, name: str, granularity: str) -> Tensor:
        """Scores of a layer's elements, of its weight's shape; a unit's score is their sum.

        Raises:
            ValueError: a criterion of channel groups, NaN or infinite weights or scores, or scores of the
                user's own function that are none.
        """
        if name not in self._weights:
            raise ValueError(unknown("layer", name, self._weights))
        check_criterion(self.criterion, [granularity])
        if self.criterion in _OF_NEIGHBOURS:
            raise ValueError(f"criterion {self.criterion!r} scores channel groups: give an example_input, or a graph")
        weight = self._weights[name]
        if not self._needs_data:
            generator = torch.Generator().manual_seed(self._seed + self._numbers[name])
            if self._known_finite and self._own is None:
                return scores_of_finite(in_32_bits(weight), self.criterion, generator, granularity)
            return element_scores(weight, self.criterion, generator, granularity)
        element_scores(weight, "magnitude-l1")  # refuses weights that are not finite
        terms = self._terms(name)
        if not terms.any():  # nothing is known of it any more: what went before goes on to go first
            return element_scores(weight, "magnitude-l1")
        if self.criterion == "taylor-group":
            dim = output_dim(module_of(self.model, name)) if granularity == "channel" else 0
            of_batches = (unit_sums(wide(of_batch).movedim(dim, 0), granularity) for of_batch in terms)
            units = back(reduce(add, (sums.square() for sums in of_batches)), weight)
            units = checked_scores(units, self.criterion, units.shape)
            return spread(units, weight.detach().movedim(dim, 0), granularity).movedim(0, dim)
        return zeros_first(checked_scores(terms.sum(0), self.criterion, weight.shape), weight.detach())

    def group(self, number: int) -> np.ndarray:
        """Scores (units,) of the channel group with this number.

        Mean over the group's layers of the layer's unit score over that layer's mean; a layer of zeros adds 0.
        A layer's unit score is the sum of its element scores (for `magnitude-l2` the root of it) over all channels
        that the unit has there, several where a convolution is grouped; with derivatives also those of its bias and
        of the BatchNorm that follows it. `next-layer` takes the mean over the layers that read the group instead;
        `reconstruction` has scores of the whole group.

        Raises:
            ValueError: the criterion is not defined for the group (the reason is named), NaN or infinite
                weights (layer named) or scores.
        """
        group = self.graph.network.groups[number]
        if reason := self.obstacle(number):
            raise ValueError(f"{group.layers[0]}: {reason}")
        check_criterion(self.criterion, ["channel"])
        if self.criterion == "reconstruction":
            scores = self._reconstruction.orders[number]
        elif self.criterion == "next-layer":
            scores = _mean_over_layers([self._slice_norms(number, reader) for reader in readers(self.graph, number)])
        else:
            generator = torch.Generator().manual_seed(self._seed + number)  # the same at every step of a ramp
            scores = _mean_over_layers([self._of_layer(name, group.units, generator) for name in group.layers])
            if self._needs_data and not scores.any():  # nothing is known of it any more
                scores = ImportanceScores(self.model, "magnitude-l2", self._graph).group(number)
        if not np.isfinite(scores).all():
            checked_scores(torch.from_numpy(scores), self.criterion, torch.Size(scores.shape))
        return scores if self.criterion in SUMS_OF_ELEMENTS else self._zeros_first(number, scores)

    def unseen(self) -> dict[str, str]:
        """Layers a data-driven criterion found nothing about: their weights are not all 0, but their scores are."""
        if not self._needs_data or self.criterion in _OF_NEIGHBOURS:
            return {}
        reason = f"criterion {self.criterion!r} found nothing in the calibration data to score it by"
        unseen = (name for name, weight in self._weights.items() if weight.any() and not self._terms(name).any())
        return dict.fromkeys(unseen, reason)

    def obstacle(self, number: int) -> str | None:
        """Why the criterion is not defined for this channel group; None if it is."""
        return _obstacle(self.criterion, self.graph, number)

    @cached_property
    def restricted_graph(self) -> ChannelGraph:
        """The graph in which what cannot be scored stays unpruned and says why: channel groups the criterion is not
        defined for, and what a data-driven one found nothing about.

        Raises:
            ValueError: no graph was given, or scores of the user's own function that are none.
        """
        graph = defined_groups(self.graph, self.criterion)
        if not self._needs_data:
            return graph
        if self.criterion == "reconstruction":
            return refuse_groups(graph, self._reconstruction.unseen())
        return leave_whole(graph, self.unseen())

    @property
    def graph(self) -> ChannelGraph:
        """As given.

        Raises:
            ValueError: none was.
        """
        if self._graph is None:
            raise ValueError(
                "channel groups are known from a graph only: give graph=pruning.trace_channels(model, example)"
            )
        return self._graph

    @property
    def calibration(self) -> Calibration:
        """As given.

        Raises:
            ValueError: none was.
        """
        if self._calibration is None:
            raise ValueError("no calibration data: give calibration=pruning.Calibration(inputs, targets, loss)")
        return self._calibration

    @cached_property
    def _on_cpu(self) -> dict[str, Tensor]:
        """The parameters on the CPU, where scores of channel groups are worked out; fetched at once."""
        return fetched(dict(self.model.named_parameters(remove_duplicate=False)))

    @cached_property
    def _known_finite(self) -> bool:
        """Whether all weights were found to be finite in one look; on a CPU each is looked at by itself."""
        weights = list(self._weights.values())
        if all(weight.device.type == "cpu" for weight in weights):
            return False
        fetched_already = "_on_cpu" in vars(self)
        return are_finite([self._on_cpu[name] for name in self._weights] if fetched_already else weights)

    @cached_property
    def _reconstruction(self) -> Reconstruction:
        return Reconstruction(self.model, self.graph, self.calibration)

    @cached_property
    def _of_data(self) -> Any:
        """Layer -> scores; of a criterion of the user's own, whatever it gives."""
        if self.criterion in _OF_PARAMETERS:
            return _OF_PARAMETERS[self.criterion](self.model, self.calibration)
        if self.criterion == "activation":
            return activation_scores(self.model, self.calibration)
        assert self._own is not None, "all other criteria that need data are the user's own"
        with observed(self.model) as network:
            return self._own(network, self.calibration)

    def _terms(self, name: str) -> Tensor:
        """What the criterion found in calibration data: (batches, *shape of the weight)."""
        if self.criterion in _OF_PARAMETERS:
            return self._of_data[name]
        if not isinstance(self._of_data, Mapping) or name not in self._of_data:
            raise ValueError(f"criterion {self.criterion!r} gave no scores for layer {name!r}: it must for every layer")
        return checked_scores(self._of_data[name], self.criterion, self._weights[name].shape)[None]

    def _of_layer(self, name: str, count: int, generator: torch.Generator) -> np.ndarray:
        """Unit scores (count,) of one layer of a group: each the sum over all channels that the unit has there.

        A criterion that is no such sum, as a maximum over a unit's weights, needs a branch of its own here: channel by
        channel its scores are right until a convolution is grouped.
        """
        graph = self.graph
        dim = graph.network.output_dim(name)
        units = graph.owners[name, dim][:, 1]
        if self.criterion == "bn-scale":
            scale = self._on_cpu[f"{self.graph.norms[name]}.weight"].abs().double()
            return _by_unit(scale, graph.owners[f"{self.graph.norms[name]}.weight", 0][:, 1], count)
        if self._needs_data:
            sums = np.stack([self._unit_terms(name, batch, count) for batch in range(len(self._terms(name)))])
            return (sums**2 if self.criterion == "taylor-group" else sums).sum(0)
        try:
            weight = self._on_cpu[name].double().movedim(dim, 0)
            elements = element_scores(weight, self.criterion, generator, "channel")
        except ValueError as error:
            raise type(error)(f"{name}: {error}") from None
        scores = _by_unit(elements, units, count)
        return np.sqrt(scores) if self.criterion == "magnitude-l2" else scores

    def _unit_terms(self, name: str, batch: int, count: int) -> np.ndarray:
        """Terms (count,) of one batch by unit, with all that leaves with a layer's output channels."""
        dim, owners = self.graph.network.output_dim(name), self.graph.owners
        total = _by_unit(wide(self._terms(name)[batch]).movedim(dim, 0), owners[name, dim][:, 1], count)
        norm = self.graph.norms.get(name) if self.criterion in _OF_PARAMETERS else None
        partners = [f"{name.rpartition('.')[0]}.bias".lstrip(".")]
        partners += [f"{norm}.weight", f"{norm}.bias"] if norm is not None else []
        for partner in partners if self.criterion in _OF_PARAMETERS else ():
            if partner in self._of_data and (partner, 0) in owners:  # not of a bias that nothing is computed from
                total += _by_unit(wide(self._of_data[partner][batch]), owners[partner, 0][:, 1], count)
        return total

    def _slice_norms(self, number: int, reader: str) -> np.ndarray:
        """Frobenius norm of the reader's input slice of each unit (units,)."""
        weight = self._on_cpu[reader].double()
        weight = weight.movedim(self.graph.network.by_name[reader].input_dim, 1)
        units = columns_of(self.graph, number, reader, tuple(weight.shape))
        squares = weight.flatten(1).square().sum(0)[units >= 0]
        count = self.graph.network.groups[number].units
        return torch.zeros(count, dtype=torch.float64).index_add_(0, units[units >= 0], squares).sqrt().numpy()

    def _zeros_first(self, number: int, scores: np.ndarray) -> np.ndarray:
        """Units without a weight left go before all others: what is masked stays masked along a ramp."""
        left, graph = np.zeros(len(scores)), self.graph
        for name in graph.network.groups[number].layers:
            dim = graph.network.output_dim(name)
            weight = self._on_cpu[name].double().movedim(dim, 0)
            left += _by_unit(weight.abs(), graph.owners[name, dim][:, 1], len(scores))
        return np.where(left > 0, np.maximum(scores, np.finfo(np.float64).tiny), 0.0)


def _by_unit(channels: Tensor, units: np.ndarray, count: int) -> np.ndarray:
    """Sums (count,) of what belongs to each unit; `channels` is (channels, ...), `units` the unit of each channel."""
    sums = channels.reshape(len(channels), -1).sum(1).cpu().numpy()
    return np.bincount(units, weights=sums, minlength=count)


def _mean_over_layers(scores: list[np.ndarray]) -> np.ndarray:
    """Mean of each layer's scores (units,) over their mean, so that no layer dominates by its scale."""
    total = np.zeros(len(scores[0]))
    for of_layer in scores:
        total += of_layer / of_layer.mean() if of_layer.any() else 0.0
    return total / len(scores)


def defined_groups(graph: ChannelGraph, criterion: str) -> ChannelGraph:
    """The graph in which channel groups the criterion is not defined for say so and lose nothing.

    It depends on the architecture alone: for other weights of the same network it is the same.
    """
    if criterion not in _OF_NEIGHBOURS:
        return graph
    numbers = [number for number, group in enumerate(graph.network.groups) if group.obstacle is None]
    reasons = {number: _obstacle(criterion, graph, number) for number in numbers}
    return refuse_groups(graph, {number: reason for number, reason in reasons.items() if reason})


def _obstacle(criterion: str, graph: ChannelGraph, number: int) -> str | None:
    if criterion == "reconstruction":
        return reconstruction_obstacle(graph, number)
    if criterion == "next-layer" and not readers(graph, number):
        return "criterion 'next-layer' needs a layer that reads its channels, found none"
    if criterion == "bn-scale":
        for name in graph.network.groups[number].layers:
            if name not in graph.norms:
                return f"criterion 'bn-scale' needs a BatchNorm with a scale that follows {name!r}, found none"
    return None


def unit_importance(model: nn.Module, graph: ChannelGraph, granularity: str) -> dict[str, UnitScores]:
    """Layer -> squared L2 norm of each of its units (n,); of patterns `N:M`, of each of its weights. Of more than
    `MOST_SORTED` units in all, layer -> their histogram.

    With granularity `channel`, all layers of a group get the group's scores, which `plan_removal` ranks by
    (norms over their layer's mean, so LAMP and global thresholds compare layers on one scale); layers that
    cannot lose channels, and those the granularity leaves unpruned, are left out. Whatever the criterion that masks go
    by, allocators compare magnitudes.
    """
    if granularity == "channel":
        scores = ImportanceScores(model, "magnitude-l2", graph)
        return {
            name: scores.group(number) ** 2
            for number, group in enumerate(graph.network.groups)
            if group.obstacle is None
            for name in group.layers
        }
    inputs = inputs_of_weights(model)
    weights = {
        name: weight
        for name, weight in prunable_weights(model).items()
        if not (graph.network.by_name[name].whole or obstacle_to(granularity, weight.shape, inputs[name]))
    }
    runs = "fine-grained" if pattern_of(granularity) else granularity
    if sum(units(weight.shape, runs).count for weight in weights.values()) > MOST_SORTED:
        return {name: ScoreHistogram.of(_squares(weight, runs)) for name, weight in weights.items()}
    return {
        name: unit_scores(element_scores(weight, "magnitude-l2"), granularity, inputs[name]).flatten().cpu().numpy()
        for name, weight in weights.items()
    }


def _squares(weight: Tensor, granularity: str) -> Iterator[np.ndarray]:
    """Squared L2 norms of a weight's units of runs, a few rows of it at a time."""
    rows = max(1, PIECE * len(weight) // weight.numel())
    for part in weight.detach().split(rows):
        yield unit_scores(element_scores(part, "magnitude-l2"), granularity).flatten().cpu().numpy()
