"""The closing table and its verdict, from comparisons and scores made by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from pruning.importance.scores import unit_importance
from search.cli.text_tables import closing_table
from search.config import SearchConfig
from search.metric import Metric
from search.records import FinalRecord, TrialRecord, TrialResult
from search.results.cells import latency_line, slower_line
from search.results.closing import (
    ClosingRow,
    alike_line,
    closing_frame,
    closing_rows,
    level_line,
    level_rules,
    plain_closing_rows,
    verdict,
)
from search.results.comparison import BASELINES, Baseline, Comparison, Reference
from search.results.legend import closing_legend
from search.results.state import StudyState
from search.results.tables import FinalScore
from search.study.baselines import best_rival, informative, known_alike, rivals_at_limit
from search.study.contest import Contest
from search.study.final_runs import Tuned
from spaces import Space
from spaces.allocation.importance import AllocationInputs
from spaces.cost.effect import achieved, fine_tune_key
from spaces.cost.footprint import dense_footprint, footprint, relative_cost
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


def test_the_table_in_pandas_has_numbers():
    rows = closing_rows(replace(COMPARISON, latency=TIMED), SCORES, {"one": 7, "two": 9})
    found = closing_frame(rows).set_index("name")
    assert [*found.index] == [row.name for row in rows] and found.loc["trial 7", "latency"] == 0.4
    assert (
        found.loc["trial 9", "test"] == 0.86 and found["bits"].isna().sum() == 1 and found.loc["trial 7", "bits"] == 8
    )
    numeric = {*found.select_dtypes("number")}
    assert {*found} - numeric == {"within_noise"} and found["within_noise"].isna().sum() == 3
    assert closing_frame([]).empty and [*closing_frame([])] == ["name", *found]


def test_the_table_shows_what_channels_bring():
    plain = closing_table(closing_rows(COMPARISON, SCORES, {"one": 7, "two": 9}))
    assert " ".join(plain.split()).startswith("network bits runs validation test encoded nonzero MACs dense 32 1 ")
    assert cells(plain, "trial 7").split()[-2:] == ["25.0", "%"] and "latency" not in plain
    shown = {name: cells(plain, name).split()[0] for name in ("dense at 6 bits", "lamp", "trial 7", "trial 9")}
    assert shown == {"dense at 6 bits": "6", "lamp": "(fine-grained)", "trial 7": "8", "trial 9": "mixed"}
    timed = closing_table(closing_rows(replace(COMPARISON, latency=TIMED), SCORES, {"one": 7, "two": 9}))
    assert timed.splitlines()[0].split()[-3:] == ["MACs", "latency", "interval"]
    assert cells(timed, "trial 7").split()[-4:] == ["40.0", "%", "[38.5,", "42.5]"]
    assert cells(timed, "trial 9").split()[-5:] == ["98.5", "%", "noise", "[97.0,", "99.5]"]
    assert cells(timed, "dense ").split()[-3:] == ["100.0", "%", "-"]
    assert cells(timed, "dense at 6 bits").split()[-2:] == ["-", "-"]
    assert max(map(len, timed.splitlines())) <= 120
    said = latency_line(TIMED)
    for words in ("1 thread,", "a CPU", "30 rounds", "2 ms", "5.0 %", "100.1 % [99.0, 102.0]"):
        assert words in said, said
    steady = latency_line(replace(TIMED, copy=replace(TIMED.copy, share=1.0, low=1.0, high=1.0)))
    assert "a copy of it 100.0 %: an interval" in steady


@pytest.mark.parametrize(
    ("command", "slow", "bits", "round_to", "told"),
    [
        ("adb {file}", ["two"], 8, 1, ["int8"]), ("adb {file}", ["two"], 16, 1, []), (None, ["one", "two"], 8, 1, []),
        ("adb {file}", [], 8, 1, []), ("adb {file}", ["one"], 32, 4, ["--round-to"]),
        ("adb {file}", ["one"], {"a": 16, "b": 4}, 1, ["int8", "--round-to"]), ("adb {file}", ["one"], 32, 16, []),
    ],
)  # fmt: skip
def test_which_networks_are_slower_is_said_and_by_a_command_why(command, slow, bits, round_to, told):
    """Of the first 75 % of the MACs are gone, of the second none."""
    networks = {**TIMED.networks, **dict.fromkeys(slow, TimedNetwork(0.003, 0.01, 2.25, 2.2, 2.3))}
    timed = replace(TIMED, command=command, networks=networks)
    rows = closing_rows(replace(COMPARISON, latency=timed), SCORES, {"one": 7, "two": 9})
    said = slower_line(timed, [replace(row, bits=bits) for row in rows], round_to)
    assert [word for word in ("int8", "--round-to") if word in said] == told
    names = " and ".join(f"trial {({'one': 7, 'two': 9})[name]}" for name in slow)
    assert said.startswith(f"Slower than the dense model: {names}.") if slow else said == ""


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
    assert small.endswith("gains size at this limit, 12.0 % against 14.9 %, but shows no gain in mAP.")
    rows = closing_rows(COMPARISON, SCORES, {"two": 9})
    row = next(row for row in plain_closing_rows(rows, unit) if row["name"] == "trial 9")
    assert row["test_value"] == pytest.approx(34.4) and row["test_value_sd"] == pytest.approx(0.8)
    assert "test_value" not in plain_closing_rows(rows)[0]


def rounded(test: float, size: float, bits: int = 6) -> dict[str, Reference]:
    return {"dense": REFERENCE, f"dense at {bits} bits": Reference(0.9, test, size, 0.97)}


TOP = "the most accurate finalist on test"
NOTHING = "pruning shows no gain at this limit."
SIZE = "pruning gains size at this limit, 12.0 % against 14.9 %, but shows no gain in accuracy."
THREE = rounded(0.875, 0.2, 8) | rounded(0.84, 0.15, 6) | rounded(0.82, 0.11, 4)


@pytest.mark.parametrize(
    ("references", "said"),
    [
        (rounded(0.855, 0.149), f"Dense at 6 bits (14.9 %) is 0.50 points below {TOP}, within noise: {SIZE}"),
        (rounded(0.837, 0.118), f"Dense at 6 bits (11.8 %) is 2.30 points below {TOP}, within noise: {NOTHING}"),
        (rounded(0.885, 0.118, 4), f"Dense at 4 bits (11.8 %) is 2.50 points above {TOP}: {NOTHING}"),
        (rounded(0.837, 0.251), ""),
        (rounded(0.836, 0.118), ""),
        (THREE, f"Dense at 6 bits (15.0 %) is 2.00 points below {TOP}, within noise"),
        (rounded(0.86, 0.118), f"Dense at 6 bits (11.8 %) has the accuracy of {TOP}: {NOTHING}"),
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


def test_of_finalists_that_are_as_accurate_the_smallest_is_spoken_of():
    """`two` takes 12 %, and `one` 24 % of the bytes."""
    alike = SCORES | {"one": replace(SCORES["one"], final_accuracy=0.92)}
    compared = replace(COMPARISON, references=rounded(0.885, 0.26, 8))
    assert "12.0 % against 26.0 %" in (verdict(compared, alike, 0.3) or "")


def test_test_examples_count_where_rounding_is_compared():
    """By hand: 4 points below; two standard errors of 360 examples are 5.4 points, of 100,000 and the seeds 2.3."""
    compared = replace(COMPARISON, references=rounded(0.82, 0.2))
    said = {n: verdict(replace(compared, test_examples=n), EQUAL, 0.25) for n in (360, 100_000)}
    assert "Dense at 6 bits" in said[360] and "Dense at 6 bits" not in said[100_000]
    alone = {name: replace(score, n=1, test_sd=None) for name, score in EQUAL.items()}
    assert "Dense" not in verdict(compared, alone, 0.25)
    as_good = replace(COMPARISON, references=rounded(0.86, 0.2))
    assert f"Dense at 6 bits (20.0 %) has the accuracy of {TOP}" in verdict(as_good, alone, 0.25)


@pytest.mark.parametrize("granularities", [("fine-grained", "channel"), ("2:4",)])
def test_a_baseline_that_removes_what_a_finalist_does_is_that_finalist(vgg, vgg_graph, granularities):
    space = Space(vgg_graph.network, 0.6, granularities)
    evidence = {word: AllocationInputs(unit_importance(vgg, vgg_graph, word)) for word in granularities}
    projector = Projector(space, evidence)
    seeds = list(islice(initial_points(projector), 20))
    finalists = [projector.project(seed.params).policy for seed in seeds if seed.allocator == "lamp"]
    known = {fine_tune_key(space.network, policy): policy for policy in reversed(finalists)}
    found = known_alike(space.network, rivals_at_limit(projector), known)
    assert [rule for rule, _ in found] == list(BASELINES) and found[2].policy is finalists[0]
    different = {tuple(achieved(space.network, rival.policy).values()) for rival in found}
    assert len({rival.policy.digest for rival in found}) == len(different)
    alone = rivals_at_limit(projector)[2].policy
    assert achieved(space.network, alone) == achieved(space.network, finalists[0])


@pytest.fixture(scope="module")
def projectors(vgg, vgg_graph):
    """Limit -> a projector of a space of three widths."""

    def projector(limit: float) -> Projector:
        words = ("fine-grained", "channel")
        space = Space(vgg_graph.network, limit, words, bits=(8, 6, 4))
        return Projector(space, {word: AllocationInputs(unit_importance(vgg, vgg_graph, word)) for word in words})

    return projector


def test_static_rules_at_the_limit_have_each_of_the_studys_bits(projectors):
    projector = projectors(0.05)
    found = rivals_at_limit(projector)
    assert [(rule, policy.bits) for rule, policy in found] == [(rule, bits) for rule in BASELINES for bits in (8, 6, 4)]
    scores = {rival.policy.digest: 0.9 if (rival.rule, rival.policy.bits) == ("global", 4) else 0.8 for rival in found}
    assert best_rival(found, scores) == found[5]
    assert best_rival(found[:3], {one.policy.digest: 0.5 if one.policy.bits < 8 else -1.0 for one in found}) == found[1]


def test_rules_at_the_limit_are_left_out_where_they_say_nothing(projectors):
    """At half the size nothing is removed at any of these widths; a finalist at 0.046 is near a limit of 0.05."""
    small, large = projectors(0.05), projectors(0.5)
    assert informative(large, rivals_at_limit(large), [0.1]) == []
    assert informative(small, rivals_at_limit(small), [0.01, 0.046]) == []
    assert informative(small, rivals_at_limit(small), [0.01, 0.044]) == rivals_at_limit(small)


POINTS = ((0.03, "fine-grained", 6), (0.047, "channel", 8), (0.02, "channel", 4))
"""Size, granularity and bits of the trials below."""


def study_of(projector: Projector, **options) -> StudyState:
    """Three trials, all on the front: the smaller, the less accurate. Files are smaller than their targets."""
    state = StudyState(SearchConfig(max_size=0.05, bits=(8, 6, 4), cost="macs", **options), {})
    space = projector.space
    for number, (size, granularity, bits) in enumerate(POINTS):
        even = dict.fromkeys(space.knobs, 0.3) | {next(iter(space.knobs)): 0.6}
        found = projector.project(space.params(size, granularity, even, space.seed_schedule, bits=bits))
        written = replace(found.cost, encoded=0.9 * found.cost.encoded)
        result = TrialResult("complete", None, 0.9 + found.target, 1.0, written)
        state.add(TrialRecord(number, "x", found.params, found.policy, {}, found.target, result, 0.0, 1.0, 0.0))
    return state


def scores(rivals) -> dict[str, float]:
    """LAMP's are the highest."""
    return {rival.policy.digest: 0.7 + (rival.rule == "lamp") / 10 for rival in rivals}


