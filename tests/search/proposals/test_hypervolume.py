"""Hypervolumes against counted unit cells, ranks against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.proposals.hypervolume import DominatedSpace, hypervolume, non_dominated, ranks

SIDE = 6
POINTS = st.lists(st.tuples(*[st.integers(0, SIDE)] * 3), max_size=7)


def counted(points: list[tuple[int, int, int]]) -> int:
    """Unit cells of a cube of side SIDE with a point at or below their lower corner."""
    cells = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return sum(any((cell >= point).all() for point in np.array(points)) for cell in cells) if points else 0


class TestVolume:
    @given(points=POINTS)
    def test_equals_the_counted_cells(self, points):
        assert hypervolume(np.array(points, dtype=float), np.full(3, float(SIDE))) == pytest.approx(counted(points))

    @given(points=POINTS, new=st.tuples(*[st.integers(0, SIDE)] * 3))
    def test_improvement_is_the_difference_of_two_volumes(self, points, new):
        reference = np.full(3, float(SIDE))
        space = DominatedSpace(np.array(points, dtype=float), reference)
        error, size, speed = (np.array([float(value)]) for value in new)
        gained = space.improvement(error[:, None], size, speed)[0, 0]
        assert gained == pytest.approx(counted([*points, new]) - counted(points))

    def test_several_candidates_and_errors_at_once(self):
        space = DominatedSpace(np.array([[1.0, 2.0, 3.0]]), np.array([4.0, 4.0, 4.0]))
        gained = space.improvement(np.array([[0.0, 5.0], [1.0, 3.0]]), np.array([2.0, 1.0]), np.array([3.0, 0.0]))
        assert gained.tolist() == [[2.0, 0.0], [36.0 - 6.0, 12.0 - 2.0]]

    def test_no_points_and_points_beyond_the_reference_count_for_nothing(self):
        assert hypervolume(np.empty((0, 3)), np.ones(3)) == 0.0
        assert hypervolume(np.array([[0.0, 0.0, 2.0]]), np.ones(3)) == 0.0


class TestRanks:
    @given(points=st.lists(st.tuples(*[st.integers(0, 4)] * 2), min_size=1, max_size=9))
    def test_peeling_fronts(self, points):
        rows = np.array(points, dtype=float)
        found, left, rank = ranks(rows), np.arange(len(rows)), 0
        while len(left):
            front = non_dominated(rows[left])
            assert set(found[left[front]]) == {rank}
            left, rank = left[~front], rank + 1

    def test_only_the_first_fronts_if_no_more_are_asked_for(self):
        chain = np.array([[3.0, 3.0], [0.0, 0.0], [2.0, 2.0], [1.0, 1.0]])
        assert ranks(chain, 2).tolist() == [4, 0, 4, 1]
