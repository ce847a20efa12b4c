"""What the levels of an allocation's knobs cost: bytes and MACs, with the value bits that weights are stored in.

Bytes of floats are those of the sparse file, version 1. With rounded weights they are the prediction for version 2,
whose terms add up: places and values of each weight, and what all others take for each of their elements. Where the
bound is below the prediction, as it can be at 2 bits, sizes are up to 3 % too large.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from spaces.allocation.elimination import Knobs, VariableElimination
from spaces.allocation.knobs import Damage, Knob
from spaces.bits import FLOAT_BITS
from spaces.cost.coded_size import LANE_BITS, LANE_BYTES, USUAL_SCALE, SizesAtBits, coded_sizes_of
from spaces.cost.container import encoded_entry
from spaces.cost.footprint import dense_footprint
from spaces.cost.removal import dimensions_of
from spaces.network import ITEM_BYTES, Network, StoredTensor

BYTES_A_BIT = (1 + 8 * LANE_BYTES / LANE_BITS) / 8
"""Of a predicted file of version 2, for each bit of its weights: with the coder's states."""


@dataclass(frozen=True, eq=False)
class Steps:
    """The levels (k,) of a knob that differ, or the bits to choose from for one layer, or pairs of both.

    Attributes:
        knob: what loses units; None of bits alone.
        layer: whose bits the levels choose; None if they choose none.
        levels: sparsities, 0 of bits alone.
        bits: of a value; 32 if the levels choose none.
        damage: of each level.
        kept: units kept; of bits alone the bytes that one element takes.

    The first level is the unpruned one of most bits.
    """

    knob: Knob | None
    layer: str | None
    levels: np.ndarray
    bits: np.ndarray
    damage: np.ndarray
    kept: np.ndarray

    @classmethod
    def of(cls, knob: Knob, damage: Damage) -> Steps:
        removed, first = np.unique(knob.removed(damage.levels), return_index=True)
        bits = np.full(len(first), FLOAT_BITS)
        return cls(knob, None, damage.levels[first], bits, damage.values[first], knob.units.count - removed)

    def at_each(self, layer: str, rounding: Mapping[int, float]) -> Steps:
        """Pairs of these levels and bits, with the sum of the damages; `rounding`: bits, falling -> damage."""
        count, widths = len(self.levels), np.array([*rounding])
        return Steps(
            self.knob,
            layer,
            np.tile(self.levels, len(widths)),
            np.repeat(widths, count),
            np.tile(self.damage, len(widths)) + np.repeat([*rounding.values()], count),
            np.tile(self.kept, len(widths)),
        )

    @classmethod
    def of_bits(cls, network: Network, layer: str, rounding: Mapping[int, float]) -> Steps:
        """Bits alone; `rounding`: bits, falling -> damage."""
        widths, nothing = np.array([*rounding]), np.zeros(len(rounding))
        each = CodedWeights(network).dense_bytes(layer, widths)
        return cls(None, layer, nothing, widths, np.array([*rounding.values()]), each)