def play(contest: Contest, state: StudyState, accuracy) -> dict[str, int]:
    """Have all runs that a contest asks for; `accuracy` is of a name and a seed. Returns the runs by name."""
    runs: dict[str, int] = {}

    def have(asked: list[Tuned]) -> None:
        for one in asked:
            done = {run.seed for run in state.finals if run.digest == one.policy.digest}
            for seed in [seed for seed in range(1, one.runs + 1) if seed not in done]:
                cost = next(iter(state.records.values())).result.shares
                result = TrialResult("complete", None, accuracy(one.name, seed), 1.0, cost)
                state.add_final(FinalRecord(one.policy.digest, seed, one.policy, result, 0.5, 1.0, 0.0))
                runs[one.name] = runs.get(one.name, 0) + 1

    while asked := contest.undecided():
        have(asked)
    contest.choose_baselines(scores)
    have(contest.baselines)
    assert not contest.undecided()
    return runs


@pytest.mark.parametrize(
    ("accuracies", "best", "runs"),
    [
        ({0: [0.8], 1: [0.9, 0.7, 0.86], 2: [0.7]}, 1, [1, 3, 1]),
        ({0: [0.8, 0.9, 0.9], 1: [0.9, 0.5, 0.6], 2: [0.7]}, 0, [3, 3, 1]),
        ({0: [0.8, 0.3, 0.2], 1: [0.9, 0.5, 0.6], 2: [0.7, 0.7, 0.1]}, 1, [3, 3, 3]),
    ],
)
def test_whoever_leads_gets_all_runs_and_so_does_its_baseline(projectors, accuracies, best, runs):
    """By hand: the second falls to 0.667 after its further runs, below the first, which then gets its own."""
    state = study_of(projectors(0.05))
    contest = Contest(state.config, projectors(0.05), state)
    assert contest.runs_left == 2 * (3 + 2)

    def accuracy(name: str, seed: int) -> float:
        return 0.6 if "for" in name else accuracies[int(name.split()[1])][seed - 1]

    found = play(contest, state, accuracy)
    assert [found[f"trial {number}"] for number in range(3)] == runs and state.best == best
    assert {name: count for name, count in found.items() if "for" in name} == {
        f"lamp for trial {number}": 3 if number == best else 1 for number in range(3)
    }
    assert [state.scores[record.policy.digest].n for record in state.records.values()] == runs


