"""Statistics of the benchmarks on made-up tables; nothing is trained."""

from __future__ import annotations

import ast
import copy
import json
import math
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).with_name("benchmarks")))

import fixed_size
import gpu_check
import granularities
import momentum
import one_pass_scan
import pending_trials
import primitive_table
import primitives
import race_table
import search_race
import smallest
from fixed_size import Cell, Difference, outcomes
from primitive_table import PRIMITIVES, Case, Outcome, Primitive
from race_table import Cost, Paired, Ratio, Rules, Run, interval, runs_of, scored_volume, sign_flip_p, upper_median
from raw_rows import read_rows, seed_range

from search.training.evaluate import PreparedModel
from search.training.train import TRAININGS
from search.workloads import get_workload
from spaces.allocation.allocators import ALLOCATORS
from spaces.cost.footprint import dense_footprint, footprint, relative_cost
from spaces.criteria import CRITERIA
from spaces.granularity import GRANULARITIES
from spaces.policy import PruningPolicy
from spaces.schedule import SCHEDULES

pytestmark = pytest.mark.slow  # of scripts that are not installed
E = math.e
UNIT = np.array([1.0, 0.0, 1.0])
"""Reference: error 1, size 1 (log 0), MACs 1."""
RULES = Rules(trials=3, reference=UNIT, targets=(0.5, 0.9))


def row(method: str, seed: int, trial: int, error: float, test_error: float, **other: float) -> dict[str, str]:
    """A line of the raw table at size 1/e (log -1) and MACs 0.5 unless told."""
    values = {"size": 1 / E, "macs": 0.5, "seconds_before": 0, "seconds_proposing": 0, "seconds_tuning": 1} | other
    shares = {"accuracy": 1 - error, "test_accuracy": 1 - test_error} | values
    return {
        "workload": "toy", "seed": str(seed), "method": method, "trial": str(trial),
        **{k: str(v) for k, v in shares.items()},
    }  # fmt: skip


def lines(method: str, seed: int, errors: list[float], **other: float) -> list[dict[str, str]]:
    """A run whose test errors are its validation errors."""
    return [row(method, seed, n, error, error, **other) for n, error in enumerate(errors)]


class TestVolume:
    def test_validation_chooses_and_test_scores(self):
        better_on_validation, better_on_test = [0.1, 0.4, -1.0, 0.5], [0.2, 0.1, -1.0, 0.5]
        assert scored_volume(np.array([better_on_validation, better_on_test]), UNIT) == pytest.approx(0.6 * 0.5)

    def test_members_of_the_front_stay_though_test_error_would_drop_them(self):
        small, large = [0.3, 0.2, -1.0, 0.5], [0.1, 0.25, -0.5, 0.5]
        assert scored_volume(np.array([small, large]), UNIT) == pytest.approx(0.8 * 1.0 * 0.5)
        large[1] = 0.0
        assert scored_volume(np.array([small, large]), UNIT) == pytest.approx(0.5 * (0.8 * 1.0 + 0.2 * 0.5))

    def test_beyond_the_reference_counts_for_nothing(self):
        assert scored_volume(np.array([[1.0, 1.0, -1.0, 0.5]]), UNIT) == 0.0


class TestRuns:
    def test_share_of_the_union_of_all_methods(self):
        rows = [*lines("guided", 0, [0.6, 0.6, 0.2]), *lines("tpe", 0, [0.9, 0.5, 0.7], size=1 / E**2)]
        union = 0.5 * (0.5 * 2 + 0.3 * 1)  # error 0.5 down to log size -2, error 0.2 down to -1
        runs = runs_of(rows, "toy", RULES)
        assert runs["guided"][0].shares == pytest.approx(np.array([0.2, 0.2, 0.4]) / union)
        assert runs["tpe"][0].shares == pytest.approx(np.array([0.1, 0.5, 0.5]) / union)

    def test_each_contest_has_its_own_reference(self):
        rows = [*lines("guided", 0, [0.6, 0.6, 0.6]), *lines("guided", 7, [0.2, 0.1, 0.1])]
        runs = runs_of(rows, "toy", RULES)["guided"]
        assert runs[0].shares == pytest.approx([1, 1, 1])
        assert runs[7].shares == pytest.approx([8 / 9, 1, 1])

    def test_a_method_that_ran_in_some_contests_only_is_no_reference(self):
        rows = [*lines("guided", 0, [0.6] * 3), *lines("extra", 0, [0.2] * 3), *lines("guided", 7, [0.6] * 3)]
        runs = runs_of(rows, "toy", RULES)
        assert all(runs["guided"][seed].shares == pytest.approx([1, 1, 1]) for seed in (0, 7))
        assert runs["extra"][0].shares == pytest.approx([2, 2, 2])

    def test_a_variant_of_guided_is_no_reference(self):
        rows = [*lines("guided", 0, [0.6] * 3), *lines("guided +more", 0, [0.2] * 3)]
        runs = runs_of(rows, "toy", RULES)
        assert runs["guided"][0].shares == pytest.approx([1, 1, 1])
        assert runs["guided +more"][0].shares == pytest.approx([2, 2, 2])
        assert runs_of(rows[3:], "toy", RULES)["guided +more"][0].shares == pytest.approx([1, 1, 1])

    def test_a_share_can_fall_when_validation_misleads(self):
        rows = [row("guided", 0, 0, 0.3, 0.2), row("guided", 0, 1, 0.2, 0.6), row("guided", 0, 2, 0.5, 0.0)]
        assert runs_of(rows, "toy", RULES)["guided"][0].shares == pytest.approx([2, 1, 1])

    def test_longer_runs_are_scored_to_their_end(self):
        rows = [*lines("guided", 0, [0.6, 0.6, 0.6]), *lines("tpe", 0, [0.8, 0.7, 0.7, 0.6, 0.2])]
        runs = runs_of(rows, "toy", RULES)
        assert runs["guided"][0].shares == pytest.approx([0.5, 0.5, 0.5])
        assert runs["tpe"][0].shares == pytest.approx([0.25, 0.375, 0.375, 0.5, 1.0])
        assert race_table.cost_ratio(runs, "tpe", "guided", 0.5, "fine-tunes").ratio == 4.0

    def test_unfinished_runs_and_other_workloads_are_left_out(self):
        other = [line | {"workload": "other"} for line in lines("guided", 0, [0.0, 0.0, 0.0])]
        rows = [*lines("guided", 0, [0.5, 0.5, 0.5]), *lines("tpe", 0, [0.0, 0.0]), *other]
        runs = runs_of(rows, "toy", RULES)
        assert list(runs) == ["guided"]
        assert runs["guided"][0].shares == pytest.approx([1, 1, 1])

    def test_seconds_begin_with_the_scan_once(self):
        rows = lines("guided", 0, [0.5, 0.5, 0.5], seconds_before=10, seconds_proposing=0.5, seconds_tuning=2)
        assert runs_of(rows, "toy", RULES)["guided"][0].seconds == pytest.approx([12.5, 15.0, 17.5])


