"""Bytes of the sparse file, version 2, before anything is trained: a bound that holds for any values, and a prediction.

Every tensor can be coded flat: each place as likely kept as any other, each value as likely as any other. What that
takes follows from counts, and the writer takes nothing larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from spaces.bits import FLOAT_BITS
from spaces.cost.coded_header import (
    DTYPES,
    FLOAT_FORMS,
    NORM_ENDINGS,
    Constant,
    FloatForm,
    Floats,
    Integers,
    Norm,
    Record,
    Same,
    most_header_bytes,
    varint,
    write_header,
)
from spaces.cost.effect import kept_units, masked_in
from spaces.cost.removal import shapes_after
from spaces.network import ITEM_BYTES, Network, StoredTensor
from spaces.policy import PruningPolicy

PARTS = 1 << 16
LEAST_ODDS = 1 / 4097
"""No bit is taken to be less likely than this."""
COARSENESS = 1 + 1e-4
"""What chances cost that are whole parts of 65536, from logarithms in steps of 1/256: relative to the entropy."""
STATE_COST = math.log2(1 + 2.0**-16)
"""Bits that a decision takes, at most, over what its chance says."""
LANE_BITS, LANE_BYTES, LEAST_LANES, MOST_LANES = 8 * 2048, 6, 8, 4096
SCALE_FORM = FloatForm(3, 4, 255)
NORM_FORM = FloatForm(5, 4, 255)
VECTOR_FORM = FloatForm(7, 8, 255)
EXACT_FORM = FloatForm(23, 8, 255)
"""Of rounded scales, of folded norms, and of the other vectors of a network whose weights are rounded; of float32."""
VALUE_BITS = {2: 1.0, 3: 2.3, 4: 3.35, 5: 4.35, 6: 5.35, 7: 6.35, 8: 7.35, 16: 15.3, 32: 26.6}
DENSE_BITS = {2: 1.48, 3: 2.55, 4: 3.45, 5: 4.35, 6: 5.25, 7: 6.2, 8: 7.2, 16: 15.2, 32: 26.6}
"""Bits a value kept takes in trained networks, its sign among them, and a weight of a layer that is not pruned."""
USUAL_SCALE, USUAL_NORM = 5.0, 8.8
"""Bits of a scale, and of a gain or a shift, in trained networks."""
MARGIN = 1.03
"""What a prediction is multiplied by, so that few files are larger."""


def uniform_chances(largest: int) -> list[int]:
    """For magnitudes in [1, largest], all likely alike: by level l, the chance, in parts of 65536, that one is at
    least 2^(l + 1), of those that are at least 2^l.

    >>> uniform_chances(7)
    [56174, 43691]
    """
    return [
        round(PARTS * (largest + 1 - (2 << level)) / (largest + 1 - (1 << level)))
        for level in range(largest.bit_length() - 1)
    ]


def flat_value_bits(bits: int) -> float:
    """Bits that a value of so many bits takes at most where it is coded flat, its sign among them.

    >>> round(flat_value_bits(4), 2), flat_value_bits(32)
    (3.81, 32.0)
    """
    if bits == FLOAT_BITS:
        return float(FLOAT_BITS)
    reached, most = 1.0, 0.0
    chances = uniform_chances(2 ** (bits - 1) - 1)
    for level, chance in enumerate(chances):
        most = max(most, reached + level - math.log2(1 - chance / PARTS))
        reached -= math.log2(chance / PARTS)
    return max(most, reached + len(chances)) + 2 * bits * STATE_COST


def place_bits(numel: np.ndarray, kept: np.ndarray, value_bits: np.ndarray) -> np.ndarray:
    """Bits of places and values where each value takes `value_bits`, at most for `kept` of `numel` or fewer, float of
    their shape. It never falls where one of the three grows.
    """
    size, own = np.asarray(numel, float), np.asarray(kept, float)
    likeliest = size / (1 + 2.0 ** -np.asarray(value_bits, float))
    count = np.minimum(own, likeliest)
    share = np.divide(count, size, out=np.zeros(np.broadcast(size, count).shape), where=size > 0)
    odds = np.clip(share, LEAST_ODDS, 1 - LEAST_ODDS)
    places = -(share * np.log2(odds) + (1 - share) * np.log2(1 - odds)) * size
    return np.where(own > 0, (places * COARSENESS + count * value_bits) + size * STATE_COST, 0.0)


def coded_bytes(bits: np.ndarray) -> np.ndarray:
    """Bytes at most of decisions and plain bits of so many bits, with the coder's states; float, of their shape."""
    lanes = np.minimum(np.floor(bits / LANE_BITS), MOST_LANES)
    lanes = np.where(lanes < LEAST_LANES, 1, lanes)
    return np.floor(bits / 8) + LANE_BYTES * lanes + 2