def test_one_that_leads_by_earlier_runs_is_a_finalist_with_all_runs(projectors):
    """As after further trials, whose front has another on top; it lacks one run of two."""
    state = study_of(projectors(0.05), finalists=1, final_repeats=2)
    own = state.records[0]
    earlier = TrialResult("complete", None, 0.99, 1.0, own.result.shares)
    state.add_final(FinalRecord(own.policy.digest, 1, own.policy, earlier, 0.5, 1.0, 0.0))
    contest = Contest(state.config, projectors(0.05), state)
    assert contest.finalists == [1] and contest.standing == ((1,), None)
    found = play(contest, state, lambda name, seed: 0.97 if name == "trial 0" else 0.6)
    assert contest.finalists == [1, 0] and (found["trial 1"], found["trial 0"]) == (1, 1)
    assert found["lamp for trial 0"] == 2 and contest.standing == ((1, 0), 0)


def test_baselines_have_the_size_granularity_and_bits_of_their_finalist(projectors):
    """The oracle is the footprint's bound, which the allocators have to meet and do not fall far below."""
    projector = projectors(0.05)
    state = study_of(projector)
    contest = Contest(state.config, projector, state)
    play(contest, state, lambda name, seed: 0.9)
    policies = {run.digest: run.policy for run in state.finals}
    comparison, dense = contest.comparison, dense_footprint(projector.space.network)
    assert comparison.baselines == {} and comparison.named == ()  # a finalist is near the limit
    for record in state.records.values():
        own = policies[comparison.matched[record.policy.digest].digest]
        size = relative_cost(footprint(projector.space.network, own), dense).encoded
        assert (own.granularity, own.bits) == (record.policy.granularity, record.policy.bits)
        assert 0.95 * record.target < size <= record.target
    names = list(closing_rows_of(comparison, state))
    assert names[1:3] == ["trial 1", "lamp for trial 1"] and len(names) == 1 + 6


