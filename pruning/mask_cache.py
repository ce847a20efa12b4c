"""Which units of a model go first, sorted once for all the policies that are tried on it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pruning.calibration import Calibration
from pruning.channels.graph import ChannelGraph, check_fits
from pruning.channels.structure import Structure
from pruning.importance.scores import ImportanceScores
from pruning.masks import make_mask
from pruning.modules import prunable_weights
from pruning.units import expand_units, unit_ranks, units
from spaces.cost.effect import kept_units
from spaces.granularity import obstacle_to
from spaces.policy import PruningPolicy
from spaces.validation import unknown

_Stays = dict[tuple[str, int], np.ndarray]
"""(tensor name, dimension) -> bool array, True = stays; only of dimensions that shrink."""


class MaskCache:
    """Masks and structures of policies on one model; each order is worked out when first needed.

    Args:
        model: stays as it is, and must not change while this is in use.
        graph: its traced channel groups.
        calibration: what data-driven criteria look at.
        scores: of this model by one criterion, if they are at hand.

    Raises:
        ValueError: a graph of another model.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        calibration: Calibration | None = None,
        scores: ImportanceScores | None = None,
    ) -> None:
        check_fits(model, graph.network)
        self._model, self._graph, self._calibration = model, graph, calibration
        self._weights = prunable_weights(model)
        self._scores = {} if scores is None else {scores.criterion: scores}
        self._elements: dict[tuple[str, str, str], Tensor] = {}
        self._ranks: dict[tuple[str, str, str], Tensor] = {}
        self._unit_ranks: dict[tuple[int, str], np.ndarray] = {}

    def masks(self, policy: PruningPolicy) -> dict[str, Tensor]:
        """The masks of `pruning.prune.policy_masks` at the end of the schedule: parameter name -> bool mask.

        Raises:
            ValueError: an unknown layer (nearest match named), NaN or infinite weights.
        """
        for name in (*policy.sparsity, *policy.removal):
            if name not in self._weights:
                raise ValueError(unknown("layer", name, self._weights))
        stays = self._stays(policy)
        masks = {}
        for tensor in self._graph.network.tensors:
            dim = self._graph.network.output_dim(tensor.name)
            if tensor.parameter and (tensor.name, dim) in stays:
                outputs = torch.from_numpy(stays[tensor.name, dim])
                masks[tensor.name] = outputs.view([-1 if d == dim else 1 for d in range(len(tensor.shape))]).expand(
                    tensor.shape
                )
        for name, share in policy.mask_requests().items():
            if (mask := self._mask(name, share, policy, stays)) is not None:
                masks[name] = mask
        return masks

    def structure(self, policy: PruningPolicy) -> Structure:
        """The indices that stay once the policy's channels are removed."""
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        for (name, dim), flags in self._stays(policy).items():
            kept.setdefault(name, {})[dim] = tuple(np.flatnonzero(flags).tolist())
        return Structure(kept)

    def _mask(self, name: str, share: float, policy: PruningPolicy, stays: _Stays) -> Tensor | None:
        """Mask of one layer, chosen among the elements no removal takes; None if it stays unpruned."""
        shape, granularity = self._weights[name].shape, policy.granularity_of(name)
        axes = [stays.get((name, dim), np.ones(length, dtype=bool)) for dim, length in enumerate(shape)]
        layer = self._graph.network.by_name[name]
        inputs = layer.inputs
        if layer.whole or obstacle_to(granularity, [int(axis.sum()) for axis in axes], inputs):
            return None
        if all(axis.all() for axis in axes):
            ranks = self._ranking(name, granularity, policy.criterion)
            removed = units(shape, granularity, inputs).removed(share)
            return expand_units(ranks >= removed, shape, granularity, inputs)
        index = np.ix_(*axes)
        weight, scores = self._weights[name][index], self._scores_of(name, granularity, policy.criterion)[index]
        mask = torch.zeros(shape, dtype=torch.bool, device=weight.device)
        mask[index] = make_mask(weight, share, granularity, scores=scores, inputs=inputs)
        return mask

    def _stays(self, policy: PruningPolicy) -> _Stays:
        network = self._graph.network
        kept = kept_units(network, policy.channel_requests())
        stays: _Stays = {}
        for place, owners in self._graph.owners.items() if kept else ():
            flags = np.ones(len(owners), dtype=bool)
            for number in kept.keys() & set(owners[:, 0].tolist()):
                mine = owners[:, 0] == number
                first_kept = network.groups[number].units - kept[number]
                flags[mine] = self._unit_ranking(number, policy.criterion)[owners[mine, 1]] >= first_kept
            if not flags.all():
                stays[place] = flags
        return stays

    def _by(self, criterion: str) -> ImportanceScores:
        if criterion not in self._scores:
            self._scores[criterion] = ImportanceScores(self._model, criterion, self._graph, self._calibration)
        return self._scores[criterion]

    def _scores_of(self, name: str, granularity: str, criterion: str) -> Tensor:
        """Scores of a layer's elements."""
        if (name, granularity, criterion) not in self._elements:
            self._elements[name, granularity, criterion] = self._by(criterion).elements(name, granularity)
        return self._elements[name, granularity, criterion]

    def _ranking(self, name: str, granularity: str, criterion: str) -> Tensor:
        """The place of each unit of a layer in the order they go; see `unit_ranks`."""
        if (name, granularity, criterion) not in self._ranks:
            scores = self._scores_of(name, granularity, criterion)
            inputs = self._graph.network.by_name[name].inputs
            self._ranks[name, granularity, criterion] = unit_ranks(scores, granularity, inputs)
        return self._ranks[name, granularity, criterion]

    def _unit_ranking(self, number: int, criterion: str) -> np.ndarray:
        """The place of each unit of a channel group in the order they go (units,)."""
        if (number, criterion) not in self._unit_ranks:
            scores = self._by(criterion).group(number)
            self._unit_ranks[number, criterion] = np.argsort(np.argsort(scores, kind="stable"))
        return self._unit_ranks[number, criterion]