class TestCost:
    RUN = Run(np.array([0.1, 0.6, 0.4, 0.9]), np.array([2.0, 3.0, 7.0, 11.0]))

    @pytest.mark.parametrize(
        ("target", "tunes", "seconds", "shown"),
        [
            (0.1, Cost(1, False), Cost(2, False), "1"),
            (0.5, Cost(2, False), Cost(3, False), "2"),
            (0.9, Cost(4, False), Cost(11, False), "4"),
            (0.91, Cost(4, True), Cost(11, True), ">4"),
        ],
    )
    def test_first_time_reached_or_censored_at_the_budget(self, target, tunes, seconds, shown):
        assert self.RUN.cost(target, "fine-tunes") == tunes
        assert self.RUN.cost(target, "seconds") == seconds
        assert str(tunes) == shown

    def test_median_is_the_larger_middle_cost_and_the_censored_come_last(self):
        assert upper_median([Cost(9, False), Cost(2, False), Cost(4, False)]) == Cost(4, False)
        assert upper_median([Cost(30, False), Cost(5, True)]) == Cost(5, True)
        assert upper_median([Cost(24, True), Cost(3, False), Cost(5, False), Cost(24, True)]) == Cost(24, True)


class TestRatio:
    def test_geometric_mean(self):
        ratio = Ratio.of([Cost(2, False), Cost(24, False)], [Cost(1, False), Cost(3, False)])
        assert (ratio.n, ratio.ratio, ratio.p) == (2, pytest.approx(4.0), 0.5)
        assert (ratio.low, ratio.high) == (pytest.approx(2.0), pytest.approx(8.0))  # each drawn twice in 1 of 4

    @pytest.mark.parametrize(
        ("own", "baseline", "shown"),
        [
            ((False, False), (False, False), "2.00 [2.00, 2.00]"),
            ((True, False), (False, False), "≥2.00 [2.00, 2.00]"),
            ((False, False), (False, True), "≤2.00 [2.00, 2.00]"),
            ((True, False), (False, True), "?2.00 [2.00, 2.00]"),
            ((True, False), (True, False), "?2.00 [2.00, 2.00]"),
        ],
    )
    def test_censored_runs_make_it_a_bound(self, own, baseline, shown):
        ratio = Ratio.of([Cost(6, c) for c in own], [Cost(3, c) for c in baseline])
        assert str(ratio) == shown
        assert (ratio.censored, ratio.baseline_censored) == (sum(own), sum(baseline))
        assert not ratio.unknown

    def test_unknown_where_nobody_got_there(self):
        assert Ratio.of([Cost(24, True)] * 2, [Cost(24, True)] * 2).unknown

    def test_one_pair_has_no_interval(self):
        assert str(Ratio.of([Cost(3, False)], [Cost(2, False)])) == "1.50"

    def test_a_target_of_each_seed(self):
        runs = {
            "a": {0: Run(np.array([0.2, 0.8]), np.ones(2)), 1: Run(np.array([0.2, 0.8]), np.ones(2)), 5: None},
            "b": {0: Run(np.array([0.5, 0.9]), np.ones(2)), 1: Run(np.array([0.5, 0.9]), np.ones(2))},
        }
        ratio = race_table.cost_ratio(runs, "a", "b", {0: 0.5, 1: 0.85, 5: 0.0}, "fine-tunes")
        assert (ratio.n, ratio.ratio, ratio.censored) == (2, pytest.approx(2**0.5), 1)
        assert race_table.cost_ratio(runs, "a", "c", 0.5, "fine-tunes") is None


@pytest.mark.parametrize(("text", "seeds"), [("2-4", [2, 3, 4]), ("7", [7]), ("3-3", [3])])
def test_seeds_of_a_run(text, seeds):
    assert list(seed_range(text)) == seeds


