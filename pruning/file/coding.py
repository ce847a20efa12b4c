"""Tensors through the coder: floats and rounded weights, written and read by the same steps.

A tensor is coded as expected by what came before it, or flat where that is smaller: no file is larger than its bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from pruning.file.floats import form_of, magnitude, put_together, take_apart
from pruning.file.plain_bits import PlainReader, PlainWriter
from pruning.file.probabilities import bits_of
from pruning.file.rans import Decoder, encode, lanes_for
from pruning.file.tensor_model import (
    Memory,
    Recorder,
    code_flat_places,
    code_flat_values,
    code_places,
    code_values,
)
from spaces.cost.coded_header import FloatForm

WEIGHTS, SCALES, GAINS, SHIFTS, INTEGERS = "weights", "scales", "gains", "shifts", "integers"
"""Kinds of tensors that learn from one another."""
MOST_ELEMENTS = 2**29
"""In a coded tensor, so that products of counts stay below 2^63."""


def as_grid(shape: Sequence[int]) -> tuple[int, int, int]:
    """Rows, columns and positions of a tensor.

    Raises:
        ValueError: more elements than counts have room for.
    """
    if prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"a tensor of {prod(shape)} elements is above the {MOST_ELEMENTS} that can be coded")
    rows, columns = (*shape, 1, 1)[:2]
    return rows, columns, int(np.prod(shape[2:], dtype=np.int64))


@dataclass
class CodedWriter:
    """Collects the decisions and plain bits of a file."""

    recorder: Recorder = field(default_factory=Recorder)
    memory: Memory = field(default_factory=Memory)
    plain: PlainWriter = field(default_factory=PlainWriter)

    def floats(self, patterns: np.ndarray, dtype: str, kind: str, kept: np.ndarray | None = None) -> FloatForm:
        """Append floats of any shape, given by their bits.

        Args:
            kept: which are stored (shape of `patterns`), where the reader knows; else it is told.
        """
        grid = patterns.reshape(as_grid(patterns.shape))
        stored = (magnitude(grid, dtype) != 0) if kept is None else kept.reshape(grid.shape)
        form = form_of(grid[stored], dtype)
        steps, mantissas = np.zeros(grid.shape, np.int64), np.zeros(grid.shape, np.int64)
        steps[stored], mantissas[stored] = take_apart(grid[stored], dtype, form)
        count, flat, learnt, memory = int(np.count_nonzero(stored)), Recorder(), Recorder(), self.memory.copy()
        if kept is None:
            code_flat_places(flat, grid.shape, count, stored)
            code_places(learnt, grid.shape, count, stored)
        code_values(learnt, stored, 1 << form.distance, memory, (kind, dtype), steps)
        is_flat = flat.bits + count * (1 + form.distance) < learnt.bits
        self.recorder.extend(flat if is_flat else learnt)
        if is_flat:
            negative, distance = (steps[stored] < 0).astype(np.int64), np.abs(steps[stored]) - 1
            self.plain.put(negative | distance << 1, 1 + form.distance)
        else:
            self.memory = memory
        self.plain.put(mantissas[stored], form.mantissa)
        return replace(form, nonzero=count, flat=is_flat)

    def integers(self, values: np.ndarray, bits: int) -> bool:
        """Append whole numbers of any shape; whether they are flat."""
        grid = values.astype(np.int64).reshape(as_grid(values.shape))
        kept, largest = grid != 0, 2 ** (bits - 1) - 1
        count, flat, learnt, memory = int(np.count_nonzero(kept)), Recorder(), Recorder(), self.memory.copy()
        code_flat_places(flat, grid.shape, count, kept)
        code_flat_values(flat, kept, largest, grid)
        code_places(learnt, grid.shape, count, kept)
        code_values(learnt, kept, largest, memory, (INTEGERS, bits), grid)
        is_flat = flat.bits < learnt.bits
        self.recorder.extend(flat if is_flat else learnt)
        self.memory = self.memory if is_flat else memory
        return is_flat

    def coded(self) -> tuple[int, bytes]:
        """The number of states, and the bytes of all decisions; none of either where nothing was decided."""
        chances, bits = self.recorder.decisions
        if not len(bits):
            return 0, b""
        lanes = lanes_for(bits_of(chances, bits))
        return lanes, encode(chances, bits, lanes)


class _Reading:
    """A port that reads."""

    def __init__(self, decoder: Decoder | None) -> None:
        self._decoder = decoder

    def code(self, chances: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
        if self._decoder is None:
            raise ValueError("the coded bytes are missing")
        return self._decoder.bits(chances)


class CodedReader:
    """Gives back, in the same order, what a `CodedWriter` collected; raises `ValueError` for damage it notices."""

    def __init__(self, lanes: int, coded: bytes, plain: bytes) -> None:
        self._decoder = Decoder(coded, lanes) if lanes else None
        if not lanes and coded:
            raise ValueError("coded bytes without states")
        self._port, self._memory, self._plain = _Reading(self._decoder), Memory(), PlainReader(plain)

    def floats(
        self, shape: Sequence[int], dtype: str, form: FloatForm, kind: str, kept: np.ndarray | None = None
    ) -> np.ndarray:
        """The bits of floats, of `shape`."""
        grid = as_grid(shape)
        if kept is None:
            code = code_flat_places if form.flat else code_places
            stored = code(self._port, grid, form.nonzero or 0, None)
        else:
            stored = kept.reshape(grid)
        count = int(np.count_nonzero(stored))
        _expect(count, form.nonzero)
        if form.flat:
            numbers = self._plain.take(count, 1 + form.distance)
            own = np.where(numbers & 1, -1, 1) * ((numbers >> 1) + 1)
        else:
            own = code_values(self._port, stored, 1 << form.distance, self._memory, (kind, dtype), None)[stored]
        patterns = put_together(own, self._plain.take(count, form.mantissa), dtype, form)
        found = np.zeros(grid, patterns.dtype)
        found[stored] = patterns
        return found.reshape(shape)

    def integers(self, shape: Sequence[int], bits: int, nonzero: int, flat: bool) -> np.ndarray:
        """Whole numbers, int64 of `shape`."""
        grid, largest = as_grid(shape), 2 ** (bits - 1) - 1
        if flat:
            kept = code_flat_places(self._port, grid, nonzero, None)
            _expect(int(np.count_nonzero(kept)), nonzero)
            return code_flat_values(self._port, kept, largest, None).reshape(shape)
        kept = code_places(self._port, grid, nonzero, None)
        _expect(int(np.count_nonzero(kept)), nonzero)
        return code_values(self._port, kept, largest, self._memory, (INTEGERS, bits), None).reshape(shape)

    def raw(self, count: int) -> bytes:
        """Bytes that are stored as they are."""
        return self._plain.take(count, 8).astype(np.uint8).tobytes()

    def end(self) -> None:
        """Raise `ValueError` unless everything was read."""
        if self._decoder:
            self._decoder.end()
        self._plain.end()


def _expect(found: int, promised: int | None) -> None:
    if promised is not None and found != promised:
        raise ValueError(f"it promises {promised} values, its places are {found}")
