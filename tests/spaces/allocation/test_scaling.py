"""One policy at other sparsities, against sums over layers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.allocation.scaling import mean_sparsity, scaled
from spaces.network import Layer, Network
from spaces.policy import PruningPolicy

SIZES = {"a": 900, "b": 40, "c": 7, "d": 5000}
NETWORK = Network((), tuple(Layer(name, "linear", (size, 1), 1) for name, size in SIZES.items()))
SHARES = st.dictionaries(st.sampled_from(sorted(SIZES)), st.floats(0.01, 0.98), min_size=1)


def logit(share: float) -> float:
    return math.log(share / (1 - share))


@given(SHARES, st.floats(0.02, 0.97))
def test_one_shift_reaches_the_sparsity(shares, sparsity):
    found = scaled(NETWORK, PruningPolicy({**shares, "d": shares.get("d", 0.0)}), sparsity).sparsity
    asked = sum(SIZES[name] * share for name, share in found.items())
    assert asked / sum(SIZES[name] for name in shares) == pytest.approx(sparsity, abs=1e-9)
    shifts = [logit(found[name]) - logit(share) for name, share in shares.items()]
    assert max(shifts) - min(shifts) < 1e-6
    assert found["d"] == 0 or "d" in shares


def test_a_uniform_policy_is_scaled_exactly_and_all_else_stays():
    policy = PruningPolicy(dict.fromkeys("abc", 0.6), "kernel", criterion="magnitude-l1", schedule="iterative")
    assert scaled(NETWORK, policy, 0.3) == PruningPolicy(
        dict.fromkeys("abc", 0.3), "kernel", criterion="magnitude-l1", schedule="iterative"
    )


def test_a_removal_counts_with_the_mask_on_what_stays():
    policy = PruningPolicy({"a": 0.5, "b": 0.25}, removal={"a": 0.2})
    assert mean_sparsity(NETWORK, policy) == pytest.approx((900 * 0.6 + 40 * 0.25) / 940)
    found = scaled(NETWORK, policy, 0.8)
    a = 1 - (1 - found.sparsity["a"]) * (1 - found.removal["a"])
    assert (900 * a + 40 * found.sparsity["b"]) / 940 == pytest.approx(0.8, abs=1e-9)
    assert found.removal["a"] < found.sparsity["a"]


@pytest.mark.parametrize(
    ("shares", "sparsity", "said"),
    [
        ({"a": 0.0}, 0.5, "removes nothing"),
        ({"a": 0.5}, 0.0, "0 < sparsity"),
        ({"a": 0.5}, 1.0, "sparsity < 1"),
        ({"a": 0.5, "e": 0.0}, 0.5, "unknown layer 'e': did you mean"),
    ],
)
def test_what_cannot_be_scaled_is_said(shares, sparsity, said):
    with pytest.raises(ValueError, match=said):
        scaled(NETWORK, PruningPolicy(shares), sparsity)
