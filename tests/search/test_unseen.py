"""Layers a data-driven criterion finds nothing about, in an evaluation and in what a study proposes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pruning.importance.scores import defined_groups
from search import Recipe, Workload
from search.errors import UsageError
from search.study.runner import StudyRunner
from search.training.evaluate import PreparedModel, evaluate_policy
from spaces import PruningPolicy, Space
from spaces.search_space.projection import Projector


class Branches(nn.Module):
    """`dark` and `after` never see anything but zeros where inputs are above 0."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)
        self.dark, self.after = nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return self.out(self.second(self.first(x).relu()) + self.after(self.dark((-x).relu())))


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    x, y = torch.rand(60, 8), torch.randint(4, (60,))
    parts = dict.fromkeys(("fit", "calibration", "validation", "test"), (x, y))
    recipe = Recipe(batch=20, dense_epochs=1, trial_epochs=1, final_epochs=1)
    workload = Workload(name="branches", build_model=Branches, recipe=recipe, **parts)
    return PreparedModel.of(workload, Branches())


@pytest.mark.parametrize("granularity", ["fine-grained", "2:4"])
@pytest.mark.parametrize("criterion", ["activation", "taylor", "obd-hutchinson"])
def test_a_trial_leaves_them_whole_and_keeps_its_promise(subject, criterion, granularity):
    scored = subject.scored_by(criterion)
    assert scored.scored_by(criterion) is scored
    policy = PruningPolicy(dict.fromkeys(subject.network.layer_names, 0.5), granularity, criterion=criterion)
    result = evaluate_policy(subject, policy, 1, 0).result
    assert (result.state, result.reason) == ("complete", None)
    assert {n for n, share in result.achieved.items() if share == 0} == {"dark.weight", "after.weight"}
    only = PruningPolicy({"dark.weight": 0.5}, granularity, criterion=criterion)
    refused = evaluate_policy(subject, only, 1, 0).result
    assert refused.state == "failed"
    assert "'dark.weight' stays whole" in refused.reason
    assert f"criterion '{criterion}' found nothing" in refused.reason


SAID = {
    "activation": [
        "left whole: dark.weight, after.weight (criterion 'activation' found nothing in the calibration data to score "
        "it by)",
        "left with all channels: second.weight ('after.weight': criterion 'activation' found nothing in the "
        "calibration data to score it by)",
    ],
    "reconstruction": [
        "left with all channels: dark.weight (criterion 'reconstruction' found in the calibration data that its "
        "channels add nothing to 'after.weight')"
    ],
}


@pytest.mark.parametrize("criterion", SAID)
def test_a_study_says_so_and_proposes_nothing_of_them(subject, criterion):
    words = ("channel",) if criterion == "reconstruction" else ("fine-grained", "channel")
    notes = []
    study = SimpleNamespace(
        space=Space(defined_groups(subject.graph, criterion).network, 0.9, words, criterion=criterion),
        subject=subject.scored_by(criterion),
        watcher=SimpleNamespace(note=notes.append),
    )
    StudyRunner._leave_unseen_whole(study)
    assert notes == SAID[criterion]
    space = study.space
    params = space.params(0.9, "channel", dict.fromkeys(space.knobs, 0.25), space.seed_schedule)
    proposal = Projector(space).project(params)
    assert proposal.policy.sparsity.get("dark.weight", 0.0) == 0.0
    assert proposal.policy.sparsity["first.weight"] > 0


def test_a_limit_it_makes_unreachable_is_refused(subject):
    study = SimpleNamespace(
        space=Space(subject.network, 0.45, criterion="activation"),
        subject=subject.scored_by("activation"),
        watcher=SimpleNamespace(note=lambda text: None),
    )
    with pytest.raises(UsageError, match=r"cannot be reached.*left whole: dark\.weight"):
        StudyRunner._leave_unseen_whole(study)