class CodedWeights:
    """Predicted bytes of single tensors in a file of rounded weights."""

    def __init__(self, network: Network) -> None:
        self._network, self._sizes = network, coded_sizes_of(network)
        self._index = {tensor.name: n for n, tensor in enumerate(self._sizes.layers)}
        others = zip(self._sizes.others, self._sizes.per_other[1, 1], strict=True)
        self.other_bytes = {tensor.name: bits * BYTES_A_BIT for tensor, bits in others}
        """Of an element of each tensor that is no prunable weight."""

    def _at(self, bits: np.ndarray) -> SizesAtBits:
        return self._sizes.at(np.broadcast_to(bits[:, None], (len(bits), len(self._sizes.layers))))

    def dense_bytes(self, layer: str, bits: np.ndarray) -> np.ndarray:
        """Of an element (k,) of a weight that has no zeros, at these bits (k,), without its scales."""
        most: np.ndarray = self._at(bits).most[:, self._index[layer]]
        return most * BYTES_A_BIT

    def masked_bytes(self, layer: str, kept: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Of a weight (k,) of which so many elements are kept (k,), at these bits (k,), with its scales."""
        if layer not in self._index:  # without elements
            return np.zeros(len(kept))
        index = self._index[layer]
        numel = np.array([tensor.numel for tensor in self._sizes.layers])
        coded = self._at(bits).layer_bits(numel, np.broadcast_to(kept[:, None], (len(kept), len(numel))))[:, index]
        scales = np.minimum(self._sizes.channels[index], kept) * (bits < FLOAT_BITS)
        return (coded + scales * USUAL_SCALE) * BYTES_A_BIT

    def unpruned_bytes(self, bits: Mapping[str, int]) -> float:
        """Of the file with nothing removed."""
        numel = np.array([tensor.numel for tensor in self._sizes.layers])
        return float(self._sizes.predicted(numel, numel, np.array([bits[t.name] for t in self._sizes.layers])))


@dataclass(frozen=True, eq=False)
class LevelCosts:
    """Size and MACs of every combination of levels.

    Attributes:
        steps: of the knobs, and behind them of bits alone.
        metric: of the size, `encoded` or `nonzero`.
        granularity: of all knobs.
        bits: layer -> bits, the largest where levels choose them.
        is_coded: whether any weight is, or may be, rounded: then the file is of version 2.
    """

    network: Network
    steps: Sequence[Steps]
    metric: str
    granularity: str
    bits: Mapping[str, int]
    is_coded: bool

    @cached_property
    def _coded(self) -> CodedWeights:
        return CodedWeights(self.network)

    @cached_property
    def _masked(self) -> dict[str, int]:
        """Layer -> index of the steps that its size follows from alone."""
        named = ((one.knob.name if one.knob else one.layer, n) for n, one in enumerate(self.steps))
        if self.granularity == "channel":
            return {}
        return {name: n for name, n in named if name is not None}

    @cached_property
    def _groups(self) -> dict[int, tuple[int, int]]:
        """Number of a channel group -> index of its steps, and its units."""
        knobs = ((n, one.knob) for n, one in enumerate(self.steps) if one.knob is not None)
        return {knob.group: (n, knob.units.count) for n, knob in knobs if knob.group is not None}

    @cached_property
    def choices(self) -> VariableElimination:
        """What no knob changes, what one changes alone, and what several change together."""
        steps, terms = self.steps, self._terms()
        alone = [np.zeros((len(one.kept), 2)) for one in steps]
        for name, index in self._masked.items():
            alone[index] += self._alone(name, steps[index])
        for term, pair in terms.items():
            if len(set(term)) == 1:
                alone[term[0]] += (steps[term[0]].kept ** len(term))[:, None] * pair
        joint = {term: pair for term, pair in terms.items() if len(set(term)) > 1}
        every_kept = tuple(one.kept.astype(float) for one in steps)
        found = VariableElimination(tuple(one.damage for one in steps), every_kept, tuple(alone), joint, terms[()])
        if not self.is_coded:
            return found
        whole = self._coded.unpruned_bytes(self.bits) - found.cost_of(np.zeros((1, len(steps)), int))[0, 0]
        return replace(found, fixed=found.fixed + np.array([whole, 0.0]))

    def _terms(self) -> dict[Knobs, np.ndarray]:
        """Size and MACs (2,) of everything but masked weights, as a polynomial in units kept."""
        network, terms = self.network, defaultdict[Knobs, np.ndarray](lambda: np.zeros(2))
        chosen = {one.layer: n for n, one in enumerate(self.steps) if one.knob is None}
        for tensor in network.tensors:
            if tensor.name in self._masked:
                continue
            macs, by_bits = network.multiplied.get(tensor.name, 0), chosen.get(tensor.name)
            size = 0.0 if by_bits is not None else self._element_size(tensor)
            for term, count in _numel_terms(network, tensor, self._groups).items():
                terms[term] += count * np.array([size, macs], dtype=float)
                if by_bits is not None:
                    terms[*term, by_bits] += [count, 0]
            if self.is_coded and tensor.name in network.by_name and tensor.numel:
                for term, count in _numel_terms(network, self._scales(tensor), self._groups).items():
                    terms[term] += [count * USUAL_SCALE * BYTES_A_BIT, 0]
        terms[()] += [0, network.other_macs]
        if self.metric == "encoded" and not self.is_coded:
            tensors = sum(tensor.numel * ITEM_BYTES[tensor.dtype] for tensor in network.tensors)
            terms[()] += [dense_footprint(network).encoded_bytes - tensors, 0]  # the header
        return terms

    def _element_size(self, tensor: StoredTensor) -> float:
        if self.metric != "encoded":
            return int(tensor.parameter)
        if not self.is_coded:
            return ITEM_BYTES[tensor.dtype]
        if tensor.name in self._coded.other_bytes:
            return self._coded.other_bytes[tensor.name]
        return float(self._coded.dense_bytes(tensor.name, np.array([self.bits[tensor.name]]))[0]) if tensor.numel else 0

    def _scales(self, tensor: StoredTensor) -> StoredTensor:
        """One for each output channel of a weight, as a tensor."""
        dim = self.network.by_name[tensor.name].output_dim
        return StoredTensor(tensor.name, (tensor.shape[dim],), owners=tensor.owners[dim : dim + 1])

    def _alone(self, name: str, one: Steps) -> np.ndarray:
        """Size and MACs (k, 2) of a weight under masks."""
        layer, tensor = self.network.by_name[name], next(t for t in self.network.tensors if t.name == name)
        kept = one.kept * one.knob.units.elements if one.knob else np.full(len(one.bits), tensor.numel)
        if self.is_coded:
            widths = one.bits if one.layer else np.full(len(kept), self.bits[name])
            sizes: Sequence[float] | np.ndarray = self._coded.masked_bytes(name, kept, widths)
        elif self.metric == "nonzero":
            sizes = kept
        else:
            shape, inputs = tensor.shape, layer.inputs
            sizes = [encoded_entry(tensor, shape, int(n), self.granularity, inputs).bytes for n in kept]
        macs = self.network.multiplied.get(name, 0) * tensor.numel
        return np.column_stack([sizes, np.full(len(kept), float(macs))])


def _numel_terms(network: Network, tensor: StoredTensor, groups: Mapping[int, tuple[int, int]]) -> dict[Knobs, int]:
    """The tensor's elements as a polynomial in units kept; `groups`: number -> (index of its knob, units)."""
    terms: dict[Knobs, int] = {(): 1}
    for dimension in dimensions_of(network, tensor):
        factors: dict[Knobs, int] = {(): dimension.length}
        for group, per_unit in dimension.per_unit:
            if group in groups:
                knob, units = groups[group]
                factors[(knob,)] = factors.get((knob,), 0) + per_unit
                factors[()] -= per_unit * units
        product: dict[Knobs, int] = defaultdict(int)
        for knobs, count in terms.items():
            for more, times in factors.items():
                if count * times:
                    product[tuple(sorted(knobs + more))] += count * times
        terms = dict(product)
    return terms
