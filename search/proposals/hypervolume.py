"""Dominated hypervolume of (error, size, speed), and what points of uncertain error would add to it."""

from __future__ import annotations

import numpy as np


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Which rows of (n, k), all minimised, no other row beats.

    A row dominates another if it is nowhere larger and somewhere smaller; equal rows both stay. A row
    with NaN is never on the front and dominates nothing.
    """
    valid = ~np.isnan(points).any(axis=1)
    filled = np.where(valid[:, None], points, np.inf)
    not_larger = (filled[:, None, :] <= filled[None, :, :]).all(axis=2)
    smaller = (filled[:, None, :] < filled[None, :, :]).any(axis=2)
    return valid & ~(not_larger & smaller).any(axis=0)


def ranks(points: np.ndarray, fronts: int | None = None) -> np.ndarray:
    """Non-dominated rank (n,) of each row of `points` (n, k): 0 is the front, 1 the front without those, and so on.

    Only the first `fronts` are told apart, all by default; the rows of later ones have rank n.
    """
    points = np.asarray(points, dtype=float)
    left, result = np.arange(len(points)), np.full(len(points), len(points))
    for rank in range(len(points) if fronts is None else fronts):
        front = non_dominated(points[left])
        result[left[front]] = rank
        left = left[~front]
        if not len(left):
            break
    return result


class DominatedSpace:
    """The part of the box below a reference point that a set of points dominates; all three to be minimised.

    The plane of the two exact objectives is cut at every point's coordinates; above each rectangle the
    dominated part begins at the least error of the points that dominate it.

    Args:
        points: (n, 3) of (error, size, speed) in any units; those beyond the reference count for nothing.
        reference: (3,) worst values.
    """

    def __init__(self, points: np.ndarray, reference: np.ndarray) -> None:
        self.reference = np.asarray(reference, dtype=float)
        points = np.asarray(points, dtype=float).reshape(-1, 3)
        points = points[(points < self.reference).all(axis=1)]
        points = points[non_dominated(points)]
        worst_error, worst_size, worst_speed = self.reference
        self._sizes = np.unique(np.append(points[:, 1], worst_size))
        self._speeds = np.unique(np.append(points[:, 2], worst_speed))
        self._error = np.full((len(self._sizes) - 1, len(self._speeds) - 1), worst_error)
        for error, size, speed in points:
            corner = self._error[np.searchsorted(self._sizes, size) :, np.searchsorted(self._speeds, speed) :]
            np.minimum(corner, error, out=corner)

    @property
    def volume(self) -> float:
        """Dominated volume, in the product of the three units.

        >>> round(DominatedSpace(np.array([[0.1, 0.2, 0.5]]), np.array([0.5, 1.0, 1.0])).volume, 6)
        0.16
        """
        area = np.diff(self._sizes)[:, None] * np.diff(self._speeds)
        return float((area * (self.reference[0] - self._error)).sum())

    def improvement(self, error: np.ndarray, size: np.ndarray, speed: np.ndarray) -> np.ndarray:
        """Growth of the volume (p, k) by each of p points alone, for k possible errors of each.

        Args:
            error: (p, k).
            size, speed: (p,).
        """
        sizes, speeds = np.append(-np.inf, self._sizes), np.append(-np.inf, self._speeds)
        levels = np.full((len(sizes) - 1, len(speeds) - 1), self.reference[0])
        levels[1:, 1:] = self._error
        wide = np.maximum(sizes[1:] - np.maximum(sizes[:-1], size[:, None]), 0)
        deep = np.maximum(speeds[1:] - np.maximum(speeds[:-1], speed[:, None]), 0)
        found, starts = np.unique(np.sort(levels, axis=None), return_index=True)
        cells = (wide[:, :, None] * deep[:, None, :]).reshape(len(error), -1)
        areas = np.add.reduceat(cells[:, np.argsort(levels, axis=None, kind="stable")], starts, axis=1)
        return np.einsum("pl,plk->pk", areas, np.maximum(found[:, None] - error[:, None, :], 0))


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume dominated by `points` (n, 3) below `reference` (3,), all minimised; 0.0 for no points."""
    return DominatedSpace(points, reference).volume