class TestSignFlip:
    @pytest.mark.parametrize(
        ("values", "p"),
        [([5], 1.0), ([1, 2, 3], 2 / 8), ([3, 1, -1], 6 / 8), ([0, 0], 1.0), ([1] * 10, 2 / 1024), ([-0.1] * 3, 2 / 8)],
    )
    def test_by_hand(self, values, p):
        assert sign_flip_p(values) == p

    @settings.get_profile("few")
    @given(values=st.lists(st.integers(-9, 9), min_size=1, max_size=6))
    def test_equals_the_count_over_all_flips(self, values):
        sums = [
            abs(sum(s * v for s, v in zip(signs, values, strict=True)))
            for signs in product((1, -1), repeat=len(values))
        ]
        count = sum(found >= abs(sum(values)) for found in sums)
        assert sign_flip_p([v / 10 for v in values]) == count / len(sums)


class TestInterval:
    def test_of_zeros_and_ones_is_that_of_the_binomial(self):
        low, high = interval([1] * 4 + [0] * 6)
        assert (low, high) == (
            pytest.approx(binom.ppf(0.025, 10, 0.4) / 10),
            pytest.approx(binom.ppf(0.975, 10, 0.4) / 10),
        )

    def test_repeats(self):
        values = np.geomspace(0.01, 7, 9)
        assert interval(values) == interval(values)

    def test_paired(self):
        assert Paired.of([2.0, 2.0, 2.0]) == Paired(3, 2.0, 2.0, 2.0, 0.25)
        assert Paired.of([2.0]) == Paired(1, 2.0, None, None, 1.0)


class TestShow:
    @pytest.fixture
    def shown(self, capsys, tmp_path) -> SimpleNamespace:
        rows = []
        for seed in range(2):
            rows += lines("guided", seed, [0.6, 0.2, 0.2], seconds_before=3)
            rows += lines("tpe", seed, [0.8, 0.8, 0.6])
            rows += lines("guided -scan", seed, [0.9, 0.6, 0.4])
            rows += lines("guided inverted", seed, [0.9, 0.9, 0.4])
        race_table.show(rows, RULES, tmp_path / "race.png")
        text = capsys.readouterr().out
        return SimpleNamespace(text=text, summary=json.loads(text.splitlines()[-1]), figure=tmp_path / "race.png")

    def test_json_line(self, shown):
        toy = shown.summary["workloads"]["toy"]
        assert toy["n"] == {"guided": 2, "tpe": 2, "guided -scan": 2, "guided inverted": 2}
        assert toy["cost"]["guided"]["90%"] == {"fine-tunes": "2", "seconds": "5", "reached": 2}
        assert toy["cost"]["tpe"]["50%"] == {"fine-tunes": "3", "seconds": "3", "reached": 2}
        assert toy["cost"]["tpe"]["90%"] == {"fine-tunes": ">3", "seconds": ">3", "reached": 0}
        half, most, own = toy["cost over guided"]
        assert (half["target"], half["fine-tunes"]["ratio"], half["fine-tunes"]["censored"]) == (0.5, 3.0, 0)
        assert (most["target"], most["fine-tunes"]["ratio"], most["fine-tunes"]["censored"]) == (0.9, 1.5, 2)
        assert (own["target"], own["seconds"]["ratio"]) == ("own last", 0.75)
        assert toy["variants"]["guided -scan"]["mean"] == pytest.approx(-0.25)
        assert toy["cost over prior-free"]["guided inverted"]["fine-tunes"]["ratio"] == 1.0
        assert toy["cost over prior-free"]["guided"]["fine-tunes"]["ratio"] == pytest.approx(2 / 3, abs=1e-4)
        assert {"hardware", "torch", "optuna"} < shown.summary.keys()

    def test_tables(self, shown):
        assert "≥1.50 [1.50, 1.50]" in shown.text
        assert ">3 (>3 s; 0)" in shown.text
        assert max(map(len, shown.text.splitlines()[:-1])) <= 120

    def test_figure(self, shown):
        assert shown.figure.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def contest(tmp_path, vgg, vgg_graph) -> search_race.Contest:
    """One whose fine-tunes cost nothing: accuracy grows with the first layer's sparsity, falls with the seed."""
    contest = search_race.Contest("digits", 5, tmp_path)
    contest.subject = SimpleNamespace(network=vgg_graph.network, dense=vgg, graph=vgg_graph)
    contest.profile, contest.dense_error, contest.tuned = None, 0.05, []

    def tune(policy: PruningPolicy, seed: int) -> list[float]:
        contest.tuned.append(seed)
        accuracy = 0.4 + 0.5 * next(iter(policy.sparsity.values())) - (0.01 * (seed % 10) if seed >= 1000 else 0)
        return [accuracy, accuracy - 0.1, 0.1, 0.5, 1.0]

    contest._tune = tune
    return contest