class CodedSizes:
    """Bytes of one network's version-2 files, for any counts and bits.

    Args:
        folded: paths of the BatchNorms that are stored as gain and shift, see `pruning.file.norms`.

    Attributes:
        layers: the prunable weights, in the order of all arrays here.
    """

    def __init__(self, network: Network, folded: Collection[str] = ()) -> None:
        self._network, self._folded = network, set(folded)
        self._inside = {path + ending for path in self._folded for ending in NORM_ENDINGS}
        tensors = {tensor.name: tensor for tensor in network.tensors}
        self.layers = [tensors[name] for name in network.by_name]
        self._channels = [tensor.shape[network.by_name[tensor.name].output_dim] for tensor in self.layers]
        self._widths = np.array([8.0 * ITEM_BYTES[tensor.dtype] for tensor in self.layers])
        self.others = [t for t in network.tensors if t.name not in network.by_name]
        self._headers = {(rounded, usual): self._header_bytes(rounded, usual) for rounded in (0, 1) for usual in (0, 1)}

    def _header_bytes(self, rounded: int, usual: int) -> int:
        """Bytes in front of the coded ones: at most, or as they usually are."""
        records: list[Record] = []
        for tensor in self._network.tensors:
            path = tensor.name.removesuffix(NORM_ENDINGS[0])
            if tensor.name in self._inside:
                if path in self._folded:
                    forms = replace(EXACT_FORM, top=127 if usual else 255, nonzero=tensor.numel - (not usual))
                    records.append(Norm(path, tensor.shape, forms, forms, 100 if usual else 2**31))
            else:
                records.append(self._largest_record(tensor, bool(rounded)))
        records += [Same(name, len(self._network.tensors)) for name in self._network.aliases]
        header = len(write_header(records)) if usual else most_header_bytes(records)
        return 8 + len(varint(header)) + header + len(varint(MOST_LANES)) + 6

    def _largest_record(self, tensor: StoredTensor, rounded: bool) -> Record:
        if tensor.name in self._network.by_name and tensor.dtype in FLOAT_FORMS and rounded:
            dim = self._network.by_name[tensor.name].output_dim
            return Integers(tensor.name, tensor.shape, tensor.dtype, 16, tensor.numel, SCALE_FORM, dim)
        if tensor.dtype in FLOAT_FORMS:
            return Floats(
                tensor.name, tensor.shape, tensor.dtype, replace(EXACT_FORM, nonzero=max(tensor.numel - 1, 0))
            )
        return Constant(tensor.name, tensor.shape, tensor.dtype if tensor.dtype in DTYPES else "U8", 2**31)

    def other_bits(self, rounded: bool, numel: np.ndarray | None = None) -> np.ndarray:
        """Bits of all tensors but the prunable weights, at most (...,).

        Args:
            numel: elements left of `others` (..., others); all by default.
        """
        own = np.array([t.numel for t in self.others], float) if numel is None else np.asarray(numel, float)
        each = np.array([self._bits_of(tensor, rounded) for tensor in self.others])
        return place_bits(own, own, np.broadcast_to(each, own.shape)).sum(axis=-1)

    def _bits_of(self, tensor: StoredTensor, rounded: bool) -> float:
        """Of an element."""
        if tensor.name in self._inside:
            form = NORM_FORM if rounded else EXACT_FORM
            stored = tensor.name.endswith(NORM_ENDINGS[:2])
            return float(1 + form.distance + form.mantissa) if stored else 0.0
        if rounded and tensor.dtype == "F32" and len(tensor.shape) == 1 and tensor.parameter:
            return float(1 + VECTOR_FORM.distance + VECTOR_FORM.mantissa)
        return 8.0 * ITEM_BYTES[tensor.dtype]

    def bound(
        self, numel: np.ndarray, kept: np.ndarray, bits: np.ndarray, other_numel: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes that no file is larger than, whatever its values, float (...,).

        It never falls where a number grows.

        Args:
            numel, kept: elements left and not masked, of `layers` (..., n).
            bits: of their values (..., n), each 2 to 16, or 32.
            other_numel: elements left of `others`; all by default.
        """
        bits = np.broadcast_to(bits, np.shape(kept))
        values = np.where(bits < FLOAT_BITS, _looked_up(flat_value_bits, bits), self._widths)
        scale = 1.0 + SCALE_FORM.distance + SCALE_FORM.mantissa
        rounded, channels = self._rounded(kept, bits)
        others = np.where(rounded, self.other_bits(True, other_numel), self.other_bits(False, other_numel))
        header = np.where(rounded, self._headers[1, 0], self._headers[0, 0])
        return header + coded_bytes(place_bits(numel, kept, values).sum(axis=-1) + channels * scale + others)

    def predicted(
        self, numel: np.ndarray, kept: np.ndarray, bits: np.ndarray, other_numel: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes as trained weights have them, float (...,): `MARGIN` above the usual, and never above the bound."""
        bits = np.broadcast_to(bits, np.shape(kept))
        width = np.where(bits < FLOAT_BITS, 1, self._widths / FLOAT_BITS)
        values, dense = (_looked_up(table.__getitem__, bits) * width for table in (VALUE_BITS, DENSE_BITS))
        each = np.minimum(place_bits(numel, kept, values), dense * numel).sum(axis=-1)
        rounded, channels = self._rounded(kept, bits)
        norms = np.array([t.name in self._inside and t.name.endswith(NORM_ENDINGS[:2]) for t in self.others], float)
        own = np.array([t.numel for t in self.others], float) if other_numel is None else np.asarray(other_numel, float)
        saved = (own * norms).sum(axis=-1) * (1 + NORM_FORM.distance + NORM_FORM.mantissa - USUAL_NORM)
        others = np.where(rounded, self.other_bits(True, other_numel) - saved, self.other_bits(False, other_numel))
        header = np.where(rounded, self._headers[1, 1], self._headers[0, 1])
        usual = header + coded_bytes((each + channels * USUAL_SCALE + others) * MARGIN)
        return np.minimum(usual, self.bound(numel, kept, bits, other_numel))

    def _rounded(self, kept: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether any layer is rounded (...,), and how many scales there are at most (...,)."""
        rounded = bits < FLOAT_BITS
        return np.asarray(rounded.any(axis=-1)), (np.minimum(self._channels, kept) * rounded).sum(axis=-1)


def _looked_up(function: Callable[[int], float], bits: np.ndarray) -> np.ndarray:
    """A function of each of `bits`, called once for each that is there."""
    found = np.zeros(bits.shape)
    for own in np.unique(bits):
        found[bits == own] = function(int(own))
    return found


def bound_of(sizes: CodedSizes, network: Network, policy: PruningPolicy, bits: Mapping[str, int] | int) -> int:
    """`CodedSizes.bound` for a policy and bits by layer, or one for all."""
    return int(sizes.bound(*counts_of(sizes, network, policy, bits)))


def counts_of(
    sizes: CodedSizes, network: Network, policy: PruningPolicy, bits: Mapping[str, int] | int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a policy leaves, as `CodedSizes.bound` takes it: numel, kept, bits (n,), and the others' numel."""
    network.require(policy.sparsity)
    left = shapes_after(network, kept_units(network, policy.channel_requests()))
    masks, shapes = policy.mask_requests(), [left[tensor.name] for tensor in sizes.layers]
    masked = [
        masked_in(network.by_name[t.name], policy.granularity_of(t.name), shape, masks.get(t.name, 0.0))
        for t, shape in zip(sizes.layers, shapes, strict=True)
    ]
    numel = np.array(list(map(prod, shapes)))
    of_layers: Sequence[int] = [bits if isinstance(bits, int) else bits.get(t.name, FLOAT_BITS) for t in sizes.layers]
    others = np.array([prod(left[tensor.name]) for tensor in sizes.others])
    return numel, numel - np.array(masked, dtype=int), np.array(of_layers), others
