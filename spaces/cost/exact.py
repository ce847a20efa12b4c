"""Exact sizes and MACs of one network under any sparsities.

`Sizer` holds everything that no sparsity changes as arrays. It counts the characters of the container's header instead
of writing it, so that one size takes a few dozen array operations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from spaces.cost.container import HEADER_SLACK, encoding_sizes
from spaces.cost.counts import SIZE_METRICS, Footprint
from spaces.cost.removal import Shapes, channel_groups_of, distinct_shapes
from spaces.counting import removed_units
from spaces.granularity import Divisions
from spaces.network import ITEM_BYTES, Network, once_per_network
from spaces.policy import PruningPolicy

POWERS_OF_TEN = 10 ** np.arange(1, 19)
"""Up to the longest number int64 holds."""
ENTRY_FRAME = len(':{"dtype":"","shape":[],"data_offsets":[,]}')
METADATA_FRAME = len('"__metadata__":{}')
WORD_LENGTHS = np.array([*map(len, encoding_sizes(0, 0, 1)), len("N:M")])
"""Of the encodings' names; those of a granularity's own have three letters."""


def digits(numbers: np.ndarray) -> np.ndarray:
    """Decimal digits of integers >= 0, of their shape.

    >>> digits(np.array([0, 9, 10, 1234567])).tolist()
    [1, 1, 2, 7]
    """
    return np.searchsorted(POWERS_OF_TEN, numbers, side="right") + 1


@dataclass(frozen=True, eq=False)
class Pruned:
    """What sparsities leave of a network, in counts; all sizes follow from these.

    Attributes:
        groups: units removed of every channel group (groups,).
        lengths: what is left of every distinct dimension (m,), as `Shapes` of the distinct shapes has them.
        numel: elements left (s,), by distinct shape of the dense network.
        characters: what these shapes take in a header (s,), brackets left out.
        zeros: elements that masks set to zero (n,), by prunable tensor.
        index: bytes of the granularity's own index (n,), infinite where it has none; None if none has.
    """

    groups: np.ndarray
    lengths: np.ndarray
    numel: np.ndarray
    characters: np.ndarray
    zeros: np.ndarray
    index: np.ndarray | None = None

    @property
    def key(self) -> bytes:
        """Equal for equal counts, of one network."""
        return self.groups.tobytes() + self.zeros.tobytes()


class StoredFile(Protocol):
    """What a network is stored as."""

    def bytes(self, pruned: Pruned) -> int:
        """Bytes of the complete file."""


class Sizer:
    """Exact sizes and MACs of one network, for any sparsities.

    Where a method takes a `file`, bytes are that one's; by default those of version 1, exact.

    Weights without elements and groups without units have nothing to lose, whatever is asked of them.

    Attributes:
        layer_index: layer -> its index in the vectors `prune` takes.
        dense: counts of the unpruned network.
    """

    def __init__(self, network: Network) -> None:
        self.layer_index = {name: index for index, name in enumerate(network.by_name)}
        self._groups = channel_groups_of(network)
        distinct, self._shape = distinct_shapes(network.tensors)
        self._shapes = Shapes(network, distinct)
        self._commas = _integers(max(len(tensor.shape) - 1, 0) for tensor in distinct)
        self._nothing = np.zeros(len(network.groups), np.int64)
        self._unpruned = self._counted(self._nothing)
        stored = [n for n, tensor in enumerate(network.tensors) if tensor.name in self.layer_index and tensor.numel]
        self._file = _File(network, stored, self._shape)
        layers = [network.by_name[network.tensors[number].name] for number in stored]
        self._layer_index = _integers(self.layer_index[layer.name] for layer in layers)
        self._layer_shape = self._shape[stored]
        self._layers = layers
        self._positions = _integers(layer.positions for layer in layers)
        self._maskable = np.array([layer.whole is None for layer in layers], dtype=bool)
        multiplied = [n for n, tensor in enumerate(network.tensors) if tensor.name in network.multiplied]
        self._multiplied_shape = self._shape[multiplied]
        self._multiplied = _integers(network.multiplied[network.tensors[n].name] for n in multiplied)
        self._other_macs = network.other_macs
        parameters = [number for number, tensor in enumerate(network.tensors) if tensor.parameter]
        self._parameter_tensors = np.bincount(self._shape[parameters], minlength=len(distinct))
        nothing = np.zeros(len(self.layer_index))
        self.dense: Footprint = self.footprint(self.masked(self._nothing, nothing))

    def divisions(self, granularities: Sequence[str]) -> Divisions | None:
        """Units of the prunable tensors, for `prune`; None if every unit is one weight.

        Args:
            granularities: by layer (n,).
        """
        found = Divisions(self._layers, [granularities[index] for index in self._layer_index])
        return None if found.plain else found

    def prune(self, sparsity: np.ndarray, channel: np.ndarray, divisions: Divisions | None = None) -> Pruned:
        """Counts under these sparsities.

        Args:
            sparsity: by layer (n,), each in [0, 1).
            channel: which layers have granularity `channel` (n,), bool; the others get masks.
            divisions: units of the masks; single weights by default.
        """
        requests = sparsity * channel
        return self.masked(self.lost(requests), sparsity - requests, divisions)

    def under(self, policy: PruningPolicy) -> Pruned:
        """Counts under a policy, of whose layers only those of the network count."""
        requests, masks = policy.channel_requests(), policy.mask_requests()
        removal = np.array([requests.get(name, 0.0) for name in self.layer_index])
        masked = np.array([masks.get(name, 0.0) for name in self.layer_index])
        divisions = self.divisions([policy.granularity_of(name) for name in self.layer_index])
        return self.masked(self.lost(removal), masked, divisions)

    def lost(self, removal: np.ndarray) -> np.ndarray:
        """Units gone of every channel group (groups,), for the share of channels asked by layer (n,)."""
        if not removal.any():
            return self._nothing
        return self._groups.removed(self._groups.asked(removal)).astype(np.int64)

    def masked(self, groups: np.ndarray, masks: np.ndarray, divisions: Divisions | None = None) -> Pruned:
        """Counts once the channel groups lost these units, and masks their shares (n,) of what stays.

        Args:
            groups: as `lost` gives them, or `Pruned.groups`.
        """
        lengths, numel, characters = self._counted(groups) if groups.any() else self._unpruned
        masks, own = masks[self._layer_index] * self._maskable, numel[self._layer_shape]
        if divisions is None:
            return Pruned(groups, lengths, numel, characters, removed_units(masks, own).astype(np.int64))
        first, second = (length[self._layer_shape] for length in self._shapes.first_two(lengths))
        zeros = divisions.zeros(masks, own, (first, second)).astype(np.int64)
        index = divisions.index_bytes(own, own - zeros, (first, second))
        return Pruned(groups, lengths, numel, characters, zeros, index)

    def _counted(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lengths (m,) once the groups lost these units (groups,), elements (s,) and characters (s,) of all shapes."""
        lengths = self._shapes.lengths(groups)
        characters = digits(lengths)
        characters[0] = 0  # the filler is not written
        return lengths, self._shapes.numel(lengths), characters[self._shapes.dimensions].sum(axis=0) + self._commas

    def share(self, pruned: Pruned, metric: str, file: StoredFile | None = None) -> float:
        """The share of the dense size by the name of a size metric."""
        if metric not in SIZE_METRICS:
            raise KeyError(metric)
        if metric == "nonzero":
            return (self._parameters(pruned) - int(pruned.zeros.sum())) / self.dense.parameters
        return (file or self._file).bytes(pruned) / self.dense.encoded_bytes

    def macs(self, pruned: Pruned) -> float:
        """The share of the dense MACs; 1.0 when the dense network has none."""
        return float(self._macs(pruned)) / self.dense.macs if self.dense.macs else 1.0

    def footprint(self, pruned: Pruned, file: StoredFile | None = None) -> Footprint:
        """All counts."""
        parameters, macs = self._parameters(pruned), self._macs(pruned)
        return Footprint(
            parameters=parameters,
            nonzero=parameters - int(pruned.zeros.sum()),
            encoded_bytes=(file or self._file).bytes(pruned),
            macs=macs,
            macs_nonzero=macs - int(self._positions @ pruned.zeros),
        )

    def _macs(self, pruned: Pruned) -> int:
        return self._other_macs + int(self._multiplied @ pruned.numel[self._multiplied_shape])

    def _parameters(self, pruned: Pruned) -> int:
        return int(self._parameter_tensors @ pruned.numel)