class TestContest:
    POLICY = PruningPolicy({"features.0.weight": 0.5})

    def test_a_fine_tune_is_remembered_by_policy_and_seed(self, contest):
        first, other = contest.tune(self.POLICY), contest.tune(self.POLICY, 1003)
        assert contest.tune(self.POLICY, 5) == contest.tune(self.POLICY) == first != other
        assert contest.tune(self.POLICY, 1003) == other
        assert contest.tuned == [5, 1003]

    def test_what_earlier_races_stored_is_recalled_and_kept(self, contest, tmp_path):
        stored = tmp_path / "race-digits-6.json"
        stored.write_text(json.dumps({self.POLICY.digest: [0.9, 0.8, 0.1, 0.5, 2.0]}))
        old = search_race.Contest("digits", 6, tmp_path)
        old._tune = contest._tune
        assert old.tune(self.POLICY) == search_race.Tuned(0.9, 0.8, 0.1, 0.5, 2.0)
        old.tune(self.POLICY, 7)
        assert json.loads(stored.read_text()).keys() == {self.POLICY.digest, f"{self.POLICY.digest}@7"}

    def test_what_another_process_stores_meanwhile_is_kept(self, contest, tmp_path):
        twin = search_race.Contest("digits", 5, tmp_path)
        twin._tune = contest._tune
        contest.tune(self.POLICY, 8)
        twin.tune(self.POLICY, 9)
        assert len(json.loads((tmp_path / "race-digits-5.json").read_text())) == 2


class TestRace:
    @pytest.fixture
    def table(self, contest, monkeypatch, tmp_path):
        monkeypatch.setattr(search_race, "TABLE", tmp_path / "race.csv")
        contest.profile = SimpleNamespace(seconds=2.0)
        return lambda: read_rows(search_race.TABLE)

    def test_a_longer_race_adds_to_the_shorter(self, table, contest):
        search_race.race([contest], ["random", "nsga2"], 3)
        short = table()
        search_race.race([contest], ["random", "nsga2"], 2)
        assert table() == short
        search_race.race([contest], ["random"], 5)
        assert table()[:6] == short
        assert [(r["method"], r["trial"]) for r in table()[6:]] == [("random", "3"), ("random", "4")]
        assert len(contest.tuned) == 5, "the first generation of NSGA-II is random"

    def test_rows_of_another_proposer_are_not_added_to(self, table, contest, monkeypatch):
        search_race.race([contest], ["random"], 2)
        monkeypatch.setitem(search_race.METHODS, "random", search_race.METHODS["static"])
        with pytest.raises(RuntimeError, match="delete those first"):
            search_race.race([contest], ["random"], 3)

    def test_a_method_that_cannot_go_on_is_told(self, table, contest):
        with pytest.raises(RuntimeError, match="static ended after"):
            search_race.race([contest], ["static"], 400)


class TestFixedSize:
    @pytest.mark.parametrize("text", ["floor:channel", "0.07:fine-grained"])
    def test_cells_read_as_written(self, text):
        assert str(Cell.parse(text)) == text
        assert Cell.parse("0.10:channel") == Cell(0.1, "channel")

    def test_one_size_and_granularity(self, contest):
        space = Cell(0.1, "channel").space(contest)
        assert (space.size_range, space.usable) == ((0.1, 0.1), ("channel",))
        low, high = Cell.parse("floor:fine-grained").space(contest).size_range
        assert low == high == pytest.approx(1.2 * contest.space.floors["fine-grained"])

    def test_both_sides_spend_the_same_and_fresh_seeds_decide(self, contest, monkeypatch, tmp_path):
        monkeypatch.setattr(fixed_size, "TABLE", tmp_path / "fixed_size.csv")
        monkeypatch.setattr(fixed_size, "Contest", lambda *_: contest)
        fixed_size.run("digits", [5], [Cell(0.1, "channel")], tmp_path)
        rows = read_rows(fixed_size.TABLE)
        part = {
            (side, stage): [r for r in rows if (r["side"], r["stage"]) == (side, stage)]
            for side, stage in product(("guided", "static"), ("choosing", "final"))
        }
        allocators = {r["source"] for r in part["static", "choosing"]}
        assert len(part["guided", "choosing"]) == 24
        assert {"lamp", "uniform"} <= allocators
        assert len(part["static", "choosing"]) == 24 // len(allocators) * len(allocators)
        for side in ("guided", "static"):
            found = {}
            for r in part[side, "choosing"]:
                found.setdefault(r["digest"], []).append(float(r["accuracy"]))
            repeated = {digest: float(np.mean(own)) for digest, own in found.items() if len(own) > 1}
            assert len(repeated) == (3 if side == "guided" else len(allocators))
            best = max(repeated, key=repeated.get)
            assert [r["digest"] for r in part[side, "final"]] == [best] * 3
            assert part[side, "final"][0]["accuracy"] == max(r["accuracy"] for r in part[side, "choosing"])
            tried = {r["tune_seed"] for r in part[side, "choosing"]}
            assert not tried & {r["tune_seed"] for r in part[side, "final"]}
        spent = len(contest.tuned)
        fixed_size.run("digits", [5], [Cell(0.1, "channel")], tmp_path)
        assert (len(contest.tuned), len(read_rows(fixed_size.TABLE))) == (spent, len(rows))

    def test_difference_is_paired_by_fresh_seed_then_over_contests(self, capsys):
        tests = {
            (0, "guided"): [0.90, 0.80, 0.70],
            (0, "static"): [0.70, 0.70, 0.70],
            (1, "guided"): [0.50, 0.50, 0.50],
            (1, "static"): [0.40, 0.40, 0.40],
        }
        frame = {"workload": "toy", "cell": "0.1:channel", "source": "lamp"}
        rows = [
            frame | {"seed": str(seed), "side": side, "stage": stage, "tune_seed": str(n), "test_accuracy": str(value)}
            for (seed, side), values in tests.items()
            for stage, shift in (("choosing", 0.3), ("final", 0.0))
            for n, value in reversed(list(enumerate(np.array(values) - shift)))
        ]
        own = outcomes(rows)["toy", "0.1:channel"]
        assert own[0].tests["guided"] == pytest.approx([0.9, 0.8, 0.7])
        assert own[0].difference.mean == pytest.approx(0.1)
        assert own[0].difference.error == pytest.approx(0.1 / 3**0.5)
        fixed_size.show(rows)
        (cell,) = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
        assert (cell["n"], cell["points"], cell["standard_error"]) == (2, 10.0, 0.0)

    def test_one_value_has_no_error(self):
        assert (str(Difference.of([-0.021])), str(Difference.of([0.01, 0.03]))) == ("-2.10", "+2.00 ± 1.00")


