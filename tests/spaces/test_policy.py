"""Policies: what is refused and how it is said, what is written, and what the digest names."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spaces import CRITERIA, GRANULARITIES, SCHEDULES, PruningPolicy, Schedule, removed_count
from spaces.criteria import criterion_word
from spaces.policy import parse_sparsity
from spaces.strict_json import parse_object
from spaces.validation import check_sparsity

GOLDEN = Path(__file__).parents[1] / "golden" / "policy-v1.json"
GOLDEN_POLICY = PruningPolicy(
    sparsity={"classifier.weight": 0.0, "backbone.conv1.weight": 0.8, "backbone.conv0.weight": 0.25},
    granularity={"backbone.conv1.weight": "channel", "backbone.conv0.weight": "fine-grained"},
    removal={"backbone.conv0.weight": 0.125},
    criterion="magnitude-l1",
    schedule=Schedule("polynomial", 2.5, 0.75),
)

layer_names = st.sampled_from(["a.weight", "b.weight", "c.d.weight", 'ü"\n.weight'])
shares = st.floats(0, 1, exclude_max=True, allow_nan=False)
widths = st.sampled_from([32, 16, 8, 7, 6, 5, 4, 3, 2])
schedules = st.builds(
    Schedule,
    st.sampled_from(SCHEDULES),
    st.floats(0.01, 50),
    st.floats(0.3, 1),
    start=st.floats(0, 0.29),
    interval=st.integers(0, 99),
    rounds=st.integers(1, 9),
    regrow=st.booleans(),
)


@st.composite
def policies(draw):
    granularity = draw(
        st.one_of(
            st.sampled_from(GRANULARITIES), st.dictionaries(layer_names, st.sampled_from(GRANULARITIES), max_size=4)
        )
    )
    sparsity = draw(st.dictionaries(layer_names, shares, max_size=4))
    of = granularity.get if isinstance(granularity, dict) else lambda name, _: granularity
    free = [n for n in ("a.weight", "b.weight", "e.weight") if of(n, "fine-grained") != "channel" or n not in sparsity]
    removal = draw(st.dictionaries(st.sampled_from(free), shares, max_size=3)) if free else {}
    everywhere = [word for word in CRITERIA if criterion_word(word).granularities is None]
    bits = draw(st.one_of(widths, st.dictionaries(layer_names, widths, max_size=3)))
    return PruningPolicy(sparsity, granularity, removal, draw(st.sampled_from(everywhere)), draw(schedules), bits)


class TestCountRule:
    def test_every_hundredth_of_many_counts_is_exact(self):
        """Where the decimal and the binary reading of the share differ, the double product may side with either."""
        wrong = []
        for units in (*range(1, 65), 100, 1000, 2_359_296):
            for hundredths in range(100):
                share = hundredths / 100
                halves_up = {
                    min(math.floor(reading * units + Fraction(1, 2)), units - 1)
                    for reading in (Fraction(hundredths, 100), Fraction(share))
                }
                if removed_count(share, units) not in halves_up:
                    wrong.append((share, units, removed_count(share, units)))
        assert wrong == []

    @given(st.tuples(shares, shares), st.integers(1, 10**7))
    @example((0.75, 0.9), 25)  # 19 by halves up
    @example((0.0, 1 - 1e-16), 9)  # one stays
    def test_is_the_nearest_whole_number_below_all_units(self, pair, units):
        low, high = (removed_count(share, units) for share in sorted(pair))
        assert 0 <= low <= high < units
        for share, found in ((min(pair), low), (max(pair), high)):
            assert abs(found - Fraction(share) * units) <= Fraction(1, 2) + Fraction(units, 2**50) or found == units - 1

    @pytest.mark.parametrize("units", [0, -3])
    def test_needs_units(self, units):
        with pytest.raises(ValueError, match=f"nothing to prune: {units} units"):
            removed_count(0.5, units)


class TestShares:
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (1.2, r"0 <= sparsity < 1, got 1\.2; nearest valid: 0\.99"),
            (1.0, r"got 1\.0; nearest valid: 0\.99"),
            (-0.1, r"got -0\.1; nearest valid: 0\.0"),
            (math.nan, "got nan; nearest valid: a finite number"),
            (math.inf, "got inf"),
            (True, "must be a number .*, got True"),
            ("0.5", "must be a number .*, got '0.5'"),
            (None, "got None"),
            ([0.5], r"got \[0\.5\]"),
            (np.bool_(True), "must be a number"),
        ],
    )
    def test_refused(self, value, message):
        for refuse in (
            lambda: check_sparsity(value),
            lambda: PruningPolicy({"conv.weight": value}),
            lambda: PruningPolicy({}, removal={"conv.weight": value}),
        ):
            with pytest.raises(ValueError, match=message):
                refuse()

    def test_message_names_field_and_layer(self):
        with pytest.raises(ValueError, match=r"^sparsity of 'conv\.weight' must satisfy"):
            PruningPolicy({"conv.weight": 1.2})
        with pytest.raises(ValueError, match=r"^removal of 'conv\.weight' must satisfy"):
            PruningPolicy({}, removal={"conv.weight": 1.2})

    @pytest.mark.parametrize("value", [0, 0.25, np.float32(0.25), np.float64(0.25), Fraction(1, 4), -0.0])
    def test_accepted_as_plain_float(self, value):
        checked = check_sparsity(value)
        assert type(checked) is float
        assert checked == value
        assert math.copysign(1, checked) == 1


class TestBits:
    @pytest.mark.parametrize(
        ("value", "nearest"),
        [(1, 2), (33, 32), (3.5, 4), (0, 2), (-4, 2), (12, 16), ("8", 8), ("3.5", 4), (True, 32), (None, 32)],
    )
    def test_refused_with_the_nearest(self, value, nearest):
        said = f"must be one of 32, 16, 8, 7, 6, 5, 4, 3, 2, got {value!r}; nearest valid: {nearest}"
        with pytest.raises(ValueError, match=f"^bits {re.escape(said)}$"):
            PruningPolicy({}, bits=value)
        with pytest.raises(ValueError, match=f"^bits of 'a.weight' {re.escape(said)}$"):
            PruningPolicy({}, bits={"a.weight": value})

    def test_of_layers(self):
        policy = PruningPolicy({}, bits={"a.weight": 3})
        assert (policy.bits_of("a.weight"), policy.bits_of("b.weight"), policy.is_rounded) == (3, 32, True)
        assert PruningPolicy({}, bits=5).bits_of("b.weight") == 5
        assert not PruningPolicy({}, bits={"a.weight": 32}).is_rounded

    def test_have_a_label_if_any_are_below_32(self):
        labels = {4: "4 bits", 32: "", 16: "16 bits"}
        assert {bits: PruningPolicy({}, bits=bits).bits_label for bits in labels} == labels
        assert PruningPolicy({}, bits={"a.weight": 3}).bits_label == "mixed bits"

    def test_of_32_are_written_nowhere(self):
        plain = PruningPolicy({"a.weight": 0.25})
        for bits in (32, {}, {"b.weight": 32}):
            same = PruningPolicy({"a.weight": 0.25}, bits=bits)
            assert same.to_json() == plain.to_json()
            assert same.digest == plain.digest
        assert (
            len({plain.digest, *(PruningPolicy({"a.weight": 0.25}, bits=b).digest for b in (8, {"a.weight": 8}))}) == 3
        )


class TestValidation:
    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: PruningPolicy({}, "chanel"), "unknown granularity 'chanel': did you mean 'channel'"),
            (lambda: PruningPolicy({}, {"a": "finegrained"}), "unknown granularity 'finegrained': .*'fine-grained'"),
            (
                lambda: PruningPolicy({}, criterion="magnitude-l3"),
                "unknown criterion 'magnitude-l3': did you mean 'mag",
            ),
            (lambda: PruningPolicy({}, schedule="oneshot"), "unknown schedule 'oneshot': did you mean 'one-shot'"),
            (
                lambda: PruningPolicy({}, schedule=3),
                "schedule must be a Schedule or one of one-shot, polynomial, iterative, linear, cubic, got 3",
            ),
            (lambda: PruningPolicy([0.5]), "sparsity must map layer names to shares, got list"),
            (lambda: PruningPolicy({}, removal=0.5), "removal must map layer names to shares, got float"),
            (lambda: PruningPolicy({3: 0.5}), "sparsity must have layer names as keys, got 3"),
            (lambda: Schedule("polynomial", 0.0), "exponent must be > 0, got 0.0; 1 is linear, 3 cubic"),
            (lambda: Schedule("polynomial", math.nan), "exponent must be > 0, got nan"),
            (lambda: Schedule("polynomial", math.inf), "exponent must be > 0, got inf"),
            (lambda: Schedule("polynomial", "3"), "exponent must be a number, got '3'"),
            (lambda: Schedule("polynomial", True), "exponent must be a number, got True"),
            (lambda: Schedule(ramp=0.0), r"0 < ramp <= 1, got 0\.0; the default is 0\.6"),
            (lambda: Schedule(ramp=1.01), "0 < ramp <= 1, got 1.01"),
            (lambda: Schedule(ramp=math.nan), "0 < ramp <= 1, got nan"),
            (lambda: Schedule(start=0.6), "0 <= start < ramp, got 0.6"),
            (lambda: Schedule(start=-0.1), "0 <= start < ramp, got -0.1"),
            (lambda: Schedule(interval=-1), "interval must be >= 0 steps, got -1"),
            (lambda: Schedule(interval=2.5), "interval must be a whole number, got 2.5"),
            (lambda: Schedule("iterative", rounds=0), "rounds must be >= 1, got 0"),
            (lambda: Schedule("iterative", rounds=True), "rounds must be a whole number, got True"),
            (lambda: Schedule(regrow=1), "regrow must be true or false, got 1"),
            (lambda: Schedule("iterate"), "unknown schedule 'iterate': did you mean 'iterative'"),
        ],
    )
    def test_refused(self, build, message):
        with pytest.raises(ValueError, match=message):
            build()

    def test_channel_sparsity_and_removal_exclude_each_other(self):
        with pytest.raises(ValueError, match=r"layer 'a' has granularity 'channel' and a removal of 0\.25"):
            PruningPolicy({"a": 0.5}, "channel", removal={"a": 0.25})
        assert PruningPolicy({"a": 0.0}, "channel", removal={"a": 0.25}).channel_requests() == {"a": 0.25}

    def test_is_not_changed_through_what_it_was_made_of(self):
        sparsity, granularity = {"a": 0.25}, {"a": "channel"}
        policy = PruningPolicy(sparsity, granularity)
        sparsity["a"], granularity["a"] = 0.75, "fine-grained"
        assert (policy.sparsity["a"], policy.granularity_of("a")) == (0.25, "channel")
        with pytest.raises(TypeError):
            policy.sparsity["a"] = 0.5


class TestRequests:
    def test_split_by_granularity(self):
        policy = PruningPolicy(
            {"a": 0.25, "b": 0.5, "c": 0.0, "d": 0.75}, {"b": "channel", "c": "channel"}, removal={"a": 0.125, "e": 0.0}
        )
        assert policy.channel_requests() == {"a": 0.125, "b": 0.5}
        assert policy.mask_requests() == {"a": 0.25, "d": 0.75}

    @pytest.mark.parametrize(
        ("sparsity", "granularity", "label"),
        [
            ({"a": 0.5}, "channel", "channel"),
            ({}, "channel", "channel"),
            ({"a": 0.5, "b": 0.5}, {"a": "channel"}, "mixed"),
            ({"a": 0.5, "b": 0.0}, {"a": "channel"}, "channel"),
            ({"a": 0.0}, {"a": "channel"}, "fine-grained"),
        ],
    )
    def test_label(self, sparsity, granularity, label):
        assert PruningPolicy(sparsity, granularity).granularity_label == label

    @pytest.mark.parametrize(
        ("sparsity", "label"), [({"a": 0.5}, "channel+kernel"), ({"a": 0.0}, "channel"), ({}, "channel")]
    )
    def test_label_after_a_removal(self, sparsity, label):
        assert PruningPolicy(sparsity, "kernel", removal={"b": 0.25}).granularity_label == label


class TestFile:
    def test_golden_file_of_version_1(self):
        assert PruningPolicy.from_json(GOLDEN.read_text()) == GOLDEN_POLICY
        assert GOLDEN_POLICY.to_json() == GOLDEN.read_text()
        assert GOLDEN_POLICY.digest == "7409de3955673662"

    @given(policies())
    def test_round_trips(self, policy):
        pickled = pickle.loads(pickle.dumps(policy))  # noqa: S301 - our own bytes
        for back in (PruningPolicy.from_json(policy.to_json()), copy.deepcopy(policy), pickled):
            assert back == policy
            assert back.digest == policy.digest

    def test_short_file(self):
        policy = PruningPolicy.from_json('{"version": 1, "sparsity": {"a": 0.5}, "schedule": "one-shot"}')
        assert policy == PruningPolicy({"a": 0.5}, schedule="one-shot")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"version": 1, "sparsity": {"a": 0.5, "a": 0.6}}', "duplicate key 'a'"),
            ('{"version": 1, "sparsity": {"a": NaN}}', "NaN is not a valid number"),
            ('{"version": 1, "sparsity": {"a": Infinity}}', "Infinity is not a valid number"),
            ('{"version": 1, "sparsity": {"a": 1e999}}', "got inf"),
            ('{"version": 1, "sparsity": {"a": true}}', "got True"),
            ('{"version": 1, "sparsity": {"a": "0.5"}}', "got '0.5'"),
            ('{"version": 1, "sparsity": {"a": 1.2}}', "sparsity of 'a' must satisfy"),
            ('{"version": 1, "sparsty": {}}', "unknown policy key 'sparsty': did you mean 'sparsity'"),
            ('{"version": 1, "sparsity": {}, "schedule": {"kind": "one-shot", "exponnt": 1}}', "mean 'exponent'"),
            ('{"version": 1}', r"policy has no 'sparsity'.*add \{layer: share removed\}"),
            ('{"version": 2, "sparsity": {}}', "policy version must be 1, got 2"),
            ('{"sparsity": {}}', "policy version must be 1, got None"),
            ('{"version": 1, "sparsity": [0.5]}', "sparsity must map layer names to shares, got list"),
            ('{"version": 1, "sparsity": {}, "granularity": ["channel"]}', r"unknown granularity \['channel'\]"),
            ('{"version": 1, "sparsity": {}, "criterion": "l1"}', "'l1': did you mean 'magnitude-l1'"),
            ('{"version": 1, "sparsity": {}, "schedule": 5}', "schedule must be a Schedule or one of one-shot"),
            ('{"version": 1, "sparsity": {}, "schedule": {"exponent": 1' + "0" * 400 + "}}", "exponent must be > 0"),
            ("[1]", "must be a JSON object, got list"),
            ("", "not valid JSON"),
            ('{"a": ' * 100_000, "nested too deeply"),
        ],
    )
    def test_refused(self, text, message):
        with pytest.raises(ValueError, match=message):
            PruningPolicy.from_json(text)

    def test_flat_dict_of_the_labs(self):
        assert parse_sparsity('{"a": 0.25, "b": 0}') == {"a": 0.25, "b": 0.0}
        with pytest.raises(ValueError, match="sparsity of 'b' must satisfy"):
            parse_sparsity('{"a": 0.25, "b": 1}')
        with pytest.raises(ValueError, match="duplicate key 'a'"):
            parse_sparsity('{"a": 0.25, "a": 0.25}')

    def test_parse_object_keeps_plain_json(self):
        text = '{"x": [1, 2.5, null, {"y": "z"}]}'
        assert parse_object(text) == json.loads(text)


class TestDigest:
    def test_what_does_not_change_it(self):
        base = PruningPolicy({"a": 0.25, "b": 0.5}, "channel", schedule="one-shot")
        same = [
            PruningPolicy({"b": 0.5, "a": 0.25}, "channel", schedule="one-shot"),
            PruningPolicy({"a": 0.25, "b": 0.5, "c": 0.0}, "channel", schedule="one-shot"),
            PruningPolicy({"a": 0.25, "b": 0.5}, {"a": "channel", "b": "channel"}, schedule="one-shot"),
            PruningPolicy({"a": 0.25, "b": 0.5}, "channel", {"c": 0.0}, schedule=Schedule("one-shot", 1.0, 0.1)),
        ]
        assert {policy.digest for policy in same} == {base.digest}

    def test_what_changes_it(self):
        variants = [
            PruningPolicy({"a": 0.25}),
            PruningPolicy({"a": math.nextafter(0.25, 1)}),
            PruningPolicy({"b": 0.25}),
            PruningPolicy({"a": 0.25}, "channel"),
            PruningPolicy({"a": 0.25}, removal={"a": 0.125}),
            PruningPolicy({}, removal={"a": 0.25}),
            PruningPolicy({"a": 0.25}, criterion="random"),
            PruningPolicy({"a": 0.25}, schedule="one-shot"),
            PruningPolicy({"a": 0.25}, schedule=Schedule(exponent=2.0)),
            PruningPolicy({"a": 0.25}, schedule=Schedule(ramp=0.5)),
        ]
        digests = [policy.digest for policy in variants]
        assert len(set(digests)) == len(variants)
        assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


@pytest.mark.parametrize(("name", "exponent"), [("linear", 1.0), ("cubic", 3.0)])
def test_named_polynomials_are_stored_as_their_exponent(name, exponent):
    given = Schedule(name, ramp=0.25)
    assert given == Schedule("polynomial", exponent, 0.25) == Schedule(name, exponent, 0.25)
    assert given.to_dict() == {"kind": "polynomial", "exponent": exponent, "ramp": 0.25}
    policy = PruningPolicy({"a": 0.25}, schedule=name)
    assert policy == PruningPolicy({"a": 0.25}, schedule=Schedule("polynomial", exponent))
    assert Schedule.from_dict({"kind": name}) == Schedule("polynomial", exponent)
    with pytest.raises(ValueError, match=f"schedule {name} is the polynomial of exponent {exponent:g}, got exponent 2"):
        Schedule(name, 2)
