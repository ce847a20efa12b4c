"""Statistics of BatchNorm before every score that counts."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from search.store.journal import Journal
from search.study.finals import _rounded
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_policy, evaluate_untrained
from search.training.refresh import AS_TRAINED, REFRESHED, fit_batches, refresh_statistics_, statistics_note
from search.training.scoring import score
from search.training.train import train_dense
from search.workloads import Workload, get_workload
from search.workloads.recipe import Recipe
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

FINE = PruningPolicy({"conv0.weight": 0.25, "conv1.weight": 0.7}, schedule=Schedule())
CHANNEL = PruningPolicy({"conv0.weight": 0.25, "conv1.weight": 0.5}, "channel", schedule=Schedule())


@pytest.fixture(scope="module")
def workload(place) -> Workload:
    return get_workload(f"{place / 'tiny.py'}:tiny")


@pytest.fixture(scope="module")
def dense(workload) -> nn.Module:
    return train_dense(workload, 0).model


def with_momentum(model: nn.Module, momentum: float | None) -> nn.Module:
    model = copy.deepcopy(model)
    for norm in (model.bn0, model.bn1):
        norm.momentum = momentum
    return model


@pytest.mark.parametrize("policy", [FINE, CHANNEL], ids=["fine-grained", "channel"])
def test_a_score_does_not_depend_on_the_momentum(workload, dense, policy):
    """The weights do not, as training normalises by each batch; so the refreshed networks are equal to the bit."""
    found = []
    for momentum in (0.01, 0.0003, 0.0, None, 0.1):
        subject = PreparedModel.of(workload, with_momentum(dense, momentum))
        found.append(evaluate_policy(subject, policy, 1, 3))
    first = found[0].result
    assert first.accuracy > 0.4 and first.statistics == REFRESHED
    assert abs(found[-1].result.accuracy - first.accuracy) < 0.05  # of the usual momentum either may be kept
    for evaluation in found[1:-1]:
        result = evaluation.result
        assert (result.accuracy, result.loss, result.statistics) == (first.accuracy, first.loss, REFRESHED)


def test_the_dense_training_does_not_either(workload):
    found = [
        train_dense(dataclasses.replace(workload, build_model=lambda m=m: with_momentum(workload.build_model(), m)), 0)
        for m in (0.01, 0.0003)
    ]
    assert found[0].scores == found[1].scores and found[0].statistics == REFRESHED


@pytest.mark.parametrize("policy", [FINE, CHANNEL], ids=["fine-grained", "channel"])
def test_what_is_kept_is_what_was_scored(workload, dense, policy):
    subject = PreparedModel.of(workload, with_momentum(dense, 0.001))
    for evaluation in (evaluate_policy(subject, policy, 1, 3), evaluate_untrained(subject, policy)):
        scores = score(evaluation.model, workload.validation, workload)
        assert (evaluation.result.accuracy, evaluation.result.loss) == (scores.accuracy, scores.loss)
        if evaluation.result.curve:
            assert evaluation.result.curve[-1].accuracy == scores.accuracy


def test_fit_data_that_fit_nothing_do_no_harm(workload, dense):
    """Refreshed statistics would be of another scale, which the loss on calibration data tells."""
    inputs, targets = workload.fit
    wrong = dataclasses.replace(workload, fit=(inputs[:6] * 9 + 4, targets[:6]))
    model = copy.deepcopy(dense)
    assert refresh_statistics_(model, wrong) == AS_TRAINED
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in model.state_dict().items())
    result = evaluate_untrained(PreparedModel.of(wrong, dense), FINE).result
    assert result.statistics == AS_TRAINED


def test_norms_their_owner_keeps_in_evaluation_mode_stay_as_they_are(workload, dense):
    class Kept(type(dense)):
        def train(self, mode=True):
            super().train(mode)
            self.bn0.eval()
            return self

    def build():
        model = Kept()
        model.load_state_dict(with_momentum(dense, 0.1).state_dict())
        return model

    own = dataclasses.replace(workload, build_model=build)
    model = build().eval()
    found = evaluate_policy(PreparedModel.of(own, model), FINE, 1, 0)
    assert found.result.statistics == REFRESHED
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(found.model.bn0, name), getattr(dense.bn0, name))
    assert not torch.equal(found.model.bn1.running_mean, dense.bn1.running_mean)


def test_networks_without_norms_are_scored_as_they_are(workload):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
    assert refresh_statistics_(plain, workload) is None
    found = evaluate_untrained(PreparedModel.of(workload, plain), PruningPolicy({"1.weight": 0.25}))
    assert found.result.statistics is None


def test_rounded_weights_get_statistics_of_their_own(workload, dense):
    spoilt = copy.deepcopy(dense)
    spoilt.bn1.running_var *= 400
    rounded = _rounded(PreparedModel.of(workload, spoilt), 8).result
    right = score(dense, workload.validation, workload).accuracy
    assert score(spoilt, workload.validation, workload).accuracy < right - 0.2
    assert rounded.accuracy > right - 0.1


def test_weights_of_the_user_are_not_touched(workload, dense, tmp_path):
    spoilt = copy.deepcopy(dense)
    spoilt.bn1.running_var *= 4
    torch.save(spoilt.state_dict(), tmp_path / "weights.pt")
    loaded = dense_model(workload, 0, tmp_path, tmp_path / "weights.pt").model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in spoilt.state_dict().items())


class TestFitBatches:
    def of(self, count: int, batch: int, targets: torch.Tensor | None = None) -> list[torch.Tensor]:
        inputs = torch.arange(count) if targets is None else targets
        split = (inputs, torch.zeros(count))
        workload = Workload("w", nn.Identity, split, split, split, split, Recipe(batch=batch))
        return list(fit_batches(workload))

    @pytest.mark.parametrize(
        ("count", "batch", "sizes"),
        [(7, 3, [4, 3]), (9, 4, [5, 4]), (5, 50, [5]), (5, 1, [3, 2]), (1, 8, [1]), (64, 8, [8] * 8), (65, 64, [65])],
    )
    def test_every_example_is_met_once_and_no_batch_is_of_one(self, count, batch, sizes):
        batches = self.of(count, batch)
        assert list(map(len, batches)) == sizes
        assert sorted(torch.cat(batches).tolist()) == list(range(count))

    def test_many_are_drawn_evenly(self):
        taken = torch.cat(self.of(10_000, 100))
        assert len(taken) == len(set(taken.tolist())) == 1024
        assert taken.sort().values.diff().max() < 2 * 10_000 / 1024 + 1

    @pytest.mark.parametrize("order", ["sorted", "in turns"])
    def test_every_batch_mixes_the_classes(self, order):
        places = torch.arange(10_240)
        targets = places // 1024 if order == "sorted" else places % 10
        batches = self.of(10_240, 64, targets)
        assert len(batches) == 16
        assert all(len(set(batch.tolist())) >= 8 for batch in batches)
        assert torch.cat(batches).bincount(minlength=10).min() > 60

    def test_the_same_every_time_and_no_random_state_is_touched(self):
        before = torch.get_rng_state()
        assert all(torch.equal(a, b) for a, b in zip(self.of(900, 50), self.of(900, 50), strict=True))
        assert torch.equal(before, torch.get_rng_state())


def test_the_statistics_are_recorded(finished):
    kept = {record.result.statistics for record in Journal(finished.path / "journal").trials()}
    assert kept and kept <= {REFRESHED, AS_TRAINED}


class Drifting(nn.Module):
    """A norm that knows no momentum but the one in its code."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8, 1, 1))
        self.register_buffer("running_var", torch.ones(8, 1, 1))

    def forward(self, x):
        if self.training:
            self.running_mean.lerp_(x.detach().mean((0, 2, 3)).view(8, 1, 1), 0.01)
        return x - self.running_mean