class TestSmallest:
    """On a made-up truth: accuracy 0.95 at any size down to 8 %, less below."""

    @pytest.fixture
    def rows(self, contest, monkeypatch, tmp_path) -> list[dict[str, str]]:
        def tune(policy: PruningPolicy, seed: int) -> list[float]:
            size = contest.space.target(1.0, policy.granularity).size(policy.sparsity)
            accuracy = 0.95 - max(0.08 - size, 0) - 0.001 * (seed % 3)
            return [accuracy, accuracy - 0.1, size, 1.0, 1.0]

        contest._tune = tune
        untuned = lambda c, least, source, model, size: smallest.Looked(  # noqa: E731
            [one := smallest.Tried(source, None, {5: search_race.Tuned(0.95, 0.9, 1.0, 1.0, 0.0)})], one
        )
        monkeypatch.setattr(smallest, "_untuned", untuned)
        monkeypatch.setattr(smallest, "TABLE", tmp_path / "smallest.csv")
        monkeypatch.setattr(smallest, "Contest", lambda *_: contest)
        smallest.run("digits", [5], tmp_path)
        return read_rows(smallest.TABLE)

    def part(self, rows, points: str, method: str, stage: str) -> list[dict[str, str]]:
        return [r for r in rows if (r["points"], r["method"], r["stage"]) == (points, method, stage)]

    @pytest.mark.parametrize(("points", "size"), [("0.005", 0.076), ("0.01", 0.071)])
    def test_bisection_ends_just_above_the_smallest(self, rows, points, size):
        """Mean of the three seeds' losses is 0.1 points: 0.4 or 0.9 points are left to lose below 8 %."""
        assert len(self.part(rows, points, "lamp", "choosing")) == 24
        finals = self.part(rows, points, "lamp", "final")
        assert [r["tune_seed"] for r in finals] == ["2000", "2001", "2002"]
        assert size <= float(finals[0]["size"]) < size * 1.03

    def test_guided_takes_the_smallest_that_is_within_when_tuned_again(self, rows):
        choosing = self.part(rows, "0.01", "guided", "choosing")
        (found,) = {r["digest"] for r in self.part(rows, "0.01", "guided", "final")}
        own = [float(r["accuracy"]) for r in choosing if r["digest"] == found]
        assert len(choosing) <= 24
        assert len(own) == 3
        assert np.mean(own) >= 0.94
        sizes = {float(r["size"]) for r in choosing if float(r["accuracy"]) >= 0.942}
        assert float(next(r for r in choosing if r["digest"] == found)["size"]) <= min(sizes)

    def test_shown_against_dense(self, rows, capsys):
        smallest.show(rows)
        found = json.loads(capsys.readouterr().out.splitlines()[-1])["found"]
        assert [(f["method"], f["points"]) for f in found[:5]] == [
            (m, "0.5") for m in ("dense", "guided", "lamp", "global", "int8")
        ]
        assert found[2]["below_dense"] == pytest.approx(0.9 - found[2]["test"])

    def test_what_is_there_is_not_run_again(self, rows, contest, monkeypatch, tmp_path):
        monkeypatch.setattr(contest, "tune", lambda *_: pytest.fail("tuned again"))
        smallest.run("digits", [5], tmp_path)
        assert read_rows(smallest.TABLE) == rows