@pytest.mark.parametrize(("comparison", "contests"), [("paired", [[1], [0]]), ("full", [[1], [0], [2]])])
def test_rules_compete_once_for_each_granularity(projectors, comparison, contests):
    """By short fine-tunes at the size of the finalist that leads in it, trial 1 of channels; 0 is fine-grained."""
    projector, asked = projectors(0.05), []
    state = study_of(projector, comparison=comparison, final_repeats=1)
    contest = Contest(state.config, projector, state)

    def noted(rivals):
        widths = {number: record.policy.bits for number, record in state.records.items()}
        asked.append([number for number, bits in widths.items() if {rival.policy.bits for rival in rivals} == {bits}])
        return scores(rivals)

    play(contest, state, lambda name, seed: {"trial 1": 0.9}.get(name, 0.5))
    contest.choose_baselines(noted)
    assert asked[: len(contests)] == contests and len(asked) == len(contests) + 3 * (comparison == "full")
    assert {one.rule for one in contest.comparison.matched.values()} == {"lamp"}


def closing_rows_of(comparison: Comparison, state: StudyState) -> dict[str, ClosingRow]:
    trial_of = {record.policy.digest: number for number, record in state.records.items()}
    rows = closing_rows(replace(comparison, references={"dense": REFERENCE}), state.scores, trial_of)
    return {row.name: row for row in rows}


