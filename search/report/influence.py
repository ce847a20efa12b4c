"""Which choices of a study's trials mattered for accuracy, as far as its trials tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from search.records import COMPLETE, TrialRecord
from spaces.bits import FLOAT_BITS

FEWEST = 12
"""Complete trials below which nothing is said."""
SHUFFLES, QUANTILE = 400, 0.95
"""How often trials are shuffled to learn what chance would give, and the part of these that stays below `chance`."""
Value = str | float


@dataclass(frozen=True)
class Influence:
    """One choice.

    Attributes:
        name: a layer's, or a choice's in words.
        is_layer: whether it is the sparsity of a layer.
        trials: number of complete trials that have it.
        share: of the variance of the accuracy's ranks, after what size explains, that this choice alone explains, 0..1.
        chance: what 95 % of shuffled trials stay below.
        rises: whether accuracy rises with it; None of choices without an order.
    """

    name: str
    is_layer: bool
    trials: int
    share: float
    chance: float
    rises: bool | None

    @property
    def is_noise(self) -> bool:
        """Whether chance explains as much."""
        return self.share <= self.chance


def influences(records: Sequence[TrialRecord], metric: str = "encoded") -> list[Influence]:
    """Each choice that differs between complete trials, the largest share first; none of fewer than `FEWEST` trials.

    Accuracy, size and choices with an order count by their ranks. Choices are correlated, for a search made them: each
    is judged as if it were the only one.

    Args:
        metric: of the size, `encoded` or `nonzero`.
    """
    complete = [record for record in records if record.result.state == COMPLETE]
    if len(complete) < FEWEST:
        return []
    found = []
    for name, values, is_layer in _choices(complete):
        known = [place for place, value in enumerate(values) if value is not None]
        own = [value for value in values if value is not None]
        if len(known) < FEWEST or len({*own}) < 2:
            continue
        measured = [complete[place].result.measured for place in known]
        accuracy = np.array([one.accuracy for one in measured])
        sizes = np.array([one.shares.of(metric) for one in measured])
        if judged := _explained(accuracy, sizes, own):
            found.append(Influence(name, is_layer, len(known), *judged))
    return sorted(found, key=lambda one: -one.share)


def _choices(records: Sequence[TrialRecord]) -> list[tuple[str, list[Value | None], bool]]:
    """Name, value of every trial (None where it has none), and whether it is of a layer."""
    policies, results = [record.policy for record in records], [record.result for record in records]
    schedules = [policy.schedule for policy in policies]
    own: list[tuple[str, list[Value | None], bool]] = [
        ("granularity", [policy.granularity_label for policy in policies], False),
        ("bits", [_mean_bits(policy.bits, record) for policy, record in zip(policies, records, strict=True)], False),
        ("schedule", [schedule.kind for schedule in schedules], False),
        ("exponent of the schedule", [None if "exponent" in s.idle else s.exponent for s in schedules], False),
        ("learning rate", [result.rate for result in results], False),
    ]
    layers = dict.fromkeys(layer for result in results for layer in result.achieved)
    return own + [(layer, [result.achieved.get(layer) for result in results], True) for layer in layers]


def _mean_bits(bits: int | Mapping[str, int], record: TrialRecord) -> float:
    """Over the layers, each as much as any other."""
    if not isinstance(bits, Mapping):
        return bits
    layers = record.result.achieved or bits
    return float(np.mean([bits.get(layer, FLOAT_BITS) for layer in layers]))


def _explained(
    accuracy: np.ndarray, sizes: np.ndarray, values: Sequence[Value]
) -> tuple[float, float, bool | None] | None:
    """Share, chance and direction; None where size, or nothing, tells all."""
    count = len(accuracy)
    known = np.linalg.qr(np.column_stack([np.ones(count), rankdata(sizes)]))[0]
    left = _without(known, rankdata(accuracy)[:, None])[:, 0]
    is_ordered = not isinstance(values[0], str)
    columns = rankdata(values)[:, None] if is_ordered else np.array([[v == one for one in {*values}] for v in values])
    basis, size, _ = np.linalg.svd(_without(known, columns.astype(float)), full_matrices=False)
    basis = basis[:, size > 1e-8 * count]
    total = float(left @ left)
    if not basis.shape[1] or total < 1e-8 * count:
        return None
    random = np.random.default_rng(0)
    shuffled = _without(known, np.array([random.permutation(left) for _ in range(SHUFFLES)]).T)
    shares = ((basis.T @ shuffled) ** 2).sum(axis=0) / (shuffled**2).sum(axis=0)
    share = float(((basis.T @ left) ** 2).sum() / total)
    rises = bool((_without(known, columns.astype(float))[:, 0] @ left) > 0) if is_ordered else None
    return share, float(np.quantile(shares, QUANTILE)), rises


def _without(known: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """What of the columns (n, k) is at right angles to an orthonormal basis (n, j)."""
    return columns - known @ (known.T @ columns)
