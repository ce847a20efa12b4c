"""Fronts kept up trial by trial are those of all trials; dead networks are on none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from search import Workload
from search.config import make_config
from search.records import TrialRecord, TrialResult
from search.results.state import StudyState
from search.training.chance import chance_accuracy
from search.workloads.metrics import accuracy, accuracy_of_logits, accuracy_of_probabilities
from spaces.cost.footprint import RelativeCost
from spaces.policy import PruningPolicy

STATES = ("complete", "complete", "complete", "failed", "stopped-early")


def record(number: int, state: str, score: float, size: float, macs: float, latency: float | None) -> TrialRecord:
    shares = RelativeCost(
        **dict.fromkeys(RelativeCost.__dataclass_fields__, 0.0) | {"encoded": size, "nonzero": size, "macs": macs}
    )
    complete = state == "complete"
    result = TrialResult(
        state, None if complete else "x", score if complete else None, 1.0, shares if complete else None
    )
    return TrialRecord(
        number, "sampler", {}, PruningPolicy({"a.weight": 0.25}), {}, 0.3, result, 0.0, 1.0, 0.0, latency=latency
    )


def drawn(seed: int, count: int = 60) -> list[TrialRecord]:
    """Few values, so that there are ties and equal points."""
    random = np.random.default_rng(seed)
    tenths = random.integers(1, 7, (count, 4)) / 10
    return [record(n, str(random.choice(STATES)), *row) for n, row in enumerate(tenths.tolist())]


def slow_front(records: list[TrialRecord], limit: float, cost: str, chance: float | None) -> list[TrialRecord]:
    """By the definition, pair by pair; most accurate first, then smallest, then first."""

    def point(trial: TrialRecord) -> tuple[float, float, float | None]:
        third = trial.latency if cost == "latency" else trial.result.shares.macs
        return -trial.result.accuracy, trial.result.shares.encoded, third

    able = [t for t in records if t.result.state == "complete" and t.result.shares.encoded <= limit]
    able = [t for t in able if None not in point(t) and (chance is None or t.result.accuracy > chance)]

    def beats(one: TrialRecord, other: TrialRecord) -> bool:
        pairs = list(zip(point(one), point(other), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    front = [t for t in able if not any(beats(other, t) for other in able)]
    return sorted(front, key=lambda t: (-t.result.accuracy, t.result.shares.encoded, t.number))


def state(limit: float = 0.5, cost: str = "macs", chance: float | None = None, least: float | None = None):
    config = make_config(workload="digits", max_size=limit, cost=cost)
    return StudyState(config, {}, chance=chance, least_accuracy=least)


@pytest.mark.parametrize("seed", range(25))
def test_a_front_kept_up_is_the_front_by_definition_after_every_trial(seed):
    chance, cost = (None, 0.2)[seed % 2], ("macs", "latency")[seed // 2 % 2]
    kept, records, off = state(0.5, cost, chance), drawn(seed), set()
    for place, trial in enumerate(records):
        off |= set(kept.add(trial))
        wanted = slow_front(records[: place + 1], 0.5, cost, chance)
        assert [row.trial for row in kept.front] == [trial.number for trial in wanted]
        assert {row.trial for row in kept.front} == set(range(place + 1)) - off and kept.front_length == len(wanted)
    assert kept.counts() == {
        **{word: sum(t.result.state == word for t in records) for word in ("complete", "stopped-early", "failed")},
        "running": 0, "waiting": 0,
    }  # fmt: skip
    again = state(0.5, cost, chance)
    assert set(again.add_all(records, [])) == off and again.front == kept.front


@pytest.mark.parametrize(("seed", "least"), [(0, None), (1, 0.25), (2, 0.55), (3, 0.95)])
def test_finalists_are_the_most_accurate_or_the_smallest_accurate_enough_after_every_trial(seed, least):
    kept, records = state(least=least), drawn(seed, 20)
    for place, trial in enumerate(records):
        kept.add(trial)
        wanted = slow_front(records[: place + 1], 0.5, "macs", None)
        enough = [t for t in wanted if least is not None and t.result.accuracy >= least]
        numbers = [t.number for t in (sorted(enough, key=lambda t: t.result.shares.encoded) or wanted)]
        assert kept.finalists(1) == ([] if kept.best is None else [kept.best])
        for count in (0, 3, 99):
            assert kept.finalists(count) == numbers[:count]


def test_dead_networks_are_counted_and_on_no_front():
    records = [record(n, "complete", score, size, 0.5, None) for n, (score, size) in enumerate(
        [(0.9, 0.4), (0.12, 0.05), (0.11, 0.04), (0.10, 0.7)]
    )]  # fmt: skip
    blind, seeing = state(), state(chance=0.12)
    for kept in (blind, seeing):
        kept.add_all(records, [])
    assert {row.trial for row in blind.front} == {0, 1, 2} and [row.trial for row in seeing.front] == [0]
    assert (seeing.dead_within(0.5), seeing.dead_within(1.0), blind.dead_within(1.0)) == (2, 3, 0)


def task(targets, metric=accuracy) -> Workload:
    return Workload("task", torch.nn.Identity, *[(torch.ones(len(targets), 1), targets)] * 4, metric=metric)


def test_chance_is_the_most_frequent_class_and_what_chance_does_to_its_share():
    targets = torch.tensor([0] * 30 + [1] * 60 + [2] * 10)
    assert chance_accuracy(task(targets)) == pytest.approx(0.6 + 2 * (0.6 * 0.4 / 100) ** 0.5)
    assert chance_accuracy(task(torch.zeros(7, dtype=torch.long))) == 1.0


LABELS = torch.tensor([0] * 30 + [1] * 60 + [2] * 10)
BINARY = (LABELS == 1).float()


@pytest.mark.parametrize(
    ("workload", "share", "count"),
    [
        (task(LABELS[:, None]), 0.6, 100),
        (task(LABELS.float()[:, None]), 0.6, 100),
        (task(torch.nn.functional.one_hot(LABELS).float()), 0.6, 100),
        (task(torch.where(LABELS == 1, -100, LABELS)), 0.75, 40),
        (task(LABELS.reshape(10, 5, 2)), 0.6, 100),
        (task(BINARY, accuracy_of_logits), 0.6, 100),
        (task(BINARY[:, None], accuracy_of_probabilities), 0.6, 100),
        (task((BINARY == 1)[:, None], accuracy_of_logits), 0.6, 100),
        (task(BINARY.reshape(25, 1, 2, 2), accuracy_of_logits), 0.6, 100),
    ],
    ids=["column", "floats", "shares", "left-out", "maps", "logit", "probability", "bools", "binary-maps"],
)
def test_chance_is_known_for_every_form_of_targets_that_the_default_metrics_take(workload, share, count):
    assert chance_accuracy(workload) == pytest.approx(share + 2 * (share * (1 - share) / count) ** 0.5)


@pytest.mark.parametrize(
    "workload",
    [
        task(torch.tensor([0, 1, 1]), metric=lambda outputs, targets: 0.25),
        task(torch.tensor([0.5, 1.5])),
        task(torch.tensor([[0, 1], [1, 0]])),
        task(torch.tensor([[0.5, 1.5], [1.0, 0.0]])),
        task(torch.ones(3, 2, 4), metric=accuracy_of_logits),
        task(torch.full((4,), -100)),
    ],
    ids=["own-metric", "regression", "one-hot-or-two-places", "two-numbers", "binary-maps", "none-counts"],
)
def test_where_chance_is_unknown_nothing_is_claimed(workload):
    assert chance_accuracy(workload) is None
