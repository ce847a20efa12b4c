"""Which part of divided channels shrinks, and which sizes that modules hold shrink with it: found by trying.

What a forward pass shows leaves both open. Attention divides channels into heads: the code may hold how many there are,
how wide each is, or take the width from the channels that come in. So whatever is tried first is tried out (see
`pruning.channels.self_test`), and where it goes wrong, the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from pruning.channels.call import HEADS, HEADS_OF_INPUTS, LAST
from pruning.channels.coupling import Coupling, couple
from pruning.channels.graph import ChannelGraph
from pruning.channels.self_test import find_offenders, fits
from pruning.trees import NetworkInputs
from spaces.network import Network

_NONE_HELPS = -1
"""As `LAST`, of modules of which all else has been tried."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A network that has been observed, and is to be followed and tried out.

    Attributes:
        model: a copy in eval mode, which trials change.
        bare: its tensors and layers, without groups.
        example: a batch that it accepts.
        norms: layer -> the BatchNorm that follows it.
        calls: how often each module runs in eval mode.
        training_calls: likewise on the training path; empty where that runs nothing more.
    """

    model: nn.Module
    bare: Network
    example: NetworkInputs
    norms: Mapping[str, str]
    calls: Counter[nn.Module]
    training_calls: Counter[nn.Module]

    def graph(self) -> ChannelGraph:
        """The groups, each with what goes wrong without some of its units, in the division that lets most leave."""
        first = self._followed({})
        fitting = self._fits(first)
        stuck = _stuck(first) if fitting else {module for modules in first.divided.values() for module in modules}
        if fitting and not stuck:
            return self._built(first)
        for coupling in self._others(first, stuck):
            if not _stuck(coupling) and self._fits(coupling):
                return self._built(coupling)
        return self._one_by_one(first)

    def _others(self, first: Coupling, stuck: Collection[str]) -> Iterator[Coupling]:
        """What may fit as a whole instead: all sizes that modules hold change, and all of `stuck` lose heads."""
        if not stuck and first.sizes:
            yield _with_sizes(first, range(len(first.groups)))
        for scheme in (HEADS, HEADS_OF_INPUTS) if stuck else ():
            found = self._followed(dict.fromkeys(stuck, scheme))
            yield _with_sizes(found, range(len(found.groups)))

    def _one_by_one(self, coupling: Coupling) -> ChannelGraph:
        """Try the next division of every module whose channels stay, until none stays or none helps."""
        schemes: dict[str, int] = {}
        while True:
            coupling = self._tried_out(coupling)
            trying = {module: schemes.get(module, LAST) for module in sorted(_stuck(coupling))}
            if not (further := {module: scheme + 1 for module, scheme in trying.items() if scheme >= LAST}):
                return self._built(coupling)
            schemes |= {m: scheme if scheme <= HEADS_OF_INPUTS else _NONE_HELPS for m, scheme in further.items()}
            coupling = self._followed(schemes)

    def _followed(self, schemes: Mapping[str, int]) -> Coupling:
        training = self.training_calls
        return couple(self.model, self.example, self.calls | training, bool(training - self.calls), schemes)

    def _tried_out(self, coupling: Coupling) -> Coupling:
        """The coupling with obstacles of groups whose removal goes wrong, also with the sizes that modules hold."""
        offenders = self._offenders(coupling)
        sized = _with_sizes(coupling, offenders)
        if sized.owners.keys() != coupling.owners.keys():
            coupling, offenders = sized, self._offenders(sized)
        numbered = enumerate(coupling.groups)
        groups = tuple(replace(group, obstacle=offenders.get(number, group.obstacle)) for number, group in numbered)
        return replace(coupling, groups=groups)

    def _fits(self, coupling: Coupling) -> bool:
        return fits(self.model.eval(), self._built(coupling))

    def _offenders(self, coupling: Coupling) -> dict[int, str]:
        return find_offenders(self.model.eval(), self._built(coupling), coupling.hints, self.calls)

    def _built(self, coupling: Coupling) -> ChannelGraph:
        """Add the groups to the bare network; groups with an obstacle own nothing."""
        groups = coupling.groups
        group_of = {name: number for number, group in enumerate(groups) for name in group.layers}
        layers = tuple(
            replace(layer, channel_group=group_of[layer.name], obstacle=groups[group_of[layer.name]].obstacle)
            if layer.name in group_of
            else replace(layer, obstacle=(layer.prunable and coupling.unused.get(layer.name)) or layer.obstacle)
            for layer in self.bare.layers
        )
        owners = {}
        for place, of_indices in coupling.owners.items():
            units = {index: unit for index, unit in of_indices.items() if groups[unit[0]].obstacle is None}
            if units:
                owners[place] = np.full((coupling.lengths[place], 2), -1, dtype=np.int64)
                owners[place][list(units)] = list(units.values())
        tensors = []
        for tensor in self.bare.tensors:
            counts = []
            for dim in range(len(tensor.shape)):
                numbers = owners.get((tensor.name, dim), np.empty((0, 2)))[:, 0]
                counts.append(tuple(sorted(Counter(numbers[numbers >= 0].tolist()).items())))
            tensors.append(replace(tensor, owners=tuple(counts)))
        network = replace(self.bare, tensors=tuple(tensors), layers=layers, groups=groups)
        return ChannelGraph(network, owners, self.example, coupling.zeroed, self.norms)


def _stuck(coupling: Coupling) -> set[str]:
    """Modules with attention that divide channels of groups that stay."""
    stay = [number for number, group in enumerate(coupling.groups) if group.obstacle is not None]
    return {module for number in stay for module in coupling.divided.get(number, ())}


def _with_sizes(coupling: Coupling, numbers: Collection[int]) -> Coupling:
    """Let sizes that modules hold leave with the units of these groups."""
    owned = {
        place: units
        for place, units in coupling.sizes.items()
        if all(number in numbers for number, _ in units.values())
    }
    return replace(coupling, owners={**coupling.owners, **owned})
