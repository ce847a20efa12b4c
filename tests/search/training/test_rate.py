"""Peak rates of fine-tunes: by damage, and fixed; what training sees of few bits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pruning.straight_through import StraightThrough
from search.training import train
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.rate import LEAST_SHARE, share_of_rate
from search.workloads import get_workload
from search.workloads.recipe import Recipe
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

ALL = ("conv0.weight", "conv1.weight", "classifier.weight")


@pytest.fixture(scope="module")
def subject(place, tmp_path_factory) -> PreparedModel:
    workload = get_workload(f"{place / 'tiny.py'}:tiny")
    return PreparedModel.of(workload, dense_model(workload, 0, tmp_path_factory.mktemp("cache")).model)


def rate(subject: PreparedModel, policy: PruningPolicy) -> float:
    """A share of the recipe's."""
    return evaluate_policy(subject, policy, 0.05, 0).result.rate / subject.workload.recipe.learning_rate


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [(2.0, 2.5, 0.35355339), (0.5, 0.5, 1 / 30), (0.5, 0.25, 1 / 30), (0.25, 0.75, 1.0), (0.25, 4.0, 1.0),
     (0.0, 1.0, 1.0), (-3.0, -1.0, 1.0), (0.5, math.inf, 1.0), (0.5, math.nan, 1.0), (math.nan, 0.5, 1.0)],
)  # fmt: skip
def test_share_by_the_rise_of_the_loss(before, after, share):
    assert share_of_rate(before, after) == pytest.approx(share)


def test_more_damage_takes_more_of_the_rate_whatever_the_schedule(subject):
    found = [rate(subject, PruningPolicy(dict.fromkeys(ALL, share), bits=bits, schedule=Schedule("one-shot")))
             for share, bits in ((0.1, 32), (0.85, 32), (0.1, 2))]  # fmt: skip
    assert LEAST_SHARE <= found[0] < found[1] <= 1 and found[0] < found[2] <= 1
    late = PruningPolicy(dict.fromkeys(ALL, 0.85), schedule=Schedule("polynomial"))
    assert rate(subject, late) == found[1]


def test_a_fixed_rate_is_the_recipes_and_trains_as_such(subject, monkeypatch):
    recipe = replace(subject.workload.recipe, rate="fixed")
    fixed = replace(subject, workload=replace(subject.workload, recipe=recipe))
    peaks = []
    monkeypatch.setattr(train, "one_cycle", lambda step, steps, peak, warmup: peaks.append(peak) or 0.001)
    policy = PruningPolicy({"conv1.weight": 0.5})
    assert rate(fixed, policy) == 1 and set(peaks) == {recipe.learning_rate}
    peaks.clear()
    assert set(peaks) == set() and rate(subject, policy) < 1 and max(peaks) < recipe.learning_rate


def test_the_last_half_of_a_training_sees_few_bits_and_masks_hold(subject, monkeypatch):
    steps, seen = [], []
    whole = StraightThrough.seen_by
    monkeypatch.setattr(train, "one_cycle", lambda step, *rest: steps.append(step) or 0.01)
    monkeypatch.setattr(StraightThrough, "seen_by", lambda self, model: seen.append(steps[-1]) or whole(self, model))
    schedule = Schedule("polynomial", ramp=0.75)
    policy = PruningPolicy({"conv0.weight": 0.25, "conv1.weight": 0.5}, "channel", bits=3, schedule=schedule)
    evaluation = evaluate_policy(subject, policy, 0.5, 0)
    assert evaluation.result.state == "complete", evaluation.result.reason
    assert seen == list(range(5, 10)) and steps == list(range(10))
    assert all(len(values.unique()) <= 7 for values in evaluation.model.conv1.weight.detach().flatten(1))
    assert not any("parametrizations" in name for name in evaluation.model.state_dict())
    seen.clear()
    evaluate_policy(subject, replace(policy, bits=8), 0.05, 0)
    assert seen == []


def test_passes_that_see_two_bits_end_nearer_to_them(subject, monkeypatch):
    policy = PruningPolicy({}, bits=2)
    losses = []
    for share in (0.5, 1.0):
        monkeypatch.setattr(train, "UNSEEN", share)
        losses.append(sum(evaluate_policy(subject, policy, 2, seed).result.loss for seed in range(2)))
    assert losses[0] < losses[1]


class TestRecipe:
    def test_finals_take_three_times_a_trial_unless_told(self):
        assert Recipe(trial_epochs=1.5).final_epochs == 4.5 and Recipe(trial_epochs=2, final_epochs=5).final_epochs == 5
        assert Recipe(trial_epochs=4, rate="fixed").final_epochs == 2

    def test_an_unknown_rate_is_refused(self):
        with pytest.raises(ValueError, match="unknown recipe rate 'damages': did you mean 'damage'"):
            Recipe(rate="damages")

    @pytest.mark.parametrize(
        ("given", "recorded"),
        [
            ({"trial_epochs": 3}, {"learning_rate": 0.05, "final_epochs": 2}),
            ({"trial_epochs": 3, "final_epochs": 9}, {"learning_rate": 0.05, "final_epochs": 9}),
            ({"optimizer": "adamw"}, {"learning_rate": 0.003, "final_epochs": 2}),
            ({"optimizer": "adamw", "learning_rate": 0.01}, {"learning_rate": 0.01, "final_epochs": 2}),
        ],
    )
    def test_what_it_meant_before_is_among_its_former_ones(self, given, recorded):
        written = {**Recipe(**given, rate="fixed").to_dict(), **recorded}
        assert written in [recipe.to_dict() for recipe in Recipe(**given).former()]
        other = {**written, "final_epochs": 7}
        assert other not in [recipe.to_dict() for recipe in Recipe(**given).former()]


def test_weights_of_the_dense_model_are_not_touched(subject):
    before = {name: value.clone() for name, value in subject.dense.state_dict().items()}
    evaluate_policy(subject, PruningPolicy(dict.fromkeys(ALL, 0.5), bits=2), 0.05, 0)
    assert all(torch.equal(value, before[name]) for name, value in subject.dense.state_dict().items())