def test_a_full_comparison_leaves_nothing_out(projectors):
    state = study_of(projectors(0.05), comparison="full", final_repeats=2)
    contest = Contest(state.config, projectors(0.05), state)
    assert contest.runs_left == 2 * (3 + 3 + 3)
    found = play(contest, state, lambda name, seed: 0.8)
    assert set(found.values()) == {2} and len(found) == 9
    assert list(contest.comparison.baselines) == list(BASELINES) and contest.comparison.bits["lamp"] == 8


def test_named_trials_get_all_runs_beside_those_compared_before(projectors):
    state = study_of(projectors(0.05), finalists=1)
    contest = Contest(state.config, projectors(0.05), state, named=[2, 0])
    found = play(contest, state, lambda name, seed: 0.8)
    pairs = {name: 3 for n in (2, 0) for name in (f"trial {n}", f"lamp for trial {n}")}
    assert found == {**pairs, "lamp at the limit": 1}, "neither is near the limit"
    digests = [state.records[n].policy.digest for n in (2, 0)]
    assert contest.comparison.finalists == contest.comparison.named == tuple(digests)
    later = Contest(state.config, projectors(0.05), state, known=contest.comparison)
    assert later.finalists == [1, 2, 0], "the front's finalist, and those named before"
    again = Contest(state.config, projectors(0.05), state, [1], contest.comparison)
    assert again.finalists == [2, 0, 1]


def asked_of(state: StudyState, **changes) -> SearchConfig:
    return state.config.model_copy(update=changes)


@pytest.fixture
def compared(projectors) -> tuple[StudyState, Comparison]:
    """Three finalists, of which trial 1 leads and has three runs; runs and the comparison are there."""
    state = study_of(projectors(0.05))
    contest = Contest(state.config, projectors(0.05), state)
    play(contest, state, lambda name, seed: 0.9 if "trial 1" in name else 0.8)
    return state, contest.comparison


def test_finalists_compared_before_stay_without_a_run_where_fewer_are_asked_for(projectors, compared):
    state, known = compared
    fewer = asked_of(state, finalists=1)
    assert Contest(fewer, projectors(0.05), state).finalists == [1], "nothing was compared before"
    contest = Contest(fewer, projectors(0.05), state, known=known)
    assert contest.finalists == [1, 0, 2] and contest.runs_left == 0
    assert play(contest, state, lambda name, seed: pytest.fail(name)) == {}
    assert contest.comparison == known and list(contest.comparison.matched) == list(known.matched)


def for_global(rivals) -> dict[str, float]:
    return {rival.policy.digest: float(rival.rule == "global") for rival in rivals}


def test_their_rule_is_not_chosen_anew(projectors, compared):
    """Global, say, does better by now: it is taken for the front's finalist alone."""
    state, known = compared
    contest, asked = Contest(asked_of(state, finalists=1), projectors(0.05), state, known=known), []
    contest.choose_baselines(lambda rivals: asked.append(len(rivals)) or for_global(rivals))
    assert asked == [3], "one contest, of the front's finalist"
    first, *others = known.finalists
    found = contest.comparison.matched
    assert found[first].rule == "global" and [found[d] for d in others] == [known.matched[d] for d in others]


