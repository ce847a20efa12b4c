"""Scoring of the user's own, splits that only the user's code knows, and what is told apart by either."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning.channels.tracing import trace_channels
from search import Metric, Recipe, Workload
from search.errors import UsageError
from search.metric import OutOfRange
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.examples import given_batches, given_in_order
from search.training.fingerprint import SplitFingerprints, split_fingerprint, training_fingerprint
from search.training.former_fingerprints import old_training_fingerprints
from search.training.own_scores import Metrics
from search.training.profile_cache import cached_profile
from search.training.refresh import AS_TRAINED, REFRESHED, refresh_statistics_, unread_note
from search.training.scoring import score
from search.workloads import get_workload
from search.workloads.overlap import overlaps
from search.workloads.steadiness import unsteady
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

POLICY = PruningPolicy({"conv1.weight": 0.5}, "fine-grained", schedule=Schedule("one-shot"))
WHERE = "workload 'tiny': evaluate on 'validation'"
UNIT = Metric("mAP", best="max", low=0, high=100)


@pytest.fixture(scope="module")
def tiny(place):
    return get_workload(f"{place / 'tiny.py'}:tiny")


@pytest.fixture(scope="module")
def dense(tiny):
    torch.manual_seed(1)
    return tiny.build_model()


def trained(model, run):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    run.begin(5)
    for _ in range(5):
        nn.functional.cross_entropy(model(torch.ones(8, 1, 8, 8)), torch.arange(8)).backward()
        optimizer.step()


def right(model, split, run):
    """Accuracy in percent, and the loss."""
    found = [(model(inputs), targets) for inputs, targets in run.loader(split)]
    outputs, targets = (torch.cat(part) for part in zip(*found, strict=True))
    hits = (outputs.argmax(1) == targets).float().mean() * 100
    return {"mAP": hits, "loss": nn.functional.cross_entropy(outputs, targets), "seen": len(outputs)}


def test_a_score_is_what_evaluate_says(tiny, dense):
    workload = replace(tiny, evaluate=right, metric=UNIT)
    for split in ("validation", "test", "calibration"):
        mine, theirs = score(dense, split, tiny), score(dense, split, workload)
        assert theirs.accuracy == pytest.approx(mine.accuracy, abs=1e-6)
        assert theirs.loss == pytest.approx(mine.loss, rel=1e-5)
    rmse = Metric("RMSE", best="min", low=0, high=8)
    assert score(dense, "test", replace(tiny, evaluate=lambda *_: 2.0, metric=rmse)) == Metrics(0.25, 0.75)


def test_every_network_is_scored_alike(tiny, dense):
    told = []

    def evaluate(model, split, run):
        told.append((split, run.stage, run.seed, model.training, torch.is_grad_enabled(), run.precision))
        return {"accuracy": float(torch.rand(())), "loss": random.random() + np.random.rand()}

    workload, model = replace(tiny, evaluate=evaluate), tiny.build_model().train()
    torch.manual_seed(5)
    first, drawn = score(model, "validation", workload), float(torch.rand(()))
    assert score(model, "validation", workload) == first and model.training
    torch.manual_seed(5)
    assert float(torch.rand(())) == drawn
    assert told == [("validation", "score", 0, False, False, "fp32")] * 2


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (float("nan"), "diverged: evaluate returned nan after 20 steps"),
        (250, "error: metric 'mAP' is 250, outside its range, 0 to 100: give it the low and high that it can have"),
        (
            "much",
            "error: workload 'tiny': evaluate on 'validation' must return a number for 'mAP', or a mapping with one",
        ),
        (
            None,
            "error: workload 'tiny': evaluate on 'validation' must return a number for 'mAP', or a mapping with one",
        ),
        (
            {"map": 3.0},
            "error: workload 'tiny': evaluate on 'validation' returns a mapping without its metric: unknown e",
        ),
        ({"mAP": 3.0, "loss": float("inf")}, "diverged: validation loss is inf after 20 steps"),
        (
            torch.ones(3),
            "error: workload 'tiny': evaluate on 'validation' must return a number for 'mAP', or a mapping ",
        ),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_a_value_that_is_none_fails_the_trial_in_one_line(tiny, dense, returned, reason, own):
    def train(model, run):
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for inputs, targets in run.loader("fit"):
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    workload = replace(tiny, evaluate=lambda *_: returned, metric=UNIT, train=train if own else None)
    prepared = PreparedModel(workload, dense, trace_channels(dense, workload.example_input))
    found = evaluate_policy(prepared, POLICY, 1, 3).result
    assert found.state == "failed" and found.reason.startswith(reason)


def test_the_dense_model_is_judged_by_it_before_its_training_and_after(tiny, tmp_path):
    found = dense_model(replace(tiny, evaluate=right, metric=UNIT), 0, tmp_path / "a")
    assert found.accuracy == pytest.approx(dense_model(tiny, 0, tmp_path / "b").accuracy, abs=1e-6)

    def untrained(returned):
        def evaluate(model, split, run):
            if split == "test":
                return returned
            return 30.0

        return replace(tiny, evaluate=evaluate, metric=UNIT, train=lambda model, run: pytest.fail("it trains"))

    with pytest.raises(UsageError, match="metric 'mAP' is 3000, outside its range, 0 to 100, of the untrained"):
        dense_model(untrained(3000), 0, tmp_path / "c")
    with pytest.raises(UsageError, match="evaluate on 'test' must return a number"):
        dense_model(untrained("much"), 0, tmp_path / "d")
    with pytest.raises(UsageError, match=r"evaluate on 'validation' raised KeyError: 'x' \(test_own_scores\.py, line"):
        dense_model(replace(tiny, evaluate=lambda *_: {}["x"], train=trained), 0, tmp_path / "e")
    undefined = replace(tiny, evaluate=lambda *_: float("nan"), metric=UNIT, train=trained)
    with pytest.raises(UsageError, match="evaluate must return a finite number, got nan of the dense model on"):
        dense_model(undefined, 0, tmp_path / "f")


def theirs(tiny, **more):
    """A workload whose data only its own code knows."""
    given = {"name": "theirs", "build_model": tiny.build_model, "example_input": tiny.example_input, "train": trained}
    return Workload(**{**given, "evaluate": other, **more})


def test_splits_may_be_missing_where_somebody_reads_them(tiny):
    workload = theirs(tiny)
    assert [workload.has(split) or workload.reads(split) for split in ("fit", "calibration", "validation", "test")] == (
        [False] * 4
    )
    with pytest.raises(ValueError, match=r"^split 'fit' is missing: give fit=, or leave it to train= of your own$"):
        theirs(tiny, train=None)
    with pytest.raises(ValueError, match=r"^split 'calibration' is missing: .* leave it to evaluate= of your own$"):
        theirs(tiny, evaluate=None)
    with pytest.raises(ValueError, match=r"^example_input= is missing: a batch of inputs as the network takes them"):
        theirs(tiny, example_input=None, fit=tiny.fit)
    with pytest.raises(ValueError, match=r"^train must be a function, got 3$"):
        theirs(tiny, train=3)
    with pytest.raises(ValueError, match=r"^steps_per_epoch=7 is for a stream in fit=, and there is none"):
        theirs(tiny, steps_per_epoch=7)
    with pytest.raises(ValueError, match=r"workload 'theirs' has no split 'test': give it test="):
        workload.examples("test")


def test_without_data_nothing_is_recalibrated_and_it_is_said(tiny, dense):
    alone = theirs(tiny)
    assert refresh_statistics_(dense, alone) == AS_TRAINED
    assert refresh_statistics_(dense, theirs(tiny, calibration=tiny.calibration)) == AS_TRAINED
    assert unread_note(alone, dense).endswith("if the workload had fit= and calibration= as well")
    half = theirs(tiny, fit=tiny.fit)
    assert unread_note(half, dense).endswith("if the workload had calibration= as well")
    whole = theirs(tiny, fit=tiny.fit, calibration=tiny.calibration)
    assert unread_note(whole, dense) is None
    spoilt = deepcopy(dense)
    spoilt.bn1.running_var.fill_(1e-4)
    assert refresh_statistics_(spoilt, alone) == AS_TRAINED and refresh_statistics_(spoilt, whole) == REFRESHED
    prepared = PreparedModel(alone, dense, trace_channels(dense, alone.example_input))
    with pytest.raises(UsageError, match="criterion 'taylor' looks at calibration data, and workload"):
        prepared.defined_for("taylor")
    assert prepared.defined_for("magnitude-l1") is not None


def test_a_scan_asks_evaluate_for_calibration_data(tiny, tmp_path):
    asked = []

    def evaluate(model, split, run):
        asked.append(split)
        return 100 * float((model.conv1.weight != 0).float().mean())

    workload = theirs(tiny, evaluate=evaluate, metric=UNIT, weights="as built")
    found = dense_model(workload, 0, tmp_path)
    assert asked == ["validation"]
    prepared = PreparedModel.of(workload, found.model).scored_by("magnitude-l2")
    profile = cached_profile(prepared, found, "magnitude-l2", ["fine-grained"], tmp_path, bits=(4,))
    points = profile.points["fine-grained"]["conv1.weight"]
    assert [point.accuracy for point in points] == pytest.approx([1 - point.sparsity for point in points], abs=1e-6)
    assert [point.loss for point in points] == pytest.approx([point.sparsity for point in points], abs=1e-6)
    assert {*asked[1:]} == {"calibration"} and profile.examples == 0 and not profile.is_recalibrated
    again = len(asked)
    assert cached_profile(prepared, found, "magnitude-l2", ["fine-grained"], tmp_path, bits=(4,)) == profile
    assert len(asked) == again


class Boxes(torch.utils.data.Dataset):
    """Images of different sizes, each with some boxes."""

    def __init__(self, count, more=0.0):
        self.count, self.more = count, more

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        boxes = torch.full((number % 3, 4), float(number) + self.more)
        return torch.ones(3, 8 + number, 8), {"boxes": boxes, "id": f"image {number}"}


def ragged(items):
    return tuple(zip(*items, strict=True))


def test_ragged_batches_pass_through_in_a_fixed_order(tiny):
    def workload(count=10, more=0.0):
        loader = DataLoader(Boxes(count, more), 4, shuffle=True, collate_fn=ragged)
        return theirs(tiny, fit=loader, validation=loader, recipe=Recipe(batch=4, dense_epochs=1))

    first, again, other = ([*given_batches(workload(), 2, seed)] for seed in (3, 3, 4))
    assert [len(batch[0]) for batch in first] == [4] * 4  # two epochs of two whole batches
    ids = [[target["id"] for _, targets in batches for target in targets] for batches in (first, again, other)]
    assert ids[0] == ids[1] != ids[2] and len({*ids[0][:8]}) == 8
    assert [image.shape[1] for image in first[0][0]] == [8 + int(name.split()[1]) for name in ids[0][:4]]
    passed = [*given_in_order(workload(), "validation")]
    assert [target["id"] for _, targets in passed for target in targets] == [f"image {n}" for n in range(10)]
    assert overlaps(workload()) is None and unsteady(workload()) is None
    found = [split_fingerprint(one, "fit") for one in (workload(), workload(), workload(11), workload(more=0.5))]
    assert found[0] == found[1] and len({*found}) == 3


def test_batches_come_as_they_were_given(tiny):
    inputs, targets = torch.arange(12.0).view(6, 2), torch.arange(6)
    mapping = {"pixels": inputs, "labels": targets}
    shifted = Recipe(batch=3)
    for given, read in (
        ((inputs, targets), lambda batch: batch),
        (TensorDataset(inputs, targets), lambda batch: batch),
        (mapping, lambda batch: (batch["pixels"], batch["labels"])),
        (lambda: iter([mapping, mapping]), lambda batch: (batch["pixels"], batch["labels"])),
    ):
        workload = theirs(tiny, fit=given, recipe=shifted)
        for batch in [*given_batches(workload, 1, 2), *given_in_order(workload, "fit")]:
            pixels, labels = read(batch)
            assert torch.equal(pixels[:, 0], 2.0 * labels)
    workload = theirs(tiny, fit=(inputs, targets), recipe=shifted, augment=lambda inputs, generator: inputs + 100)
    assert all(bool((batch[0] >= 100).all()) for batch in given_batches(workload, 1, 2))
    wrong = theirs(tiny, fit=mapping, recipe=shifted, augment=lambda inputs, generator: inputs)
    with pytest.raises(ValueError, match="augment= takes the inputs of pairs"):
        next(iter(given_batches(wrong, 1, 2)))


@pytest.mark.parametrize(
    ("split", "more", "reason"),
    [
        (lambda: iter(()), {"steps_per_epoch": 4}, "split 'fit' is empty: it needs at least one batch in every epoch"),
        (lambda: iter([1, 2]), {"steps_per_epoch": 4}, "split 'fit' ended early: after 2 of the 4 batches of an epoch"),
        (lambda: iter(()), {}, "split 'fit' is empty"),
    ],
)
def test_a_stream_that_is_empty_or_ends_early_is_told(tiny, split, more, reason):
    with pytest.raises(ValueError, match=reason):
        [*given_batches(theirs(tiny, fit=split, **more), 1, 2)]


def other(model, split, run):
    return 0.25


def test_the_code_of_both_counts(tiny):
    def workload(**more):
        return training_fingerprint(replace(tiny, **more))

    whole = {
        workload(), workload(train=trained), workload(evaluate=other), workload(train=trained, evaluate=other),
        workload(evaluate=right), workload(train=other),
    }  # fmt: skip
    assert len(whole) == 6
    assert workload(train=trained) == workload(train=trained)
    assert old_training_fingerprints(tiny) and not old_training_fingerprints(replace(tiny, evaluate=other))
    assert {*SplitFingerprints(theirs(tiny)).values()} == {split_fingerprint(theirs(tiny), "test")}
    assert split_fingerprint(theirs(tiny, data_version="2"), "test") != split_fingerprint(theirs(tiny), "test")


def test_a_metric_out_of_its_range_is_one(tiny, dense):
    with pytest.raises(OutOfRange, match=r"^metric 'accuracy' is 97\.5, outside its range, 0 to 1: divide percent"):
        score(dense, "validation", replace(tiny, evaluate=lambda *_: 97.5))
