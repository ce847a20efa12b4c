"""Profiles: the file, and the damage read off it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces import Profile, ProfilePoint, RoundingPoint
from spaces.bits import BITS

GOLDEN = Path(__file__).parents[1] / "golden" / "profile-v1.json"
ROUNDED = GOLDEN.with_name("profile-v1-rounding.json")
GOLDEN_PROFILE = Profile(
    model="0123456789abcdef",
    examples=137,
    dense_loss=0.25,
    dense_accuracy=0.9375,
    points={
        "fine-grained": {
            "conv.weight": (ProfilePoint(0.3, 0.26, 0.93, 0.255, 0.9375), ProfilePoint(0.9, 2.5, 0.25, 1.5, 0.5)),
            "classifier.weight": (ProfilePoint(0.3, 0.25, 0.9375, 0.25, 0.9375),),
        },
        "channel": {"conv.weight": (ProfilePoint(0.3125, 0.5, 0.75, math.nan, 0.125),)},
    },
    seconds=1.5,
)

ROUNDED_PROFILE = replace(
    GOLDEN_PROFILE,
    rounding={
        "conv.weight": (RoundingPoint(8, 0.26, 0.93, 0.251, 0.9375), RoundingPoint(3, 1.5, 0.5, math.nan, 0.25)),
        "classifier.weight": (RoundingPoint(4, 0.25, 0.9375, 0.25, 0.9375),),
    },
)


def profile_of(losses: list[float], dense: float = 1.0) -> Profile:
    points = tuple(ProfilePoint((i + 1) / 10, -7.0, 0.5, loss, 0.5) for i, loss in enumerate(losses))
    return Profile("", 10, dense, 0.9, {"channel": {"w": points}}, 0.0)


def test_golden_file_of_version_1():
    assert GOLDEN_PROFILE.to_json() == GOLDEN.read_text()
    back = Profile.from_json(GOLDEN.read_text())
    assert back.points["fine-grained"] == GOLDEN_PROFILE.points["fine-grained"]
    assert repr(back) == repr(GOLDEN_PROFILE)  # NaN equals nothing, not even itself
    assert ROUNDED_PROFILE.to_json() == ROUNDED.read_text()
    assert repr(Profile.from_json(ROUNDED.read_text())) == repr(ROUNDED_PROFILE)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_survives_the_file_as_nan(loss):
    back = Profile.from_json(profile_of([2.0, loss]).to_json())
    assert math.isnan(back.points["channel"]["w"][1].recalibrated_loss)
    assert back.damage("channel", "w")[1].tolist() == [0.0, 1.0, 1.0]


def test_damage_by_hand():
    levels, damage = profile_of([0.5, 1.25, 1.125, 3.0]).damage("channel", "w")
    assert levels.tolist() == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert damage.tolist() == [0.0, 0.0, 0.25, 0.25, 2.0]


def rounded(losses: dict[int, float], dense: float = 1.0) -> Profile:
    points = tuple(RoundingPoint(bits, -7.0, 0.5, loss, 0.5) for bits, loss in losses.items())
    return Profile("", 10, dense, 0.9, {}, 0.0, rounding={"w": points})


def test_damage_of_rounding_by_hand():
    """Linear in 4^-bits: 5 bits lie a fifth of the way from 6 to 4, and 2 go on as 4 to 3 did."""
    profile = rounded({8: 0.5, 6: 1.5, 4: 2.75, 3: 2.0})
    assert [profile.rounding_damage("w", bits) for bits in (32, 8, 6, 4, 3)] == [0.0, 0.0, 0.5, 1.75, 1.75]
    assert profile.rounding_damage("w", 7) == pytest.approx(0.5 * 3 / 15)
    assert profile.rounding_damage("w", 5) == pytest.approx(0.5 + 1.25 * 3 / 15)
    assert rounded({4: 2.0, 3: 3.0}).rounding_damage("w", 2) == pytest.approx(2.0 + 4 * 1.0)
    assert rounded({8: 1.25}).rounding_damage("w", 7) == pytest.approx(1.0)


@given(
    st.dictionaries(st.sampled_from(BITS[1:]), st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1),
    st.floats(0, 10),
)
def test_damage_of_rounding_is_finite_zero_at_32_and_never_rises_with_bits(losses, dense):
    profile = rounded(dict(sorted(losses.items(), reverse=True)), dense)
    found = [profile.rounding_damage("w", bits) for bits in BITS]
    assert found[0] == 0
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()


def test_rounding_that_was_not_scanned():
    profile = rounded({8: 1.0, 4: 2.0})
    assert not profile.lacks_rounding(["w"], (32, 4))
    assert profile.lacks_rounding(["w"], (6, 4)) and profile.lacks_rounding(["w", "v"], (4,))
    assert GOLDEN_PROFILE.rounding_damage("conv.weight", 32) == 0.0
    with pytest.raises(ValueError, match=r"no rounding of 'conv.weight': scan it with bits"):
        GOLDEN_PROFILE.rounding_damage("conv.weight", 8)
    with pytest.raises(ValueError, match=r"bits must be one of 32, 16, .* got 9"):
        profile.rounding_damage("w", 9)


def test_damage_without_a_finite_loss():
    assert profile_of([math.nan, math.inf]).damage("channel", "w")[1].tolist() == [0.0, 0.0, 0.0]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=7), st.floats(0, 10))
def test_damage_is_finite_starts_at_zero_and_never_falls(losses, dense):
    levels, damage = profile_of(losses, dense).damage("channel", "w")
    assert levels.shape == damage.shape == (len(losses) + 1,)
    assert damage[0] == 0
    assert np.isfinite(damage).all()
    assert (np.diff(damage) >= 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 2}', "profile version must be 1: scan again"),
        ("{}", "profile version must be 1"),
        ('{"version": 1}', r"damaged profile \('points'\): scan again"),
        ('{"version": 1, "points": 3}', "damaged profile"),
        ('{"version": 1, "points": {"channel": {"w": [{"sparsity": 1}]}}}', "damaged profile"),
        ('{"version": 1, "points": {}, "unknown": 3}', "damaged profile"),
        ('{"version": 1, "points": {}, "rounding": 3}', "damaged profile"),
        ('{"version": 1, "points": {}, "rounding": {"w": [{"bits": 8}]}}', "damaged profile"),
        ("[]", "must be a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Profile.from_json(text)


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (32,), (9,), ("8",), (True,), (None,), (8.5,)])
def test_bits_of_a_damaged_profile(bits):
    points = tuple(RoundingPoint(own, 0.5, 0.5, 0.5, 0.5) for own in bits)
    with pytest.raises(ValueError, match=r"damaged profile \(bits"):
        Profile.from_json(replace(GOLDEN_PROFILE, rounding={"conv.weight": points}).to_json())


def test_table():
    rows = GOLDEN_PROFILE.table("fine-grained")
    assert [(layer, point.sparsity) for layer, point in rows] == [
        ("conv.weight", 0.3),
        ("conv.weight", 0.9),
        ("classifier.weight", 0.3),
    ]
    with pytest.raises(ValueError, match="unknown granularity in this profile 'chanel': did you mean 'channel'"):
        GOLDEN_PROFILE.table("chanel")


TWO = {"channel": {"w": (ProfilePoint(0.25, 5.0, 0.5, 1.75, 0.75), ProfilePoint(0.5, 9.0, 0.25, 2.5, 0.625))}}


class TestRecalibrated:
    """Points against the dense model recalibrated as they are."""

    def profile(self, **parts) -> Profile:
        return Profile("m", 8, 0.125, 1.0, TWO, 2.0, **parts)

    def test_damage_is_what_pruning_adds(self):
        alike = self.profile(dense_recalibrated_loss=1.5, dense_recalibrated_accuracy=0.875)
        assert alike.damage("channel", "w")[1].tolist() == [0.0, 0.25, 1.0]
        assert alike.reference == (1.5, 0.875) and alike.is_recalibrated

    def test_of_profiles_from_before_the_reference_is_the_dense_model_as_it_is(self):
        assert self.profile().damage("channel", "w")[1].tolist() == [0.0, 1.625, 2.375]
        assert self.profile().reference == (0.125, 1.0) and self.profile().is_recalibrated
        same = ProfilePoint(0.25, 5.0, 0.5, 5.0, 0.5)
        assert not Profile("m", 8, 0.125, 1.0, {"channel": {"w": (same,)}}, 2.0).is_recalibrated

    def test_of_too_few_examples_nothing_is_recalibrated(self):
        few = self.profile(dense_recalibrated_loss=3.5, dense_recalibrated_accuracy=0.0, too_few=True)
        assert few.reference == (0.125, 1.0) and not few.is_recalibrated

    @pytest.mark.parametrize(
        "parts",
        [
            {"dense_recalibrated_loss": 1.5, "dense_recalibrated_accuracy": 0.875}, {"too_few": True}, {},
            {"dense_recalibrated_loss": 3.5, "dense_recalibrated_accuracy": 0.0, "too_few": True},
        ],
    )  # fmt: skip
    def test_survives_its_file(self, parts):
        assert Profile.from_json(self.profile(**parts).to_json()) == self.profile(**parts)

    def test_a_loss_that_is_not_finite_is_read_as_nan(self):
        parts = {"dense_recalibrated_loss": math.inf, "dense_recalibrated_accuracy": 0.25, "too_few": True}
        assert math.isnan(Profile.from_json(self.profile(**parts).to_json()).dense_recalibrated_loss)

    @pytest.mark.parametrize(
        "parts",
        [
            {"too_few": 1}, {"dense_recalibrated_loss": 1.5}, {"dense_recalibrated_accuracy": 0.5},
            {"dense_recalibrated_loss": "low", "dense_recalibrated_accuracy": 0.5},
            {"dense_recalibrated_loss": 1.5, "dense_recalibrated_accuracy": [0.5]},
        ],
    )  # fmt: skip
    def test_damaged(self, parts):
        with pytest.raises(ValueError, match="damaged profile"):
            Profile.from_json(self.profile(**parts).to_json())