def test_an_earlier_finalist_that_leads_has_all_runs(projectors, compared):
    state, known = compared
    policy, cost = state.records[2].policy, state.records[2].result.shares
    last = TrialResult("complete", None, 1.0, 1.0, cost)
    state.add_final(FinalRecord(policy.digest, 9, policy, last, 0.5, 1.0, 0.0))
    contest = Contest(asked_of(state, finalists=1), projectors(0.05), state, known=known)
    found = play(contest, state, lambda name, seed: 1.0 if name == "trial 2" else 0.5)
    assert state.best == 2 and found["lamp for trial 2"] == 2 and set(found) <= {"trial 2", "lamp for trial 2"}
    contest.choose_baselines(for_global)
    assert contest.comparison.matched[policy.digest].rule == "global"


def test_an_earlier_finalist_whose_size_no_rule_reaches_stays_alone(projectors, compared, monkeypatch):
    state, known = compared
    monkeypatch.setattr("search.study.contest.matched_rivals", lambda *_: [])
    known = replace(known, matched={})
    contest = Contest(asked_of(state, finalists=1), projectors(0.05), state, known=known)
    assert contest.finalists == [1, 0, 2] and play(contest, state, lambda name, seed: pytest.fail(name)) == {}
    assert contest.comparison.matched == {}


def test_earlier_finalists_that_lack_a_run_or_are_beaten_go(projectors, compared):
    state, known = compared
    fewer, projector = asked_of(state, finalists=1), projectors(0.05)

    def left(known: Comparison, config: SearchConfig = fewer) -> list[int]:
        return Contest(config, projector, state, known=known).finalists

    zero, two = (state.records[n].policy.digest for n in (0, 2))
    lost = {**known.matched, zero: Baseline("lamp", "gone")}
    assert left(replace(known, matched=lost)) == [1, 2]
    assert left(replace(known, matched={})) == [1], "a comparison of an earlier version"
    assert left(replace(known, finalists=(two,))) == [1, 2]
    full, runs = asked_of(state, finalists=1, comparison="full", final_repeats=2), {}
    for run in list(state.finals):
        runs.setdefault(run.digest, replace(run, seed=9))
    assert left(known, full) == [1]
    state.add_final(runs[known.matched[zero].digest])
    state.add_final(runs[two])
    assert left(known, full) == [1], "one lacks a run, the baseline of the other does"
    state.add_final(runs[zero])
    assert left(known, full) == [1, 0]
    own = state.records[0]
    better = replace(own.result, accuracy=own.result.accuracy + 0.001)
    state.add(replace(own, number=3, policy=replace(own.policy, bits=7), result=better))
    assert left(known) == [1, 2]


MATCHED = replace(
    COMPARISON,
    baselines={"uniform": "far"},
    matched={"two": Baseline("lamp", "static"), "one": Baseline("global", "two")},
)
FAR = SCORES | {"far": replace(SCORES["static"], digest="far", test_accuracy=0.87, final_accuracy=0.99)}


def test_rows_read_as_pairs():
    """`two` is compared with `static`; the rule at the size of `one` comes to `two`."""
    scores = FAR | {"static": replace(FAR["static"], n=1, final_sd=None, test_sd=None)}
    rows = closing_rows(MATCHED, scores, {"one": 7, "two": 9})
    assert [row.name for row in rows][2:] == [
        "trial 7", "trial 9", "lamp for trial 9", "uniform at the limit (fine-grained)",
    ]  # fmt: skip
    assert [row.runs for row in rows][2:] == [3, 3, 1, 3]
    said = "The best static rule at the size of trial 7, global, comes to the network of trial 9."
    assert alike_line(MATCHED, scores, {"one": 7, "two": 9}) == said
    same = replace(MATCHED, matched={"one": Baseline("lamp", "one")})
    said = "The best static rule at the size of trial 7, lamp, comes to that trial's network."
    assert alike_line(same, scores, {"one": 7, "two": 9}) == said
    shared = replace(MATCHED, matched={"one": Baseline("lamp", "static"), "two": Baseline("lamp", "static")})
    assert [row.name for row in closing_rows(shared, scores, {"one": 7, "two": 9})][3:] == [
        "lamp for trial 7", "trial 9", "uniform at the limit (fine-grained)",
    ]  # fmt: skip
    assert "trial 9, lamp, comes to the network of lamp for trial 7." in alike_line(
        shared, scores, {"one": 7, "two": 9}
    )