class TestGranularities:
    """On a made-up truth: accuracy falls by a point for each ten of the size, by a tenth for each seed."""

    @pytest.fixture
    def table(self, monkeypatch, tmp_path, vgg, vgg_graph):
        class MadeUp(search_race.Contest):
            def _tune(self, policy: PruningPolicy, seed: int) -> list[float]:
                cost = footprint(vgg_graph.network, policy)
                size = relative_cost(cost, dense_footprint(vgg_graph.network)).encoded
                late = 0.02 if policy.schedule.kind == "one-shot" else 0.001 * policy.schedule.exponent
                return [0.0, 0.9 + 0.1 * size - 0.001 * seed - late, size, 0.5, 1.0]

        monkeypatch.setattr(MadeUp, "subject", SimpleNamespace(network=vgg_graph.network, dense=vgg, graph=vgg_graph))
        monkeypatch.setattr(granularities, "TABLE", tmp_path / "granularities.csv")
        monkeypatch.setattr(granularities, "Contest", MadeUp)
        monkeypatch.setattr(granularities, "_dense", lambda contest: search_race.Tuned(0.0, 0.99, 1.0, 1.0, 0.0))
        return lambda: read_rows(granularities.TABLE)

    def test_parts_make_the_whole_and_nothing_is_run_again(self, table, monkeypatch, tmp_path):
        granularities.run("digits", [3, 5], tmp_path, (2, 2))
        half = table()
        granularities.run("digits", [3, 5], tmp_path, (1, 2))
        whole = table()
        monkeypatch.setattr(search_race.Contest, "tune", lambda *_: pytest.fail("tuned again"))
        granularities.run("digits", [3, 5], tmp_path)
        assert table() == whole
        assert 0 < len(half) < len(whole) == len({granularities._key(row) for row in whole})
        assert [row["seed"] for row in whole if row["granularity"] == "dense"].count("3") == 1, "the very first line"

    def test_every_size_is_met_from_below(self, table, tmp_path):
        granularities.run("digits", [3], tmp_path)
        sized = [row for row in table() if row["target"]]
        words = {row["granularity"] for row in sized}
        assert words == set(granularities.SIZED)
        for row in sized:
            coarse = row["granularity"] in ("channel", "*:4")
            assert (0.85 if coarse else 0.99) * float(row["target"]) < float(row["size"]) <= float(row["target"])
        assert {row["granularity"] for row in table() if not row["target"]} == {"dense", "2:4", "1:4"}

    def test_a_pattern_keeps_its_share_wherever_it_divides_the_inputs(self, vgg, vgg_graph, tmp_path):
        contest = search_race.Contest("digits", 3, tmp_path)
        contest.subject = SimpleNamespace(network=vgg_graph.network, dense=vgg, graph=vgg_graph)
        policy = granularities.policy_of(contest, granularities.Cell("1:4"))
        assert set(policy.sparsity.values()) == {0.75}
        assert len(policy.sparsity) == len(vgg_graph.network.layers) - 1, "the first layer has one input"

    def test_half_of_a_combined_size_is_channels(self, vgg, vgg_graph, tmp_path):
        contest = search_race.Contest("digits", 3, tmp_path)
        contest.subject = SimpleNamespace(network=vgg_graph.network, dense=vgg, graph=vgg_graph)
        policy = granularities.policy_of(contest, granularities.Cell(granularities.COMBINED, 0.09))
        dense, network = dense_footprint(vgg_graph.network), vgg_graph.network
        removed = relative_cost(footprint(network, PruningPolicy({}, removal=policy.removal)), dense)
        assert 0.27 < removed.encoded <= 0.3
        assert relative_cost(footprint(network, policy), dense).encoded == pytest.approx(0.09, rel=0.005)

    @pytest.mark.slow
    def test_shown(self, table, tmp_path, capsys):
        granularities.run("digits", [0, 1, 2], tmp_path)
        granularities.show(table(), tmp_path / "both.png")
        text = capsys.readouterr().out
        found = {
            (one["granularity"], one["target"], one["schedule"]): one
            for one in json.loads(text.splitlines()[-1])["workloads"]["digits"]
        }
        one = found["fine-grained", 0.15, "E = 3"]
        assert (one["n"], one["test_sd"]) == (3, 0.001)
        assert one["test"] == pytest.approx(0.9 + 0.1 * one["size"] - 0.001 - 0.003, abs=2e-5)
        assert "+1.90 ± 0.00" in text, "E = 1 less one-shot"
        assert "91.10 ± 0.10" in text, "fine-grained at 15 %"
        assert max(map(len, text.splitlines()[:-1])) <= 120
        assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/2", "1/0"])
    def test_a_part_out_of_range_is_refused(self, text):
        with pytest.raises(granularities.argparse.ArgumentTypeError, match="such as 1/2"):
            granularities._part(text)


class TestPrimitives:
    def test_sides_take_turns_on_arguments_made_off_the_clock(self):
        now, called = [0.0], []

        def side(name: str, seconds: float) -> primitives.Side:
            def call(_: object) -> None:
                called.append(name)
                now[0] += seconds

            def prepare(n: int) -> list[None]:
                now[0] += 64.0
                return [None] * n

            return prepare, call

        found = primitives.interleaved(side("theirs", 2**-9), side("ours", 2**-10), 3, lambda: now[0])
        assert np.array(found) == pytest.approx(np.array([[2**-9, 2**-10]] * 3))
        theirs, ours = ["theirs"] * 3, ["ours"] * 5  # 4 ms each, and a little more
        assert called[4:] == [*theirs, *ours, *ours, *theirs, *theirs, *ours]

    def test_the_median_is_of_the_ratios_of_rounds(self):
        one = primitives.Compared.of("a", 7, [(3.0, 1.0), (8.0, 4.0), (10.0, 10.0)])
        assert (one.ratio, one.theirs, one.ours, one.rounds) == (2.0, 8000.0, 4000.0, 3)
        assert (one.low, one.high) == (1.5, 2.5)

    def test_shown(self, capsys, monkeypatch):
        monkeypatch.setattr(primitives, "LEAST_SECONDS", 0.0)
        masks = list(primitives.compare_masks(400, 1))
        steps = [primitives.compare_steps(1 / 16, 1, batch=4, side=8)]
        assert len(masks) == 2 * len(primitives.TWINS)
        primitives.show(masks, steps)
        text = capsys.readouterr().out
        summary = json.loads(text.splitlines()[-1])
        assert {one["size"] for one in summary["masks"]} == {400}
        assert summary["steps"][0]["what"] == "step, VGG9 x 0.0625"
        assert max(map(len, text.splitlines()[:-1])) <= 120

    def test_masks_that_differ_are_told(self, monkeypatch):
        monkeypatch.setattr(primitives, "make_mask", lambda weight, *_, **__: torch.ones_like(weight, dtype=torch.bool))
        with pytest.raises(RuntimeError, match="l1_unstructured: the masks differ"):
            list(primitives.compare_masks(400, 1))


