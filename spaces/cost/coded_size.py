"""Bytes of the sparse file, version 2, before anything is trained: a bound that holds for any values, and a prediction.

Every tensor can be coded flat: each place as likely kept as any other, each value as likely as any other. What that
takes follows from counts, and the writer takes nothing larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spaces.bits import BITS, FLOAT_BITS
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
from spaces.network import ITEM_BYTES, Network, StoredTensor, once_per_network

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
VALUE_BITS = {2: 0.9, 3: 2.3, 4: 3.4, 5: 4.45, 6: 5.47, 7: 6.49, 8: 7.5, 16: 15.7, 32: 27.4}
DENSE_BITS = {2: 1.57, 3: 2.64, 4: 3.57, 5: 4.55, 6: 5.54, 7: 6.53, 8: 7.54, 16: 15.7, 32: 27.4}
"""Bits a value kept takes in trained networks, its sign among them, and a weight of a layer that is not pruned: some
percent more than usual, so that few files are larger than predicted, and those by little. None is more than flat coding
takes, so that no prediction is above the bound."""
USUAL_SCALE, USUAL_NORM = 5.0, 7.5
"""Bits of a scale, and of a gain or a shift, likewise."""


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


def likeliest_share(value_bits: np.ndarray) -> np.ndarray:
    """The share of elements that are kept where a tensor takes most, if each value takes so many bits."""
    return 1 / (1 + 2.0 ** -np.asarray(value_bits, float))


def place_bits(numel: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Bits of the places alone where a share of the elements is kept, float of their shape.

    >>> place_bits(np.array([1000, 1000]), np.array([0.25, 0.0])).round().tolist()
    [811.0, 0.0]
    """
    odds = np.minimum(np.maximum(share, LEAST_ODDS), 1 - LEAST_ODDS)
    one, zero = np.log2(odds), np.log2(1 - odds)
    return (STATE_COST - COARSENESS * (zero + share * (one - zero))) * numel


def full_bits(value_bits: np.ndarray) -> np.ndarray:
    """Bits of an element, its place among them, where most are kept and each value takes so many bits: the most that
    any share takes."""
    share = likeliest_share(value_bits)
    return place_bits(np.array(1), share) + share * value_bits


def coded_bytes(bits: np.ndarray) -> np.ndarray:
    """Bytes at most of decisions and plain bits of so many bits, with the coder's states; float, of their shape."""
    lanes = np.minimum(np.floor(bits / LANE_BITS), MOST_LANES)
    lanes = np.where(lanes < LEAST_LANES, 1, lanes)
    return np.floor(bits / 8) + LANE_BYTES * lanes + 2


_NAN = float("nan")
_BY_BITS = np.array(
    [
        [function(bits) if bits in BITS else _NAN for bits in range(FLOAT_BITS + 1)]
        for function in (flat_value_bits, VALUE_BITS.__getitem__, DENSE_BITS.__getitem__)
    ]
)
"""Bits of a value at most, as usual, and of each weight of a layer that is not pruned (3, 33), by its `bits`."""
_MOST_SCALE = 1.0 + SCALE_FORM.distance + SCALE_FORM.mantissa