def test_statistics_that_no_score_makes_anew_are_named(workload, dense):
    assert statistics_note(dense, workload.example_input) is None
    model = copy.deepcopy(dense)
    model.bn0 = Drifting()
    said = statistics_note(model, workload.example_input)
    assert said.startswith("running statistics of bn0 (Drifting) are taken as training leaves them: ")
    model.bn1 = nn.Sequential(*(Drifting() for _ in range(4)))
    model.conv1 = nn.Conv2d(8, 8, 3)
    model.classifier = nn.Linear(8, 10)
    assert "bn0 (Drifting), bn1.0 (Drifting), bn1.1 (Drifting) and 2 more" in statistics_note(
        model, workload.example_input
    )


def test_a_network_of_own_norms_says_so_where_it_is_looked_at(main, place):
    (place / "drifting.py").write_text(
        "import torch\nfrom torch import nn\nfrom tiny import changed, Tiny\n\n"
        "class Drifting(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('running_mean', torch.zeros(8, 1, 1))\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            self.running_mean.lerp_(x.detach().mean((0, 2, 3)).view(8, 1, 1), 0.01)\n"
        "        return x - self.running_mean\n\n"
        "class Net(Tiny):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.bn0 = Drifting()\n\n"
        "def task():\n"
        "    return changed(name='drifting', build_model=Net)\n"
    )
    shown = main("inspect", "./drifting.py:task")
    assert shown.code == 0 and "Running statistics of bn0 (Drifting) are taken as training leaves them" in shown.out