def test_the_verdict_compares_a_finalist_with_the_rule_at_its_size():
    """Not with the one at the limit, though that is more accurate. By hand: 6 points; one run of the rule counts with
    the spread of the finalist's three, 0.02 * sqrt(1 / 3 + 1) twice, 4.62 points.
    """
    rule = "'lamp', the most accurate static rule at its size on validation data,"
    sizes = "12.0 % of the size and 100.0 % of the MACs against 25.0 % and 100.0 %"
    said = f"The most accurate finalist is 6.00 points above {rule} on test"
    assert verdict(MATCHED, FAR, 0.25) == f"{said} (3 seeds; {sizes})."
    single = FAR | {"static": replace(FAR["static"], n=1, final_sd=None, test_sd=None)}
    assert verdict(MATCHED, single, 0.25) == f"{said} (3 and 1 seeds; {sizes})."
    closer = single | {"static": replace(single["static"], test_accuracy=0.815)}
    assert "differ by 4.50 points on test, within noise (3 and 1 seeds" in verdict(MATCHED, closer, 0.25)
    alone = verdict(replace(MATCHED, matched={"one": Baseline("lamp", "static")}), FAR, 0.25)
    assert "'uniform', the most accurate static rule at the limit on validation data," in alone


@pytest.mark.parametrize(
    ("tested", "runs", "line"),
    [
        (
            0.80,
            3,
            "as well as their finalists on test data: global for trial 7. Export one by --trial baseline:global@7.",
        ),
        (0.84, 3, "as well as their finalists on test data: lamp for trial 9 and global for trial 7."),
        (0.90, 3, "as well as their finalists on test data: global for trial 7; better: lamp for trial 9."),
        (0.84, 1, ""),
        (0.87, 1, "as well as their finalists on test data: lamp for trial 9. Export one by --trial baseline:lamp@9."),
    ],
)
def test_rules_as_good_as_their_finalists_are_told(tested, runs, line):
    """By hand: three runs of sd 0.02 make 3.27 points noise; of single ones nothing is known."""
    scores = FAR | {"static": replace(FAR["static"], test_accuracy=tested)}
    if runs == 1:
        scores = {name: replace(score, n=1, final_sd=None, test_sd=None) for name, score in scores.items()}
    said = level_line(level_rules(MATCHED, scores, {"one": 7, "two": 9}))
    assert said.startswith(f"Static rules that do {line}" if line else "") and bool(said) is bool(line)
    better = replace(MATCHED, matched={"two": Baseline("lamp", "static"), "one": Baseline("lamp", "one")})
    said = level_line(level_rules(better, FAR | {"static": replace(FAR["static"], test_accuracy=0.90)}, {"two": 9}))
    assert said.startswith("Static rules that do better than their finalists on test data: lamp for trial 9. Export")


def test_the_legend_explains_what_is_shown_and_nothing_else():
    rows = closing_rows(MATCHED, FAR, {"one": 7, "two": 9})
    said = closing_legend(rows)
    assert all(len(line) <= 80 for line in said)
    for start in (
        "runs: ",
        "encoded: ",
        "nonzero: ",
        "RULE for trial N: ",
        "RULE at the limit: ",
        "bits mixed",
        "a trial's sizes ",
    ):
        assert sum(line.startswith(start) for line in said) == 1, start
    assert not any("single run" in line or line.startswith("latency") for line in said)
    plain = closing_legend(closing_rows(COMPARISON, SCORES | {"two": SCORES["one"]}, {"one": 7}))
    assert not any(line.startswith("RULE") or "mixed" in line for line in plain)
    floats = [replace(row, bits=32) if row.name.startswith("trial") else row for row in rows]
    assert not any("a trial's sizes" in line for line in closing_legend(floats)), "nothing is rounded"
    once = [replace(row, validation_sd=None) for row in rows]
    assert sum("single run" in line for line in closing_legend(once)) == 1 and closing_legend([]) == []
