"""The global random generators that the user's code may draw from: PyTorch's, NumPy's and Python's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import bit_generator

ENTROPY = "randbits"
"""Where NumPy takes the seed of a generator that is given none."""


class OwnDraws:
    """Random state apart from the global one, for code that runs piece by piece between other code that draws.

    A NumPy generator made inside without a seed, by `default_rng()`, gets one that follows from this seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed: int | None = seed
        self._states: Any = None
        self._entropy = random.Random(seed)

    @contextmanager
    def drawn_from(self) -> Iterator[None]:
        """Inside, global generators go on from where they were at the end of the last time; afterwards they are back in
        their former state."""
        before, entropy = (random.getstate(), np.random.get_state()), getattr(bit_generator, ENTROPY, None)
        with torch.random.fork_rng(devices=[]):
            try:
                self._enter()
                if entropy is not None:
                    setattr(bit_generator, ENTROPY, self._entropy.getrandbits)
                yield
            finally:
                self._states = random.getstate(), np.random.get_state(), torch.get_rng_state()
                if entropy is not None:
                    setattr(bit_generator, ENTROPY, entropy)
                random.setstate(before[0])
                np.random.set_state(before[1])

    def _enter(self) -> None:
        if self._seed is not None:
            random.seed(self._seed)
            np.random.seed(self._seed % 2**32)
            torch.default_generator.manual_seed(self._seed)
            self._seed = None
        else:
            random.setstate(self._states[0])
            np.random.set_state(self._states[1])
            torch.set_rng_state(self._states[2])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all three generators inside this context; afterwards they are back in their former state.

    A NumPy generator made inside without a seed, by `default_rng()`, gets one that follows from this seed.
    """
    with OwnDraws(seed).drawn_from():
        yield


def seed_of(*parts: int) -> int:
    """One seed that follows from several numbers, such as a trial's and an epoch's: 63 bits."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
