"""The recipe's optimizers: what they are, that masks hold under them, and that they forget what was masked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from pruning.gradual import GradualPruner
from search.errors import UsageError
from search.store.study_record import refuse_changes
from search.training import train
from search.training.dense_model import build_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.optimizers import ElementwiseAdamW, forget_masked_, make_optimizer
from search.workloads import get_workload
from search.workloads.recipe import Recipe
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

RECIPES = {
    "sgd": Recipe(batch=20, learning_rate=0.2, momentum=0.75, weight_decay=0.125, rate="fixed"),
    "adamw": Recipe(
        batch=20, optimizer="adamw", learning_rate=0.05, betas=(0.75, 0.875), weight_decay=0.25, rate="fixed"
    ),
}
SGD_AS_WRITTEN = {
    "batch": 128, "dense_epochs": 10, "trial_epochs": 1, "final_epochs": 2, "dense_learning_rate": 0.1,
    "learning_rate": 0.05, "warmup": 0.2, "momentum": 0.9, "weight_decay": 5e-4,
}  # fmt: skip
"""What studies of before there was a choice have written down."""


@pytest.fixture(scope="module")
def subject(place) -> PreparedModel:
    workload = get_workload(f"{place / 'tiny.py'}:tiny")
    return PreparedModel.of(workload, build_model(workload, 0))


def plain(recipe: Recipe, parameter: torch.Tensor) -> torch.optim.Optimizer:
    """PyTorch's own optimizer of a recipe."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD([parameter], 0.1, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True)
    return torch.optim.AdamW([parameter], lr=0.1, betas=recipe.betas, weight_decay=recipe.weight_decay)


