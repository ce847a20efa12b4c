"""The count rule: how many units a share comes to, of one weight or of arrays of them.

Every size, speed, mask and removal goes by these functions, so that what is planned is what is done.
"""

from __future__ import annotations

import numpy as np

from spaces.validation import check_sparsity


def removed_units(share: float | np.ndarray, units: int | np.ndarray) -> np.ndarray:
    """Units to remove: `floor(share * units + 0.5)`, but at least one unit stays.

    Args:
        share: removed, each in [0, 1).
        units: at least 0 each; of none, none go.

    Returns:
        Whole numbers as floats, of the arguments' common shape.

    >>> removed_units(np.array([0.75, 0.5, 0.99]), np.array([25, 5, 3])).tolist()
    [19.0, 3.0, 2.0]
    """
    return np.minimum(np.floor(share * units + 0.5), np.maximum(units - 1, 0))


def removed_by_pattern(share: float | np.ndarray, units: int | np.ndarray, keep: int | np.ndarray) -> np.ndarray:
    """Units to remove where a pattern keeps `keep` of them once anything goes: all others or none, whichever is nearer
    to the share; at a tie all others.

    >>> removed_by_pattern(np.array([0.24, 0.25, 0.9]), 4, 2).tolist()
    [0, 2, 2]
    """
    most = units - keep
    return np.where(2 * share * units >= most, most, 0)


def in_multiples(removed: np.ndarray, units: int | np.ndarray, multiple: int | np.ndarray) -> np.ndarray:
    """What is left of `removed` units where those that stay are rounded up to a multiple, at most to all `units`;
    whole numbers as floats.

    >>> in_multiples(np.array([3, 5, 0]), 10, 4).tolist()
    [2.0, 2.0, 0.0]
    """
    kept = np.ceil((units - removed) / multiple) * multiple
    return np.maximum(units - kept, 0)


def removed_count(sparsity: float, units: int) -> int:
    """Units to remove: `floor(sparsity * units + 0.5)`, but at least one unit stays.

    Raises:
        ValueError: a sparsity outside [0, 1), or no unit at all.

    >>> removed_count(0.75, 25), removed_count(0.5, 5), removed_count(0.99, 3)
    (19, 3, 2)
    """
    share = check_sparsity(sparsity)
    if units < 1:
        raise ValueError(f"nothing to prune: {units} units, need at least 1")
    return int(removed_units(share, units))