class CodedSizes:
    """Bytes of one network's version-2 files, for any counts and bits.

    Headers are those of the dense network: removed channels shorten the numbers in them by a few bytes.

    Attributes:
        layers: the prunable weights that have elements, as stored; the order of all arrays here (n,).
        others: all further tensors.
        channels: output channels of `layers` in the dense network (n,), float.
        per_other: bits of an element of each of `others` (2, 2, others): at most or as usual, in a file of floats or
            of rounded weights.
    """

    def __init__(self, network: Network) -> None:
        self.layers = tuple(t for t in network.tensors if t.name in network.by_name and t.numel)
        self.others = tuple(t for t in network.tensors if t.name not in network.by_name)
        dims = [network.by_name[tensor.name].output_dim for tensor in self.layers]
        self.channels = np.array([t.shape[dim] for t, dim in zip(self.layers, dims, strict=True)], float)
        self._widths = np.array([8.0 * ITEM_BYTES[tensor.dtype] for tensor in self.layers])
        self.per_other = np.stack([_bits_of_others(network, self.others, rounded) for rounded in (False, True)], 1)
        sizes = [[_header_bytes(network, rounded, usual) for rounded in (False, True)] for usual in (False, True)]
        self._headers = np.array(sizes, float)

    def at(self, bits: np.ndarray, bound: bool = False) -> SizesAtBits:
        """What the bits of the layers' values (..., n) decide: of predictions, or of the bound.

        Raises:
            ValueError: bits that no policy can have.
        """
        bits = np.asarray(bits)
        if not np.isin(bits, BITS).all():
            wrong = next(value for value in bits.flat if value not in BITS)
            raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {wrong}")
        is_rounded = bits < FLOAT_BITS
        flat, usual, dense = _BY_BITS[:, bits] * np.where(is_rounded, 1.0, self._widths / FLOAT_BITS)
        values, most = (flat, full_bits(flat)) if bound else (usual, dense)
        header = self._headers[int(not bound), is_rounded.any(axis=-1).astype(int)]
        scales = is_rounded * (_MOST_SCALE if bound else USUAL_SCALE)
        return SizesAtBits(values, likeliest_share(values), most, scales, header)

    def bound(
        self, numel: np.ndarray, kept: np.ndarray, bits: np.ndarray, other_numel: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes that no file is larger than, whatever its values, float (...,).

        It never falls where a number grows.

        Args:
            numel, kept: elements left and not masked, of `layers` (..., n).
            bits: of their values (..., n), each one of `BITS`.
            other_numel: elements left of `others` (..., others); all by default.
        """
        return self._bytes(numel, kept, bits, other_numel, bound=True)

    def predicted(
        self, numel: np.ndarray, kept: np.ndarray, bits: np.ndarray, other_numel: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes as trained weights have them, and some percent more, float (...,); never above the bound."""
        return self._bytes(numel, kept, bits, other_numel, bound=False)

    def _bytes(
        self, numel: np.ndarray, kept: np.ndarray, bits: np.ndarray, other_numel: np.ndarray | None, bound: bool
    ) -> np.ndarray:
        own = np.broadcast_to(bits, np.shape(kept))
        others = np.array([tensor.numel for tensor in self.others]) if other_numel is None else other_numel
        per_other = self.per_other[int(not bound), (own < FLOAT_BITS).any(axis=-1).astype(int)]
        found = self.at(own, bound).bytes(np.maximum(numel, 1), kept, self.channels, (per_other * others).sum(axis=-1))
        return np.asarray(found)


@dataclass(frozen=True)
class SizesAtBits:
    """File sizes of one network at given bits: predictions, or the bound.

    Attributes:
        values: bits of a value that is kept (..., n).
        likeliest: from which share that is kept a layer takes as much as if nothing were removed (..., n).
        most: bits of an element then (..., n).
        scales: bits of a scale, 0 where values are floats (..., n).
        header: bytes in front of the coded ones (...,).
    """

    values: np.ndarray
    likeliest: np.ndarray
    most: np.ndarray
    scales: np.ndarray
    header: np.ndarray

    def bytes(self, numel: np.ndarray, kept: np.ndarray, channels: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Whole numbers as floats (...,).

        Args:
            numel, kept, channels: elements left, at least 1, those not masked, and output channels left of the layers
                (..., n).
            others: bits of all further tensors (...,).
        """
        bits = self.layer_bits(numel, kept) + np.minimum(channels, kept) * self.scales
        total = bits @ np.ones(bits.shape[-1])  # the fastest sum here
        return self.header + coded_bytes(total + others)

    def layer_bits(self, numel: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Bits of places and values of each layer (..., n), of elements left, at least 1, and those not masked."""
        share, most = kept / numel, self.most * numel
        bits = np.minimum(place_bits(numel, share) + kept * self.values, most)
        return np.where(share < self.likeliest, bits, most)


@once_per_network
def coded_sizes_of(network: Network) -> CodedSizes:
    """The coded sizes of this very object."""
    return CodedSizes(network)


def _inside_norms(network: Network) -> set[str]:
    return {path + ending for path in network.folded_norms for ending in NORM_ENDINGS}


def _bits_of_others(network: Network, others: Sequence[StoredTensor], rounded: bool) -> np.ndarray:
    """Bits of an element of each of these tensors (2, others): at most, and as usual."""
    inside, found = _inside_norms(network), []
    for tensor in others:
        if tensor.name in inside and not tensor.name.endswith(NORM_ENDINGS[:2]):
            found.append((0.0, 0.0))
            continue
        form = None
        if tensor.name in inside:
            form = NORM_FORM if rounded else EXACT_FORM
        elif rounded and tensor.dtype == "F32" and len(tensor.shape) == 1 and tensor.parameter:
            form = VECTOR_FORM
        width = 1.0 + form.distance + form.mantissa if form else 8.0 * ITEM_BYTES[tensor.dtype]
        most = float(full_bits(np.array(width)))
        found.append((most, most - (width - USUAL_NORM if form == NORM_FORM else 0.0)))
    return np.array(found, float).reshape(-1, 2).T


def _header_bytes(network: Network, rounded: bool, usual: bool) -> int:
    """Bytes in front of the coded ones: at most, or as they usually are."""
    records: list[Record] = []
    inside, as_one = _inside_norms(network), _norms_of_one_record(network)
    inside_one = {path + ending for path in as_one for ending in NORM_ENDINGS}
    for tensor in network.tensors:
        name, path = tensor.name, tensor.name.removesuffix(NORM_ENDINGS[0])
        form = replace(EXACT_FORM, top=127 if usual else 255, nonzero=tensor.numel - (not usual))
        if path in as_one:
            records.append(Norm(path, tensor.shape, form, form, 100 if usual else 2**31))
        elif name not in inside:
            records.append(_largest_record(network, tensor, rounded))
        elif name not in inside_one and name.endswith(NORM_ENDINGS[:2]):
            records.append(Floats(name, tensor.shape, tensor.dtype, form))
        elif name not in inside_one:
            records.append(Constant(name, tensor.shape, tensor.dtype, 1))
    records += [Same(name, len(network.tensors)) for name in network.aliases]
    header = len(write_header(records)) if usual else most_header_bytes(records)
    return 8 + len(varint(header)) + header + len(varint(MOST_LANES)) + 6


def _norms_of_one_record(network: Network) -> set[str]:
    """Folded norms whose five tensors follow each other, which the file needs to store them as one."""
    names, folded = [tensor.name for tensor in network.tensors], set(network.folded_norms)
    found = set()
    for place, name in enumerate(names):
        path = name.removesuffix(NORM_ENDINGS[0])
        own = [path + ending for ending in NORM_ENDINGS]
        if path in folded and names[place : place + len(own)] == own:
            found.add(path)
    return found


def _largest_record(network: Network, tensor: StoredTensor, rounded: bool) -> Record:
    if tensor.name in network.by_name and tensor.dtype in FLOAT_FORMS and rounded:
        dim = network.by_name[tensor.name].output_dim
        return Integers(tensor.name, tensor.shape, tensor.dtype, 16, tensor.numel, SCALE_FORM, dim)
    if tensor.dtype in FLOAT_FORMS:
        form = replace(EXACT_FORM, nonzero=max(tensor.numel - 1, 0))
        return Floats(tensor.name, tensor.shape, tensor.dtype, form)
    return Constant(tensor.name, tensor.shape, tensor.dtype if tensor.dtype in DTYPES else "U8", 2**31)