class TestPrimitiveTable:
    REPORT = """<testsuites><testsuite>
        <testcase classname="tests.a.test_b.TestC" name="test_d[2-red]"/>
        <testcase classname="tests.a.test_b.TestC" name="test_d[3-red]"><failure message="no"/></testcase>
        <testcase classname="tests.a.test_b.TestC" name="test_d[2-blue]"><skipped/></testcase>
        <testcase classname="tests.a.test_b.TestOther" name="test_d[2-red]"/>
        <testcase classname="tests.a.test_b.TestC" name="test_different[2-red]"/>
        <testcase classname="tests.a.test_b" name="test_alone"/>
        </testsuite></testsuites>"""

    @pytest.mark.parametrize(
        ("part", "words"),
        [
            ("granularity", GRANULARITIES),
            ("criterion", CRITERIA),
            ("allocation", ALLOCATORS),
            ("schedule", SCHEDULES),
            ("training", TRAININGS),
        ],
    )
    def test_every_word_the_code_knows_has_a_row(self, part, words):
        assert set(words) <= {row.name for row in PRIMITIVES if row.part == part}

    def test_no_row_is_there_twice(self):
        assert len({(row.part, row.name) for row in PRIMITIVES}) == len(PRIMITIVES)

    @pytest.mark.parametrize("test", sorted({row.test for row in PRIMITIVES}))
    def test_what_a_row_names_exists(self, test):
        file, *inner = test.split("::")
        body = ast.parse((Path(__file__).parent / file).read_text()).body
        for name in inner:
            (body,) = (node.body for node in body if getattr(node, "name", "") == name)

    @pytest.mark.parametrize(
        ("test", "case", "found", "shown"),
        [
            ("TestC::test_d", "", Outcome(1, 1, 1), "1 passed, 1 failed, 1 skipped"),
            ("TestC::test_d", "2-red", Outcome(1), "1 passed"),
            ("TestC::test_d", "blue", Outcome(0, 0, 1), "1 skipped"),
            ("test_alone", "", Outcome(1), "1 passed"),
            ("test_gone", "", Outcome(), "no such test"),
        ],
    )
    def test_a_row_counts_its_own_cases(self, test, case, found, shown):
        row = Primitive("part", "name", "law", f"a/test_b.py::{test}", case)
        own = primitive_table.outcome(row, list(primitive_table.read_cases(self.REPORT)))
        assert (own, str(own), own.good) == (found, shown, shown == "1 passed")

    def test_errors_of_fixtures_are_failures(self):
        (case,) = primitive_table.read_cases('<a><testcase classname="x" name="y"><error/></testcase></a>')
        assert case == Case("x", "y", "failed")

    def test_shown(self, monkeypatch, capsys, tmp_path):
        rows = [PRIMITIVES[0], Primitive("size", "odd", "a law", "a.py::test_b", "1:4")]
        monkeypatch.setattr(primitive_table, "run", lambda rows: [Outcome(3), Outcome(4, 1)])
        assert not primitive_table.show(rows, tmp_path / "table.md")
        text = capsys.readouterr().out
        line = "| size | odd | a law | `pytest tests/a.py::test_b -k 1:4` | 4 passed, 1 failed |\n"
        assert line in text
        assert (tmp_path / "table.md").read_text().endswith(line)
        summary = json.loads(text.splitlines()[-1])
        assert (summary["rows"], summary["cases_passed"], summary["not_passing"]) == (2, 7, ["size: odd"])
        monkeypatch.setattr(primitive_table, "run", lambda rows: [Outcome(3)])
        assert primitive_table.show(rows[:1], None)


class TestMomentum:
    def test_the_network_is_scored_before_and_after_its_statistics_are_made_anew(self, place):
        workload = get_workload(f"{place / 'tiny.py'}:tiny")
        accuracy, rows = momentum.measured("digits", workload, range(1), (0.1, 0.0003))
        assert accuracy > 0.4 and [(row.policy, row.momentum) for row in rows] == [
            (policy, of) for of in (0.1, 0.0003) for policy in momentum.POLICIES
        ]
        usual, small = rows[:2], rows[2:]
        for one, other in zip(usual, small, strict=True):
            assert other.as_they_come < one.as_they_come - 0.05
            assert abs(other.refreshed - one.refreshed) < 0.1 and other.refreshed > other.as_they_come

    def test_table(self):
        rows = [
            momentum.Row("digits", "p", 0.01, seed, 0.25, value, "refreshed") for seed, value in ((0, 0.5), (1, 0.75))
        ]
        assert (
            momentum.table(rows).splitlines()[2]
            == "| digits | p | 0.01 | 2 | 25.0 (25.0 to 25.0) | 62.5 (50.0 to 75.0) |"
        )


