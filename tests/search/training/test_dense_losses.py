"""A dense model whose own training did not lower its loss is told of, whatever the loss and the metric."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from watchers import Notes

from search import Metric, Recipe, Workload
from search.errors import UsageError
from search.training.dense_losses import DenseLosses, validation_loss
from search.training.dense_model import dense_model
from search.training.train import train_dense

X = torch.arange(1.0, 61.0)[:, None] / 10
SLOPE = 3.0


def rmse(outputs, targets) -> float:
    return float(((outputs - targets) ** 2).mean().sqrt())


def line() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def task(rate: float, **changes) -> Workload:
    splits = {
        name: (X[first::4], SLOPE * X[first::4])
        for first, name in enumerate(("fit", "calibration", "validation", "test"))
    }
    recipe = Recipe(batch=5, dense_epochs=2, dense_learning_rate=rate)
    given = {"name": "line", "build_model": line, "loss": nn.functional.mse_loss, "recipe": recipe, **splits}
    return Workload(**{**given, "metric": Metric("RMSE", rmse, best="min"), **changes})


@pytest.fixture
def found(tmp_path):
    def made(workload):
        watcher = Notes()
        dense = dense_model(workload, 0, tmp_path, watcher=watcher)
        return SimpleNamespace(dense=dense, notes=watcher.notes, trained=bool(watcher.labels))

    return made


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (1.25, 1.0, None),
        (1.25, 1.25, "(1.25 before it, 1.25 after)"),
        (0.75, 4.25e30, "(0.75 before it, 4.25e+30 after)"),
        (0.75, float("nan"), "(0.75 before it, nan after)"),
        (-2.0, -1.5, "(-2 before it, -1.5 after)"),
        (float("inf"), 7.0, None),
        (float("nan"), 7.0, None),
    ],
)
def test_a_loss_that_is_no_lower_is_told_with_the_remedy(before, after, said):
    losses = DenseLosses(before, after)
    note = losses.note(Recipe(dense_learning_rate=0.25, dense_epochs=6))
    assert repr(DenseLosses.from_metadata(losses.to_metadata())) == repr(losses)
    if said is None:
        assert note is None
        return
    assert said in note and "\n" not in note
    assert note.endswith(" below 0.25 or more dense_epochs than 6; where it overfitted, fewer")


@pytest.mark.parametrize("kept", [{}, {"validation_losses": "[1.0]"}, {"validation_losses": "x"}], ids=repr)
def test_of_files_that_keep_no_losses_nothing_is_known(kept):
    assert DenseLosses.from_metadata(kept) is None


def test_a_regression_that_diverged_is_told_of_when_it_is_trained_and_from_the_cache(found):
    torch.manual_seed(0)
    untrained = line().eval()
    with torch.no_grad():
        before = float(((untrained(X[2::4]) - SLOPE * X[2::4]) ** 2).mean())
    first, again = found(task(0.1)), found(task(0.1))
    assert first.trained and not again.trained
    assert len(first.notes) == 1 and f"({before:.4g} before it, " in first.notes[0]
    assert "dense_learning_rate below 0.1 or" in first.notes[0] and again.notes == first.notes
    assert found(task(0.01)).notes == []


def test_looking_at_the_untrained_network_changes_no_result(found):
    workload = task(0.01)
    found_weights = found(workload).dense.model.state_dict()
    alone = train_dense(workload, 0).model.state_dict()
    assert all(torch.equal(alone[name], found_weights[name]) for name in alone)

    def drawing(outputs, targets):
        return nn.functional.mse_loss(outputs, targets) + torch.rand(()) + np.random.rand() + random.random()

    class Training(nn.Module):
        """Statistics follow every pass, in evaluation mode too."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = line()

        def forward(self, x):
            self.inner[1].train()
            return self.inner(x)

    model = Training()
    kept, states = model.inner[1].running_mean.clone(), random_states()
    losses = {validation_loss(task(0.01, loss=drawing), model) for _ in range(2)}
    assert len(losses) == 1 and torch.equal(model.inner[1].running_mean, kept)
    assert random_states() == states


def random_states() -> list[object]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize(("says", "told"), [(True, 1), (False, 0)])
def test_an_evaluate_is_believed_where_it_says_a_loss(found, says, told):
    def evaluate(model, split, run):
        x, y = X[2::4], SLOPE * X[2::4]
        value = rmse(model(x), y)
        return {"RMSE": value, "loss": value**2} if says else {"RMSE": value}

    assert len(found(task(0.1, evaluate=evaluate, metric=Metric("RMSE", best="min"))).notes) == told


def test_a_loss_that_became_infinite_is_refused_with_the_remedy(found):
    with pytest.raises(UsageError, match=r"loss is (inf|nan) .*: give its recipe a dense_learning_rate below 1e\+20$"):
        found(task(1e20))