@once_per_network
def sizer_of(network: Network) -> Sizer:
    """The sizer of this very object."""
    return Sizer(network)


class _File:
    """Bytes of the container `spaces.cost.container.container_header` begins.

    Its tensors are laid out in slots, in file order: one for every tensor, and one more for every weight that
    may be encoded, where it lies then. Of the two, one is empty; so is a slot in front of all others.
    """

    def __init__(self, network: Network, weights: Sequence[int], shape: np.ndarray) -> None:
        """`weights` are the indices of prunable weights among the tensors; `shape` says each tensor's (t,)."""
        tensors = network.tensors
        names = [tensors[number].name for number in weights]
        self._shape = shape[weights]
        self._item = _integers(ITEM_BYTES[tensors[number].dtype] for number in weights)
        self._dtype = _integers(len(tensors[number].dtype) for number in weights)
        self._note_cost = self._dtype + len("   ") + _integers(len(name) for name in names) + HEADER_SLACK
        self._note_text = self._dtype + len("   ") + _integers(_quoted(name) + len(':""') for name in names)
        self._lay_out(network, weights, shape)

        others = sorted(set(range(len(tensors))) - set(weights))
        self._others = np.bincount(shape[others], minlength=shape.max(initial=-1) + 1)
        self._tensors, self._aliases = len(tensors), len(network.aliases)
        self._fixed = (
            len("{}")
            + sum(_quoted(tensor.name) + ENTRY_FRAME for tensor in tensors)
            + sum(len(tensors[number].dtype) for number in others)
            + sum(_quoted(name) + len(":") + _quoted(f"same {target}") for name, target in network.aliases.items())
        )

    def _lay_out(self, network: Network, weights: Sequence[int], shape: np.ndarray) -> None:
        tensors = network.tensors
        dense = [(-ITEM_BYTES[tensor.dtype], tensor.name, False, number) for number, tensor in enumerate(tensors)]
        encoded = [(-ITEM_BYTES["U8"], tensors[number].name, True, number) for number in weights]
        order = [slot[2:] for slot in sorted(dense + encoded)]
        slot_number = {slot: number for number, slot in enumerate(order, 1)}
        self._dense_slot = _integers(slot_number[False, number] for number in weights)
        self._encoded_slot = _integers(slot_number[True, number] for number in weights)
        self._slot_shape = _integers([0, *(shape[number] for _, number in order)])
        self._slot_item = _integers([0, *(ITEM_BYTES[tensors[number].dtype] for _, number in order)])
        self._slot_used = _integers([0, *(not encoded for encoded, _ in order)])

    def bytes(self, pruned: Pruned) -> int:
        """Bytes of the complete file, after `no_larger_than_dense`."""
        if not self._tensors:
            return 8 + _padded(self._fixed + self._punctuation(0))
        numel, shape = pruned.numel[self._shape], pruned.characters[self._shape]
        nonzero = numel - pruned.zeros
        sizes = np.array([*encoding_sizes(numel, nonzero, self._item, pruned.index).values()])
        payload, dense = sizes.min(axis=0).astype(np.int64), sizes[0].astype(np.int64)
        words = WORD_LENGTHS[sizes.argmin(axis=0)] + shape + digits(nonzero)
        encoded = payload + words + self._note_cost < dense
        size = self._laid_out(pruned, encoded, payload, words)
        data = int((pruned.numel[self._slot_shape] * self._slot_item) @ self._slot_used)
        if size <= data or not encoded.any():
            return size
        return min(size, self._laid_out(pruned, np.zeros_like(encoded), payload, words))

    def _laid_out(self, pruned: Pruned, encoded: np.ndarray, payload: np.ndarray, words: np.ndarray) -> int:
        """Bytes of the file in which these weights are encoded (n,).

        Args:
            payload, words: of each weight (n,) its bytes then, and the characters of its note but for names.
        """
        shape, dense = pruned.characters[self._shape], pruned.numel[self._shape] * self._item
        length, used = pruned.numel[self._slot_shape] * self._slot_item, self._slot_used.copy()
        length[self._dense_slot], used[self._dense_slot] = np.where(encoded, 0, dense), ~encoded
        length[self._encoded_slot], used[self._encoded_slot] = payload * encoded, encoded
        ends = length.cumsum()

        entries = np.where(encoded, len("U8") + digits(payload) + words + self._note_text, self._dtype + shape)
        text = self._fixed + int(entries.sum() + self._others @ pruned.characters)
        text += self._punctuation(int(np.count_nonzero(encoded))) + self._offsets(ends, used)
        return 8 + _padded(text) + int(ends[-1])

    def _punctuation(self, encoded: int) -> int:
        """Characters of the metadata's frame and of the commas between entries and between notes."""
        notes = encoded + self._aliases
        between_entries = max(self._tensors + (notes > 0) - 1, 0)
        return between_entries + (METADATA_FRAME + notes - 1 if notes else 0)

    def _offsets(self, ends: np.ndarray, used: np.ndarray) -> int:
        """Digits of where every tensor begins and ends.

        Each begins where another ends, but the first, at 0. An empty slot ends where the slot before does, so
        the first slot to reach a power of ten is never empty.
        """
        reached = ends.searchsorted(POWERS_OF_TEN)
        short = used.cumsum()[reached - 1]
        digits_of_ends = self._tensors * (1 + len(short)) - int(short.sum())
        digits_of_last = 1 + int(np.count_nonzero(reached < len(ends)))
        return 2 * digits_of_ends + 1 - digits_of_last


def _padded(length: int) -> int:
    return length + -length % 8


def _quoted(text: str) -> int:
    """Characters of a text as JSON."""
    return len(json.dumps(text))


def _integers(numbers: Iterable[int] | np.ndarray) -> np.ndarray:
    return np.array(numbers if isinstance(numbers, np.ndarray) else list(numbers), dtype=np.int64)