class TestPendingTrials:
    @pytest.fixture
    def table(self, monkeypatch, tmp_path):
        monkeypatch.setattr(pending_trials, "TABLE", tmp_path / "pending_trials.csv")
        return lambda: read_rows(pending_trials.TABLE)

    def test_workers_take_turns_as_they_get_free(self, monkeypatch):
        """Three workers on trials of 1, 2, 3, ... seconds: the first is free at 1, the next at 2, ..."""
        truth = SimpleNamespace(
            trials=7, changes={}, first=lambda seed: [({"n": n}, "") for n in range(7)],
            guide=lambda seed: SimpleNamespace(learn=lambda *_: None),
            outcome=lambda seed, number, point: pending_trials.Outcome(number + 1.0, 0.5, (0.5, 0.0, 1.0)),
            projector=SimpleNamespace(project=lambda params: SimpleNamespace(key=str(params))),
        )  # fmt: skip
        seconds = {}
        for mode in (pending_trials.ASYNCHRONOUS, pending_trials.WAVES):
            cell = pending_trials.Cell("toy", mode, 3, pending_trials.DRAWS)
            ended = pending_trials.simulated(truth, cell, 0)
            assert [one.number for one in ended] == list(range(7))
            seconds[mode] = [one.second for one in ended]
        assert seconds[pending_trials.ASYNCHRONOUS] == [1, 2, 3, 5, 7, 9, 12]
        assert seconds[pending_trials.WAVES] == [1, 2, 3, 7, 8, 9, 16]

    def test_what_is_there_is_not_run_again_and_one_worker_is_the_measure(self, table, monkeypatch, capsys):
        monkeypatch.setattr(pending_trials.Truth, "trials", 14)
        monkeypatch.setattr(pending_trials.Truth, "marks", (8, 14))
        pending_trials.run("world", [3], ["draws"])
        rows = table()
        assert len(rows) == 2 * 3 and {row["repeated"] for row in rows} == {"0"}
        monkeypatch.setattr(pending_trials, "simulated", lambda *_: pytest.fail("run again"))
        pending_trials.run("world", [3], ["draws"])
        assert table() == rows
        pending_trials.show()
        cells = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
        assert [one["ratio"] for one in cells if one["workers"] == 1 or one["at"] == "8 trials"] == [1.0] * 4
        assert all(0.5 < one["ratio"] < 1.5 for one in cells)

    def test_every_policy_of_the_table_is_tried_once(self):
        truth = pending_trials.MeasuredTruth()
        assert len(truth.drafts) == 180 and truth.whole > 0
        truth.trials = 14
        ended = pending_trials.simulated(truth, pending_trials.Cell("table", "asynchronous", 4, "draws"), 1)
        assert len({one.digest for one in ended}) == 14 and 0 < truth.volume(ended) < 1


class TestGpuCheck:
    def test_without_a_card_it_is_one_line(self, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(gpu_check, "PARTS", ())
        assert gpu_check.main([]) == 0
        out = capsys.readouterr().out
        assert out.startswith("gpu_check: skipped, ") and out.count("\n") == 1

    def test_a_part_that_fails_is_told_and_the_next_goes_on(self, monkeypatch, capsys):
        def broken(check):
            raise RuntimeError("no kernel image\nis available")

        def two_laws(check):
            return {"same groups": True, "apart": 0.03125}

        monkeypatch.setattr(gpu_check, "PARTS", (broken, two_laws))
        assert gpu_check.main(["--dry-run"]) == 0
        *table, last = capsys.readouterr().out.splitlines()
        found = json.loads(last)["parts"]
        assert found["broken"]["failed"] == "RuntimeError: no kernel image"
        assert (found["two laws"]["same groups"], found["two laws"]["apart"]) == (True, 0.03125)
        assert [line.split(" | ")[-1] for line in table if line.startswith("two laws")][:2] == ["True", "0.03125"]

    def test_what_there_is_no_time_for_is_left_out(self, monkeypatch, capsys):
        monkeypatch.setattr(gpu_check, "PARTS", (lambda check: pytest.fail("ran"),))
        gpu_check.main(["--dry-run", "--minutes", "0"])
        (part,) = json.loads(capsys.readouterr().out.splitlines()[-1])["parts"].values()
        assert part == {"skipped": "no time left"}


@pytest.mark.parametrize("layer", ["backbone.conv1", "backbone.conv6", "classifier"])
def test_gradients_times_output_change_are_the_change_of_the_loss(layer):
    """Of weights that are 1e-5 smaller in places; double precision, as activations bend."""
    workload = get_workload("digits")
    torch.manual_seed(2)
    prepared = PreparedModel.of(workload, workload.build_model().eval())
    model = copy.deepcopy(prepared.dense).double()
    inputs, targets = workload.calibration[0].double(), workload.calibration[1]
    site = one_pass_scan.sites_of(prepared.with_weights(model), inputs, targets, one_pass_scan.MOVING)[
        f"{layer}.weight"
    ]
    changed, losses = copy.deepcopy(model), []
    weight = changed.get_parameter(f"{layer}.weight").data
    weight[weight.abs() < weight.abs().median()] *= 1 - 1e-5
    estimate = one_pass_scan.estimates(changed, [site])["first order"]
    for one in (model, changed):
        with torch.no_grad():
            losses.append(float(torch.nn.functional.cross_entropy(one.train()(inputs), targets)))
    assert estimate == pytest.approx(losses[1] - losses[0], rel=0.001) and abs(estimate) > 1e-8
