"""Studies that hold results measured in an earlier way: what can differ is said, what cannot be compared is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from pruning import trace_channels
from search.identity.measuring import differences, share_left
from search.records import COMPLETE, FAILED, FinalRecord, TrialRecord, TrialResult
from search.workloads import Workload
from search.workloads.recipe import Recipe
from spaces.cost.footprint import RelativeCost
from spaces.policy import PruningPolicy

FINE, CHANNEL = PruningPolicy({"0.weight": 0.25}), PruningPolicy({"0.weight": 0.25}, "channel")


def net(norm: nn.Module | None = None) -> nn.Module:
    """With 0.25 of the 8 channels gone, 6 of 8 of the MACs of both layers stay: 75 %."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), norm or nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


def workload(model: nn.Module, batch: int = 10, epochs: float = 4) -> Workload:
    """100 fit examples."""
    split = torch.zeros(100, 1, 4, 4), torch.arange(100) % 4
    return Workload("w", lambda: model, split, split, split, split, Recipe(batch=batch, trial_epochs=epochs))


def result(macs: float = 1.0, **more) -> TrialResult:
    found = {"accuracy": 0.25, "loss": 1.5, "shares": RelativeCost(0.5, 0.5, macs, macs)}
    return TrialResult(**{"state": COMPLETE, **found, **more})


def trial(number: int, policy: PruningPolicy = FINE, **more) -> TrialRecord:
    return TrialRecord(number, "sampler", {}, policy, {}, 0.5, result(**more), 0.0, 1.0, 0.0)


def final(policy: PruningPolicy = FINE, **more) -> FinalRecord:
    return FinalRecord(policy.digest, 1, policy, result(**more), 0.25, 1.5, 2.0)


def found(model, trials, finals=(), **of):
    task = workload(model, **of)
    return list(differences(trials, finals, task, model, trace_channels(model, task.example_input).network))


@pytest.mark.parametrize(
    ("momentum", "tracked", "steps", "left"),
    [(0.1, 0, 60, 0.9**60), (0.01, 9, 3, 0.970299), (1.0, 5, 2, 0.0), (0.0, 5, 7, 1.0), (None, 30, 10, 0.75),
     (None, 0, 10, 0.0)],
)  # fmt: skip
def test_what_is_left_of_statistics_follows_from_the_momentum(momentum, tracked, steps, left):
    norm = nn.BatchNorm2d(3, momentum=momentum)
    norm.num_batches_tracked.fill_(tracked)
    assert share_left(norm, steps) == pytest.approx(left)


def test_old_scores_of_the_usual_momentum_differ_by_noise():
    """0.9 to the power of 40 steps: 1.5 %."""
    (one,) = found(net(nn.BatchNorm2d(8)), [trial(n) for n in range(6)], [final(), final()])
    assert one.noise and (one.trials, one.finals) == ((0, 1, 2, 3, 4, 5), 2)
    assert str(one).startswith("trials 0 to 5 and 2 final runs: scored before BatchNorm's running statistics were")
    assert str(one).endswith("may differ from new ones by noise")


@pytest.mark.parametrize(
    ("norm", "of", "left"),
    [
        (nn.BatchNorm2d(8, momentum=0.01), {}, "67 %"), (nn.BatchNorm2d(8, momentum=0.0), {}, "100 %"),
        (nn.BatchNorm2d(8), {"epochs": 2}, "12 %"), (nn.BatchNorm2d(8), {"batch": 25}, "19 %"),
    ],
)  # fmt: skip
def test_old_scores_that_hung_on_the_momentum_are_apart(norm, of, left):
    (one,) = found(net(norm), [trial(3)], **of)
    assert not one.noise and one.trials == (3,)
    assert str(one).startswith("trial 3: scored before") and f"{left} of the dense model's left" in str(one)


