"""The granularities: their names, how each divides a weight into the units that go or stay, and how many go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import log2, prod
from typing import NamedTuple

import numpy as np

from spaces.counting import removed_by_pattern, removed_count, removed_units
from spaces.network import SECOND, Inputs, Layer
from spaces.validation import check_sparsity, unknown

GRANULARITIES = ("fine-grained", "vector", "kernel", "channel", "1:4", "2:4", "*:4", "*:8")
COMBINED = tuple(f"channel+{word}" for word in GRANULARITIES if word != "channel")
"""Two-stage granularities, which a search may choose as well: channels are removed, then what stays is masked."""
CHOICES = (*GRANULARITIES, *COMBINED)
SEARCHED = ("fine-grained", "channel")
"""Granularities of a search that names none."""

VECTOR = 4
"""The longest vector in layers whose kernels have one element; the length used is the largest divisor of the number of
inputs up to this.
"""
NAMES = {"vector": "vec", "kernel": "ker"}
"""What a file calls the encodings with one bit a unit; for patterns see `pattern_name`."""

UNIT_MARGIN, UNIT_SLACK = 8, 16
"""UNIT_MARGIN: how many bytes an encoding by units, with its note, must save over one by single weights to be used.
UNIT_SLACK: bytes added in plans made before training, since zeros that arise by chance can change the choice.
"""


def parts_of(choice: str) -> tuple[str, ...]:
    """The granularities a choice is made of, removal first.

    >>> parts_of("channel+2:4"), parts_of("kernel")
    (('channel', '2:4'), ('kernel',))
    """
    return tuple(choice.split("+"))


def parts_in(choices: Iterable[str]) -> tuple[str, ...]:
    """The granularities these choices are made of, each once, in the order they come."""
    return tuple(dict.fromkeys(part for choice in choices for part in parts_of(choice)))


class Pattern(NamedTuple):
    """N:M: `keep` of every `of` stay; None lets the sparsity pick how many, at least 1."""

    keep: int | None
    of: int

    @property
    def index_bits(self) -> int:
        """Bits that say which of the `of` inputs one is."""
        return int(log2(self.of))


@cache
def pattern_of(granularity: str) -> Pattern | None:
    """The pattern of a granularity such as `2:4` or `*:8`; None for the others.

    >>> pattern_of("2:4"), pattern_of("*:8"), pattern_of("kernel")
    (Pattern(keep=2, of=4), Pattern(keep=None, of=8), None)
    """
    found = re.fullmatch(r"([1-9]|\*):([48])", granularity)
    if not found:
        return None
    return Pattern(None if found[1] == "*" else int(found[1]), int(found[2]))


def pattern_name(keep: int, of: int, dim: int = 1) -> str:
    """Name in a file of the encoding that keeps `keep` of every `of`: `N:M` along the second dimension, `N/M` along the
    first.

    >>> pattern_name(2, 4), pattern_name(2, 4, 0)
    ('2:4', '2/4')
    """
    return f"{keep}{'/' if dim == 0 else ':'}{of}"


@dataclass(frozen=True)
class Units:
    """The units of one weight.

    Attributes:
        count: how many there are to take a share of, >= 1; of a pattern the M positions of a block, not the number of
            blocks.
        elements: weights in each, so that `count * elements` is the number of the weight's elements.
        keep: units that stay if the layer is pruned at all (a pattern with a fixed N); None if the share decides.
    """

    count: int
    elements: int
    keep: int | None = None

    def removed(self, share: float) -> int:
        """The number of units that go: `removed_count`. A fixed pattern removes either M - N or none, whichever is
        nearer to the share (in a tie M - N).
        """
        if self.keep is None:
            return removed_count(share, self.count)
        return int(removed_by_pattern(check_sparsity(share), self.count, self.keep))


def units_of(granularity: str, shape: Sequence[int], inputs: Inputs = SECOND) -> Units:
    """Units of a weight of this shape: (outputs, inputs, *kernel), but (inputs, outputs, *kernel) if transposed.

    A `vector` is a row of a kernel. In linear layers and layers whose kernels have one element, it is 4 neighbours in
    the second dimension, or the most of 3 and 2 that divides it, and a `kernel` is one weight. `channel` takes the
    first dimension, so move the outputs of a transposed weight there first.

    Args:
        inputs: where a pattern finds them; the other granularities ignore it.

    Raises:
        ValueError: an unknown granularity, an empty weight, or a pattern whose M does not divide the inputs.

    >>> units_of("vector", (8, 3, 5, 5)), units_of("2:4", (2, 8))
    (Units(count=120, elements=5, keep=None), Units(count=4, elements=4, keep=2))
    """
    if granularity not in GRANULARITIES:
        raise ValueError(unknown("granularity", granularity, GRANULARITIES))
    numel = prod(shape)
    if numel == 0:
        raise ValueError(f"weight of shape {tuple(shape)} is empty: nothing to prune")
    if granularity == "channel":
        return Units(shape[0] if shape else 1, numel // (shape[0] if shape else 1))
    if pattern := pattern_of(granularity):
        if reason := undivided_reason(granularity, shape, inputs):
            raise ValueError(reason)
        return Units(pattern.of, numel // pattern.of, pattern.keep)
    run = run_length(granularity, shape)
    return Units(numel // run, run)


def run_length(granularity: str, shape: Sequence[int]) -> int:
    """Weights in a unit that is a run."""
    kernel = prod(shape[2:])
    if granularity == "fine-grained" or len(shape) < 2 or (granularity == "kernel" and kernel == 1):
        return 1
    if granularity == "kernel":
        return kernel
    return shape[-1] if kernel > 1 else next(length for length in range(VECTOR, 0, -1) if shape[1] % length == 0)


def obstacle_to(granularity: str, shape: Sequence[int], inputs: Inputs = SECOND) -> str | None:
    """Why nothing of a weight of this shape can go in this granularity; None if something can."""
    if prod(shape) == 0:
        return "it is empty"
    if reason := undivided_reason(granularity, shape, inputs):
        return reason
    return "it is a single unit" if units_of(granularity, shape, inputs).count < 2 else None


def undivided_reason(granularity: str, shape: Sequence[int], inputs: Inputs) -> str | None:
    """Why a weight of this shape cannot be taken apart into the groups of N:M; None if it can, or nothing need be."""
    pattern, length = pattern_of(granularity), shape[inputs.dim] if len(shape) > 1 else 1
    if pattern and length % (pattern.of * inputs.groups):
        each = f"{length // inputs.groups} in each group" if inputs.groups > 1 else length
        return f"{granularity} needs a multiple of {pattern.of} inputs, the weight has {each}"
    return None


def unpruned_reason(layer: Layer, granularity: str) -> str | None:
    """Why nothing of a layer can go in this granularity; None if something can."""
    if granularity == "channel":
        return layer.obstacle or ("it is in no channel group" if layer.channel_group is None else None)
    return layer.whole or obstacle_to(granularity, layer.shape, layer.inputs)


class Divisions:
    """The units of many layers at once; arrays are over layers, the last dimension.

    Args:
        layers: whose dense shapes are meant.
        granularities: of each layer; `channel` counts as `fine-grained` here.
    """

    def __init__(self, layers: Sequence[Layer], granularities: Sequence[str]) -> None:
        patterns = [pattern_of(granularity) for granularity in granularities]
        self._of = np.array([pattern.of if pattern else 0 for pattern in patterns])
        self._keep = np.array([(pattern.keep or 0) if pattern else 0 for pattern in patterns])
        self._bits = np.array([pattern.index_bits if pattern else 0 for pattern in patterns])
        pairs = zip(granularities, layers, strict=True)
        self._run = np.array([self._fixed_run(granularity, layer.shape) for granularity, layer in pairs])
        self._first = np.array([layer.inputs.dim == 0 for layer in layers], dtype=bool)
        self._multiple = np.where(self._of > 0, self._of * [layer.inputs.groups for layer in layers], 1)

    @staticmethod
    def _fixed_run(granularity: str, shape: Sequence[int]) -> int:
        """Weights in a run; 0 where they depend on how many inputs are left."""
        if granularity == "vector" and len(shape) > 1 and prod(shape[2:]) == 1:
            return 0
        return run_length(granularity, shape) if granularity in NAMES else 1

    @property
    def plain(self) -> bool:
        """Whether every unit is one weight, wherever it lies."""
        return not self._of.any() and (self._run == 1).all()

    def zeros(self, share: np.ndarray, numel: np.ndarray, lengths: Sequence[np.ndarray]) -> np.ndarray:
        """Weights masked: as `Units.removed` says, none where a pattern does not divide the inputs.

        Args:
            share: asked of each layer (..., n).
            numel: weights left of each (..., n).
            lengths: what is left of its first and of its second dimension, each (..., n).
        """
        count, elements = self._units(numel, lengths)
        by_pattern = removed_by_pattern(share, count, self._keep)
        removed = np.where(self._keep > 0, by_pattern, removed_units(share, count))
        return np.where(self._divided(lengths), removed * elements, 0)

    def index_bytes(self, numel: np.ndarray, nonzero: np.ndarray, lengths: Sequence[np.ndarray]) -> np.ndarray:
        """Bytes planned for the index of what is kept, `UNIT_SLACK` included: one bit a unit, or the positions of a
        pattern's weights.

        Infinite, so never chosen, if the granularity has no index of its own.
        """
        count, elements = self._units(numel, lengths)
        by_unit = np.where(elements > 1, np.ceil(count / 8), np.inf)
        by_position = np.where(self._divided(lengths) & (nonzero < numel), np.ceil(nonzero * self._bits / 8), np.inf)
        return np.where(self._of > 0, by_position, by_unit) + UNIT_SLACK

    def _units(self, numel: np.ndarray, lengths: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        run = np.where(self._run > 0, self._run, _vector_length(lengths[1]))
        elements = np.where(self._of > 0, numel / np.maximum(self._of, 1), run)
        return numel / elements, elements

    def _divided(self, lengths: Sequence[np.ndarray]) -> np.ndarray:
        return np.where(self._first, lengths[0], lengths[1]) % self._multiple == 0


def _vector_length(row: np.ndarray) -> np.ndarray:
    return np.select([row % length == 0 for length in range(VECTOR, 1, -1)], range(VECTOR, 1, -1), 1)
