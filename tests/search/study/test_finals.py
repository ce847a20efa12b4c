"""The closing table and its verdict, from comparisons and scores made by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from pruning.importance.scores import unit_importance
from search.cli.text_tables import closing_table
from search.metric import Metric
from search.results.cells import latency_line
from search.results.closing import alike_line, closing_rows, plain_closing_rows, verdict
from search.results.comparison import BASELINES, Comparison, Reference
from search.results.tables import FinalScore
from search.study.baselines import baseline_choices, best_baselines
from spaces import Space
from spaces.allocation.importance import AllocationInputs
from spaces.cost.effect import achieved
from spaces.cost.footprint import footprint
from spaces.cost.timing import TimedNetwork, TimedNetworks
from spaces.search_space.initial import initial_points
from spaces.search_space.projection import Projector

REFERENCE = Reference(0.9375, 0.875, 1.0, 1.0)
SCORES = {
    "one": FinalScore("one", 3, 0.90, 0.01, 0.88, 0.02, 0.24, 0.20, 0.25, 2, bits=8),
    "two": FinalScore("two", 3, 0.92, 0.01, 0.86, 0.02, 0.12, 0.10, 1.0, 2, bits={"conv.weight": 4}),
    "static": FinalScore("static", 3, 0.91, 0.01, 0.80, 0.02, 0.25, 0.21, 1.0, 1),
}
REFERENCES = {"dense": REFERENCE, "dense at 6 bits": replace(REFERENCE, size_encoded=0.26)}
COMPARISON = Comparison(REFERENCES, {"lamp": "static"}, "fine-grained", ("one", "two"))
TIMED = TimedNetworks(
    "a CPU", 1, 1, 30,
    dense=TimedNetwork(0.002, 0.05, 1.0, 1.0, 1.0),
    copy=TimedNetwork(0.002, 0.05, 1.001, 0.99, 1.02),
    networks={
        "one": TimedNetwork(0.0008, 0.04, 0.4, 0.385, 0.425),
        "two": TimedNetwork(0.002, 0.04, 0.985, 0.97, 0.995),
    },
)  # fmt: skip


def cells(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name)


def test_rows_carry_macs_and_latency_where_it_was_measured():
    rows = {row.name: row for row in closing_rows(COMPARISON, SCORES, {"one": 7, "two": 9})}
    assert list(rows) == ["dense", "dense at 6 bits", "lamp (fine-grained)", "trial 7", "trial 9"]
    assert [row.macs for row in rows.values()] == [1.0, 1.0, 1.0, 0.25, 1.0]
    assert [row.bits for row in rows.values()] == [32, 6, 32, 8, {"conv.weight": 4}]
    assert all(row.latency is row.within_noise is None for row in rows.values())
    timed = replace(COMPARISON, latency=TIMED)
    rows = {row.name: row for row in closing_rows(timed, SCORES, {"one": 7, "two": 9})}
    assert rows["dense"].latency is TIMED.dense and rows["trial 7"].latency is TIMED.networks["one"]
    assert [row.within_noise for row in rows.values()] == [None, None, None, False, True]


def test_the_table_shows_what_channels_bring():
    plain = closing_table(closing_rows(COMPARISON, SCORES, {"one": 7, "two": 9}))
    assert " ".join(plain.split()).startswith("network bits runs validation test encoded nonzero MACs dense 32 1 ")
    assert cells(plain, "trial 7").split()[-2:] == ["25.0", "%"] and "latency" not in plain
    shown = {name: cells(plain, name).split()[0] for name in ("dense at 6 bits", "lamp", "trial 7", "trial 9")}
    assert shown == {"dense at 6 bits": "6", "lamp": "(fine-grained)", "trial 7": "8", "trial 9": "mixed"}
    timed = closing_table(closing_rows(replace(COMPARISON, latency=TIMED), SCORES, {"one": 7, "two": 9}))
    assert timed.splitlines()[0].endswith("MACs  latency")
    assert cells(timed, "trial 7").endswith("40.0 % [38.5, 42.5]")
    assert cells(timed, "trial 9").endswith("98.5 % [97.0, 99.5] noise")
    assert cells(timed, "dense ").endswith("100.0 %") and cells(timed, "dense at 6 bits").endswith(" -")
    assert max(map(len, timed.splitlines())) <= 120
    said = latency_line(TIMED)
    for words in ("1 thread,", "a CPU", "30 rounds", "2 ms", "5.0 %", "100.1 % [99.0, 102.0]"):
        assert words in said, said


def test_a_failed_run_shows_in_the_number_of_runs():
    scores = SCORES | {"one": replace(SCORES["one"], n=2, failed=1)}
    text = closing_table(closing_rows(COMPARISON, scores, {"one": 7, "two": 9}))
    assert cells(text, "trial 7").split()[1:4] == ["2", "of", "3"] and cells(text, "trial 9").split()[1] == "3"


def test_static_rules_that_come_to_one_network_are_told():
    said = "Static rules that come to one network: "
    for baselines, told in (
        ({"uniform": "static", "global": "static", "lamp": "static"}, f"{said}uniform, global and lamp."),
        ({"uniform": "one", "global": "static", "lamp": "one"}, f"{said}uniform and lamp."),
        ({"uniform": "one", "global": "static", "lamp": "two"}, None),
        ({"uniform": "gone", "global": "gone", "lamp": "two"}, None),
    ):
        assert alike_line(replace(COMPARISON, baselines=baselines), SCORES) == told


EQUAL = SCORES | {"two": replace(SCORES["two"], size_encoded=0.2475)}
"""`two` at the size of `static`, but for a hundredth of it."""


RULE = "'lamp', the most accurate static rule on validation data,"


def test_the_verdict_is_on_the_most_accurate_finalist_by_validation():
    """`two`, though `one` tests better; three seeds of sd 0.02 make 0.06 points of test more than noise."""
    said = verdict(COMPARISON, EQUAL, 0.25)
    assert said == "The most accurate finalist is 6.00 points above " + RULE + " on test (3 seeds)."
    close = EQUAL | {"static": replace(EQUAL["static"], test_accuracy=0.85)}
    assert verdict(COMPARISON, close, 0.25).endswith("differ by 1.00 points on test, within noise (3 seeds).")
    alone = {name: replace(score, n=1, test_sd=None) for name, score in close.items()}
    assert verdict(COMPARISON, alone, 0.25).endswith("is 1.00 points above " + RULE + " on test (one seed each).")
    same = replace(COMPARISON, baselines={"lamp": "two"})
    assert "is the static policy 'lamp'" in verdict(same, SCORES, 0.25)
    assert verdict(COMPARISON, {}, 0.25) is None


def test_networks_of_other_sizes_or_macs_are_not_compared_without_saying_so():
    assert verdict(COMPARISON, SCORES, 0.25).endswith(
        "(3 seeds; 12.0 % of the size and 100.0 % of the MACs against 25.0 % and 100.0 %)."
    )
    faster = EQUAL | {"two": replace(EQUAL["two"], macs=0.4)}
    assert "24.8 % of the size and 40.0 % of the MACs against 25.0 % and 100.0 %" in verdict(COMPARISON, faster, 0.25)


@pytest.mark.parametrize(
    ("examples", "end"),
    [
        (360, "within noise (3 seeds; one of the 360 test examples is 0.28 points)."),
        (1000, "on test (3 seeds; one of the 1000 test examples is 0.10 points)."),
        (1001, "on test (3 seeds)."),
        (None, "on test (3 seeds)."),
    ],
)
def test_the_verdict_knows_how_many_examples_were_tested(examples, end):
    """By hand: 4 points; two standard errors of seeds 0.008; of 360 examples 0.054, of 1,000 0.033."""
    close = {n: replace(s, test_sd=0.005, test_accuracy=0.82 if n == "static" else 0.86) for n, s in EQUAL.items()}
    assert verdict(replace(COMPARISON, test_examples=examples), close, 0.25).endswith(end)
    alone = {name: replace(score, n=1, test_sd=None) for name, score in close.items()}
    said = verdict(replace(COMPARISON, test_examples=examples), alone, 0.25)
    assert ("within noise (one seed each" in said) == (examples == 360)


def test_words_and_numbers_are_those_of_the_metric():
    """By hand: `two` tests at 0.86 of 40, `static` at 0.80."""
    unit = Metric("mAP", low=0, high=40)
    said = verdict(replace(COMPARISON, references=rounded(0.855, 0.149)), EQUAL, 0.25, unit=unit)
    start = "The best finalist is 2.4 mAP above 'lamp', the best static rule on validation data, on test"
    assert said.startswith(start) and "accura" not in said
    small = verdict(replace(COMPARISON, references=rounded(0.855, 0.149)), SCORES, 0.25, unit=unit)
    assert small.endswith("gains size at this limit, 12.0 % against 14.9 %, and nothing in mAP.")
    rows = closing_rows(COMPARISON, SCORES, {"two": 9})
    row = next(row for row in plain_closing_rows(rows, unit) if row["name"] == "trial 9")
    assert row["test_value"] == pytest.approx(34.4) and row["test_value_sd"] == pytest.approx(0.8)
    assert "test_value" not in plain_closing_rows(rows)[0]


def rounded(test: float, size: float, bits: int = 6) -> dict[str, Reference]:
    return {"dense": REFERENCE, f"dense at {bits} bits": Reference(0.9, test, size, 0.97)}


NOTHING = "pruning gains nothing at this limit."
SIZE = "pruning gains size at this limit, 12.0 % against 14.9 %, and no accuracy."
THREE = rounded(0.875, 0.2, 8) | rounded(0.84, 0.15, 6) | rounded(0.82, 0.11, 4)


@pytest.mark.parametrize(
    ("references", "said"),
    [
        (rounded(0.855, 0.149), f"Dense at 6 bits (14.9 %) does as well, within noise: {SIZE}"),
        (rounded(0.837, 0.118), f"Dense at 6 bits (11.8 %) does as well, within noise: {NOTHING}"),
        (rounded(0.885, 0.118, 4), f"Dense at 4 bits (11.8 %) is 2.50 points above it: {NOTHING}"),
        (rounded(0.837, 0.251), ""),
        (rounded(0.836, 0.118), ""),
        (THREE, "Dense at 6 bits (15.0 %) does as well"),
        ({"dense": REFERENCE, "dense int8": Reference(0.9, 0.9, 0.21, 0.26)}, "Dense int8 (21.0 %) is 4.00 points"),
    ],
)
def test_the_verdict_says_where_rounding_alone_does_as_well(references, said):
    """By hand: `two` tests at 0.86, sd 0.02 of 3 seeds: two standard errors are 2.31 points."""
    compared = replace(COMPARISON, references=references)
    words = verdict(compared, SCORES, 0.25)
    assert words.partition("). ")[2].startswith(said) if said else words.endswith(").")
    assert "Dense" not in (verdict(compared, SCORES, 0.25, "nonzero") or "")
    without = replace(compared, baselines={})
    assert (verdict(without, SCORES, 0.25) or "").startswith(said)


def test_test_examples_count_where_rounding_is_compared():
    """By hand: 4 points below; two standard errors of 360 examples are 5.4 points, of 100,000 and the seeds 2.3."""
    compared = replace(COMPARISON, references=rounded(0.82, 0.2))
    said = {n: verdict(replace(compared, test_examples=n), EQUAL, 0.25) for n in (360, 100_000)}
    assert "Dense at 6 bits" in said[360] and "Dense at 6 bits" not in said[100_000]
    alone = {name: replace(score, n=1, test_sd=None) for name, score in EQUAL.items()}
    assert "Dense" not in verdict(compared, alone, 0.25)
    as_good = replace(COMPARISON, references=rounded(0.86, 0.2))
    assert "Dense at 6 bits (20.0 %) does as well" in verdict(as_good, alone, 0.25)


@pytest.mark.parametrize("granularities", [("fine-grained", "channel"), ("2:4",)])
def test_a_baseline_that_removes_what_a_finalist_does_is_that_finalist(vgg, vgg_graph, granularities):
    space = Space(vgg_graph.network, 0.6, granularities)
    evidence = {word: AllocationInputs(unit_importance(vgg, vgg_graph, word)) for word in granularities}
    projector = Projector(space, evidence)
    seeds = list(islice(initial_points(projector), 20))
    finalists = [projector.project(seed.params).policy for seed in seeds if seed.allocator == "lamp"]
    found = best_baselines(baseline_choices(projector, finalists), {})
    assert found["lamp"] is finalists[0] and list(found) == list(BASELINES)
    different = {tuple(achieved(space.network, policy).values()) for policy in found.values()}
    assert len({policy.digest for policy in found.values()}) == len(different)
    alone = best_baselines(baseline_choices(projector, []), {})
    assert achieved(space.network, alone["lamp"]) == achieved(space.network, finalists[0])


@pytest.fixture(scope="module")
def projectors(vgg, vgg_graph):
    """Limit -> a projector of a space of three widths."""

    def projector(limit: float) -> Projector:
        space = Space(vgg_graph.network, limit, ("fine-grained",), bits=(8, 6, 4))
        return Projector(space, {"fine-grained": AllocationInputs(unit_importance(vgg, vgg_graph, "fine-grained"))})

    return projector


def test_each_baseline_is_at_the_bits_that_do_best(projectors):
    """Another width for each allocator; ties go to more bits, and failures lose against all else."""
    projector = projectors(0.05)
    best = {"uniform": 6, "global": 4, "lamp": 8}
    choices = baseline_choices(projector, [])
    assert {name: [one.bits for one in ones] for name, ones in choices.items()} == {
        name: [8, 6, 4] for name in BASELINES
    }
    all_of = [(name, one) for name, ones in choices.items() for one in ones]
    found = best_baselines(choices, {one.digest: 0.9 if one.bits == best[name] else 0.8 for name, one in all_of})
    assert {name: policy.bits for name, policy in found.items()} == best
    assert all(footprint(projector.space.network, policy).encoded_bytes for policy in found.values())
    tied = best_baselines(choices, {one.digest: 0.5 if one.bits < 8 else -1.0 for _, one in all_of})
    assert {policy.bits for policy in tied.values()} == {6}


def test_bits_alone_are_tuned_once_for_all_allocators(projectors):
    """At half the size, nothing is removed at any of these widths."""
    choices = baseline_choices(projectors(0.5), [])
    assert {name: [one.bits for one in ones] for name, ones in choices.items()} == {
        name: [8, 6, 4] for name in BASELINES
    }
    assert len({one.digest for ones in choices.values() for one in ones}) == 3
    found = best_baselines(choices, {one.digest: one.bits / 10 for one in choices["lamp"]})
    assert found["lamp"].bits == 8 and not any(found["lamp"].sparsity.values())
