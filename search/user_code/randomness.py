"""The global random generators that users' code draws from: PyTorch's, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import bit_generator

ENTROPY = "randbits"
"""Where NumPy takes seeds from for generators that are given none."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside; afterwards all three are where they were.

    NumPy's generators that are made inside without a seed, `default_rng()`, have one that follows from this.
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
