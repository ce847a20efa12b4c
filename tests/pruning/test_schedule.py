"""The ramp against exact fractions, and its laws for every exponent."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning import sparsity_at
from pruning.schedule import cycle_at, mask_updates, progress_at, ramp_end
from spaces import SCHEDULES, Schedule

EXPONENTS = [0.5, 1, 2, 2.5, 3, 4, 7.5]


@pytest.mark.parametrize("exponent", [1, 2, 3, 4])
@pytest.mark.parametrize(("start", "end"), [(0, 100), (13, 90)])
@pytest.mark.parametrize(("initial", "final"), [(0.0, 0.75), (0.2, 0.9), (0.6, 0.1)])
def test_polynomial_in_exact_fractions(exponent, start, end, initial, final):
    for step in range(-5, 110):
        p = min(max(Fraction(step - start, end - start), Fraction(0)), Fraction(1))
        exact = Fraction(final) + (Fraction(initial) - Fraction(final)) * (1 - p) ** exponent
        got = sparsity_at(step, start, end, initial, final, exponent)
        assert got == pytest.approx(float(exact), abs=1e-15)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("initial", [0.0, 0.25])
def test_ends_are_exact_and_the_way_is_monotone_and_real(exponent, initial):
    values = [sparsity_at(step, 3, 17, initial, 0.9, exponent) for step in range(25)]
    assert all(type(value) is float for value in values)
    assert values[:4] == [initial] * 4
    assert values[17:] == [0.9] * 8
    assert all(a < b for a, b in pairwise(values[3:18]))


def test_higher_exponents_run_ahead():
    at_a_quarter = [sparsity_at(25, 0, 100, 0.0, 0.75, e) for e in EXPONENTS]
    assert at_a_quarter == sorted(at_a_quarter)
    assert sparsity_at(25, 0, 100, 0.0, 0.75, 1) == 0.1875


def test_jump():
    assert [sparsity_at(s, 5, 5, 0.25, 0.75) for s in (4, 5, 6)] == [0.25, 0.75, 0.75]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exponent": 0}, "exponent must be finite and > 0, got 0; 1 is linear, 3 cubic"),
        ({"exponent": -1}, "got -1"),
        ({"exponent": math.nan}, "got nan"),
        ({"exponent": math.inf}, "got inf"),
        ({"start": 5, "end": 4}, "end must not come before start, got start=5, end=4"),
        ({"final": 1.0}, r"final must satisfy 0 <= final < 1, got 1\.0"),
        ({"initial": -0.1}, r"initial must satisfy 0 <= initial < 1, got -0\.1"),
        ({"final": math.nan}, "final must satisfy"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sparsity_at(1, **options)


@given(st.integers(1, 5000), st.floats(0.001, 1), st.floats(0.1, 20))
def test_progress_is_the_same_ramp_and_reaches_one(steps, ramp, exponent):
    schedule = Schedule("polynomial", exponent, ramp)
    end = ramp_end(steps, schedule)
    assert 1 <= end <= steps
    assert end - 1 < Fraction(ramp) * steps + Fraction(1, 10**9)
    assert end >= Fraction(ramp) * steps - Fraction(1, 10**9)
    for step in {0, 1, end // 3, end - 1, end, end + 1, steps}:
        ratio = sparsity_at(step, 0, end, 0.0, 0.75, exponent) / 0.75
        assert progress_at(step, steps, schedule) == pytest.approx(ratio, abs=1e-12)
    assert progress_at(end, steps, schedule) == 1.0
    assert progress_at(-3, steps, schedule) == progress_at(0, steps, schedule) == 0.0


def test_one_shot_is_due_at_once():
    schedule = Schedule("one-shot")
    assert ramp_end(100, schedule) == 0
    assert [progress_at(step, 100, schedule) for step in (0, 1, 99)] == [1.0, 1.0, 1.0]


def test_default_ramp_is_three_fifths():
    assert ramp_end(100, Schedule()) == 60
    assert ramp_end(7, Schedule()) == 5


@given(
    steps=st.integers(1, 400), kind=st.sampled_from(SCHEDULES), exponent=st.floats(0.1, 9), ramp=st.floats(0.3, 1),
    start=st.floats(0, 0.29), interval=st.integers(0, 50), rounds=st.integers(1, 7),
)  # fmt: skip
def test_updates_rise_to_one_whatever_divides_what(steps, kind, exponent, ramp, start, interval, rounds):
    schedule = Schedule(kind, exponent, ramp, start, interval, rounds)
    updates = mask_updates(steps, schedule)
    assert list(updates) == sorted(updates) and 0 <= min(updates) <= max(updates) <= steps
    assert max(updates) == ramp_end(steps, schedule)
    shares = list(updates.values())
    assert shares[-1] == 1.0 and shares == sorted(shares) and shares[0] >= 0
    for step, share in updates.items():
        assert progress_at(step, steps, schedule) == pytest.approx(share, abs=1e-12)


def test_a_ramp_with_start_and_interval_by_hand():
    schedule = Schedule("polynomial", 2.0, ramp=0.5, start=0.1, interval=3)
    expected = {10: 0, 13: 1 - (37 / 40) ** 2, 16: 1 - (34 / 40) ** 2}
    updates = mask_updates(100, schedule)
    assert list(updates) == [*range(10, 50, 3), 50]
    assert {step: updates[step] for step in expected} == pytest.approx(expected)


def test_rounds_by_hand():
    """Ten steps in three rounds of 3, 3 and 4; each has a learning rate cycle of its own."""
    schedule = Schedule("iterative", 2.0, rounds=3)
    assert mask_updates(10, schedule) == pytest.approx({0: 1 - (2 / 3) ** 2, 3: 1 - (1 / 3) ** 2, 6: 1.0})
    cycles = [cycle_at(step, 10, schedule) for step in range(10)]
    assert cycles == [(0, 3), (1, 3), (2, 3), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4)]
    assert cycle_at(7, 10, Schedule()) == cycle_at(7, 10, None) == (7, 10)


def test_more_rounds_than_steps_still_end_at_one():
    assert mask_updates(2, Schedule("iterative", 1.0, rounds=5))[1] == 1.0
    assert [cycle_at(step, 2, Schedule("iterative", rounds=5))[1] for step in range(2)] == [1, 1]