@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features:UserWarning")  # unused there
@pytest.mark.parametrize(
    ("norm", "more"),
    [
        (None, {}),
        (nn.BatchNorm2d(8, track_running_stats=False), {}),
        (nn.InstanceNorm2d(8), {}),
        (nn.BatchNorm2d(8, momentum=0.01), {"statistics": "refreshed"}),
        (nn.BatchNorm2d(8, momentum=0.01), {"statistics": "as trained"}),
        (nn.BatchNorm2d(8, momentum=0.01), {"measuring": 2}),
        (nn.BatchNorm2d(8, momentum=0.01), {"state": FAILED}),
    ],
)
def test_where_nothing_can_differ_nothing_is_said(norm, more):
    assert found(net(norm), [trial(0, **more), trial(1, CHANNEL, macs=0.75, **more)], [final(**more)]) == []


def test_only_what_is_old_of_a_study_that_went_on_is_named():
    trials = [trial(0), trial(1, measuring=2), trial(2), trial(3, measuring=2)]
    (one,) = found(net(nn.BatchNorm2d(8, momentum=0.01)), trials)
    assert str(one).startswith("2 of trials 0 to 2: scored")


@pytest.mark.parametrize(("macs", "said"), [(0.75, None), (0.7504, None), (0.7, "70.0 %"), (0.928, "92.8 %")])
def test_macs_counted_otherwise_are_told_by_the_share_that_is_on_record(macs, said):
    told = found(net(), [trial(0), trial(1, CHANNEL, macs=macs)], [final(CHANNEL, macs=macs)])
    if said is None:
        assert told == []
    else:
        assert not told[0].noise and (told[0].trials, told[0].finals) == ((1,), 1)
        assert f"such as {said} for what is 75.0 % today" in str(told[0])


@pytest.fixture
def old(finished, tmp_path):
    """The finished study as an earlier prunefront left it: 20 steps a trial at 0.1, so 12 % are left."""
    shutil.copytree(finished.path, tmp_path / "root" / "tiny")
    shutil.copytree(finished.root / "cache", tmp_path / "root" / "cache")
    for path in (tmp_path / "root" / "tiny" / "journal").glob("*-*.json"):
        change(path, lambda data: [data["result"].pop(part, None) for part in ("statistics", "measuring")])
    return tmp_path / "root"


def change(path, how):
    data = json.loads(path.read_text())
    how(data)
    path.write_text(json.dumps(data))


def test_a_study_whose_trials_cannot_be_compared_with_new_ones_is_refused(old, main):
    record = (old / "tiny" / "study.json").read_bytes()
    ended = main("search", "--study", "tiny", "--root", old, "--trials", 9)
    assert ended.code == 2 and len(ended.err.strip().splitlines()) <= 3
    for said in ("trials 0 to 7", "12 % of the dense model's left", "name a new --study"):
        assert said in ended.err
    assert (old / "tiny" / "study.json").read_bytes() == record
    assert not (old / "tiny" / "journal" / "trial-00008.json").exists()


def test_an_old_study_is_shown_and_exported_and_ends_as_it_is(old, main, tmp_path):
    shown = main("front", "tiny", "--root", old, "--json")
    assert shown.code == 0 and json.loads(shown.out)["front"]
    assert main("status", "tiny", "--root", old).code == 0
    assert main("export", "tiny", "--root", old, "--trial", "best", "--out", tmp_path / "out").code == 0
    again = main("search", "--study", "tiny", "--root", old)
    assert again.code == 0 and "trials 0 to 7" in again.err


def test_results_of_a_later_prunefront_are_shown_but_not_gone_on_with(old, main):
    change(old / "tiny" / "journal" / "trial-00002.json", lambda data: data["result"].update(measuring=77))
    assert main("front", "tiny", "--root", old).code == 0
    ended = main("search", "--study", "tiny", "--root", old)
    assert ended.code == 2 and "measuring 77" in ended.err and "update prunefront" in ended.err


def test_results_say_how_they_were_measured(finished):
    kept = [json.loads(path.read_text())["result"] for path in (finished.path / "journal").glob("*-*.json")]
    assert kept and all(one["measuring"] == 2 for one in kept if one["state"] == COMPLETE)
    assert replace(result(), measuring=2) != result()