def take(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """The parameter after a step along each gradient, at falling learning rates."""
    for number, gradient in enumerate(gradients):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach().clone()


class TestRecipe:
    def test_of_sgd_it_is_written_as_before_there_was_a_choice(self):
        assert Recipe(rate="fixed").to_dict() == SGD_AS_WRITTEN
        assert Recipe(optimizer="sgd", bn_l1=0.5, rate="fixed").to_dict() == {**SGD_AS_WRITTEN, "bn_l1": 0.5}
        assert Recipe().to_dict() == {**SGD_AS_WRITTEN, "final_epochs": 3, "rate": "damage"}

    def test_of_adamw_it_names_the_optimizer_and_what_it_has(self):
        found = Recipe(optimizer="adamw").to_dict()
        assert found["optimizer"] == "adamw" and found["betas"] == [0.9, 0.999] and "momentum" not in found
        assert found["learning_rate"] < 0.05 and found["dense_learning_rate"] < 0.1
        assert json.loads(json.dumps(found)) == found  # a resumed study compares it with what it reads
        with pytest.raises(UsageError, match=r"recipe was .* is .*adamw"):
            refuse_changes({"recipe": Recipe().to_dict()}, {"recipe": found}, "mine")
        changed = [Recipe(optimizer="adamw", **{name: value}).to_dict() for name, value in (
            ("betas", (0.9, 0.99)), ("weight_decay", 0.5), ("learning_rate", 0.5)
        )]  # fmt: skip
        assert all(found != other for other in changed)

    @pytest.mark.parametrize(
        ("parts", "said"),
        [
            ({"optimizer": "adam"}, "unknown recipe optimizer 'adam': did you mean 'adamw'"),
            ({"optimizer": "adamw", "momentum": 0.9}, "momentum has no effect on adamw, got 0.9: leave it out"),
            ({"betas": (0.9, 0.999)}, r"betas have no effect on sgd, got \(0.9, 0.999\): leave them out"),
            ({"optimizer": "adamw", "betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0"),
            ({"optimizer": "adamw", "betas": 0.9}, r"betas must be two numbers in \[0, 1\), got 0.9"),
            ({"momentum": 1.0}, "momentum must satisfy 0 <= momentum < 1, got 1.0"),
            ({"momentum": float("nan")}, "momentum must satisfy"),
            ({"weight_decay": -0.5}, "weight_decay must be >= 0, got -0.5; 0 leaves it out"),
            ({"learning_rate": "fast"}, "learning_rate must be a number > 0, got 'fast'; the default of sgd is 0.05"),
            ({"batch": 12.5}, "batch must be a whole number >= 1, got 12.5"),
            ({"warmup": None}, "warmup must satisfy 0 <= warmup < 1, got None"),
        ],
    )
    def test_a_wrong_part_is_named_with_its_value_and_a_remedy(self, parts, said):
        with pytest.raises(ValueError, match=said) as raised:
            Recipe(**parts)
        assert "\n" not in str(raised.value)

    def test_changing_the_optimizer_alone_does_not_keep_the_learning_rates_of_the_other(self):
        with pytest.raises(ValueError, match="give learning rates and weight_decay anew"):
            replace(Recipe(), optimizer="adamw")


class TestOptimizers:
    def test_steps_counted_by_element_are_pytorchs(self):
        torch.manual_seed(0)
        begin, gradients = torch.randn(5, 3, dtype=torch.float64), torch.randn(12, 5, 3, dtype=torch.float64)
        own, theirs = (nn.Parameter(begin.clone()) for _ in range(2))
        recipe = RECIPES["adamw"]
        found = take(ElementwiseAdamW([own], 0.1, recipe.betas, weight_decay=0.25), own, gradients)
        torch.testing.assert_close(found, take(plain(recipe, theirs), theirs, gradients), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("kind", RECIPES)
    def test_momentum_and_decay_are_the_recipes(self, kind):
        torch.manual_seed(1)
        gradients = torch.randn(6, 4, 3)
        model, other = nn.Linear(3, 4, bias=False), nn.Parameter(torch.empty(4, 3))
        other.data = model.weight.detach().clone()
        expected = take(plain(RECIPES[kind], other), other, gradients)
        torch.testing.assert_close(take(make_optimizer(model, RECIPES[kind]), model.weight, gradients), expected)

    def test_no_momentum_is_plain_gradient_descent(self):
        model = nn.Linear(2, 1, bias=False)
        before = model.weight.detach().clone()
        after = take(make_optimizer(model, Recipe(momentum=0.0, weight_decay=0.0)), model.weight, torch.ones(1, 1, 2))
        torch.testing.assert_close(after, before - 0.1)

    @pytest.mark.parametrize("kind", RECIPES)
    def test_what_was_masked_goes_on_as_under_a_new_optimizer(self, kind):
        """And what was not masked as if nothing had happened."""
        torch.manual_seed(2)
        gradients, kept = torch.randn(14, 4, 3), torch.rand(4, 3) > 0.4
        model = nn.Linear(3, 4, bias=False)
        begin = model.weight.detach().clone()
        optimizer = make_optimizer(model, RECIPES[kind], regrow=True)
        take(optimizer, model.weight, gradients[:9])
        forget_masked_(optimizer, model, {"weight": kept})
        with torch.no_grad():
            model.weight.copy_(torch.where(kept, model.weight, begin))
        found = take(optimizer, model.weight, gradients[9:])
        fresh, whole = nn.Parameter(begin.clone()), nn.Parameter(begin.clone())
        assert not kept.all() and kept.any()
        torch.testing.assert_close(found[~kept], take(plain(RECIPES[kind], fresh), fresh, gradients[9:])[~kept])
        optimizer = plain(RECIPES[kind], whole)
        take(optimizer, whole, gradients[:9])
        torch.testing.assert_close(found[kept], take(optimizer, whole, gradients[9:])[kept])


FINE = {"conv0.weight": 0.25, "conv1.weight": 0.7, "classifier.weight": 0.4}
CHANNEL = {"conv0.weight": 0.25, "conv1.weight": 0.6}
SCHEDULES = {
    "one-shot": Schedule("one-shot"),
    "ramp": Schedule("polynomial", 2.0, 0.7, 0.1, 3),
    "rounds": Schedule("iterative", 2.0, rounds=3),
    "regrown-ramp": Schedule("polynomial", 2.0, 0.8, interval=2, regrow=True),
    "regrown-rounds": Schedule("iterative", 1.0, rounds=4, regrow=True),
}
POLICIES = {
    "fine-grained": lambda schedule: PruningPolicy(FINE, schedule=schedule),
    "channel": lambda schedule: PruningPolicy(CHANNEL, "channel", schedule=schedule),
    "both": lambda schedule: PruningPolicy(FINE, removal={"conv0.weight": 0.4}, schedule=schedule),
}


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("granularity", POLICIES)
def test_no_masked_weight_ever_moves_in_a_trial(subject, monkeypatch, kind, schedule, granularity):
    """At every forward pass what is masked is 0; where it may come back, the optimizer has forgotten it."""
    seen = {"moved": 0.0, "forgotten": 0, "returned": 0, "steps": 0}
    pruners, optimizers, before = [], [], {}

    class Watched(GradualPruner):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            pruners.append(self)

    def watched_optimizer(*arguments):
        optimizers.append(make_optimizer(*arguments))
        return optimizers[-1]

    def check_state(model) -> None:
        for name, mask in before.items():
            parameter = model.get_parameter(name)
            if parameter not in optimizers[-1].state or mask.shape != parameter.shape:
                continue
            seen["returned"] += int((~mask & pruners[0].masks[name]).sum())
            for key, tensor in optimizers[-1].state[parameter].items():
                if tensor is not None and tensor.shape == mask.shape:
                    assert (tensor[~mask] == (1.0 if "decay" in key else 0.0)).all(), (name, key)
                    seen["forgotten"] += int((~mask).sum())

    def watched_step(model, optimizer, *rest):
        seen["steps"] += 1
        for name, mask in pruners[0].masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all(), name
        if SCHEDULES[schedule].regrow:
            check_state(model)
        value = step(model, optimizer, *rest)
        for name, mask in pruners[0].masks.items():
            seen["moved"] += float(model.get_parameter(name)[~mask].detach().abs().sum())
        before.update(pruners[0].masks)
        return value

    step = train._step
    monkeypatch.setattr(train, "GradualPruner", Watched)
    monkeypatch.setattr(train, "make_optimizer", watched_optimizer)
    monkeypatch.setattr(train, "_step", watched_step)
    busy = replace(subject, workload=replace(subject.workload, recipe=RECIPES[kind]))
    evaluation = evaluate_policy(busy, POLICIES[granularity](SCHEDULES[schedule]), 1, 0)
    assert evaluation.result.state == "complete", evaluation.result.reason
    assert seen["steps"] == 20 and len(pruners) == 1
    for name, mask in pruners[0].masks.items():
        assert (evaluation.model.get_parameter(name)[~mask] == 0).all()
    if pruners[0].masks or schedule != "one-shot":
        assert seen["moved"] > 0, "the optimizer pushes at masked weights, so that something is tested"
    if SCHEDULES[schedule].regrow:
        assert seen["forgotten"] > 0
    if schedule == "regrown-rounds" and granularity == "fine-grained":
        assert seen["returned"] > 0, "some weights come back, so that something is tested"
