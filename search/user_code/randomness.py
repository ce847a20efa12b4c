"""The global random generators that the user's code may draw from: PyTorch's, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import bit_generator

ENTROPY = "randbits"
"""Where NumPy takes the seed of a generator that is given none."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all three generators inside this context; afterwards they are back in their former state.

    A NumPy generator made inside without a seed, by `default_rng()`, gets one that follows from this seed.
    """
    before = random.getstate(), np.random.get_state()
    entropy, seeds = getattr(bit_generator, ENTROPY, None), random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            if entropy is not None:
                setattr(bit_generator, ENTROPY, seeds.getrandbits)
            yield
        finally:
            if entropy is not None:
                setattr(bit_generator, ENTROPY, entropy)
            random.setstate(before[0])
            np.random.set_state(before[1])
