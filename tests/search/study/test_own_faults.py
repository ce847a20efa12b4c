"""Loops, scorings and splits of the user's own with a fault each, through the command: one line, and no trial lost."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from search.files import read_text

WRONG = '''
"""Workloads with a loop and a scoring of their own, each with one fault."""

import itertools

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from search import Metric, Recipe
from tiny import Tiny, changed

RECIPE = Recipe(batch=40, dense_epochs=0.5, trial_epochs=0.5, final_epochs=0.5, learning_rate=0.01)
WHOLE = changed()
NAN = float("nan")


def train(model, run):
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    for images, targets in run.loader("fit"):
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()


def right(model, split, run):
    found = [(model(images).argmax(1) == targets).float() for images, targets in run.loader(split)]
    return 100 * float(torch.cat(found).mean())


def good(**changes):
    given = {"recipe": RECIPE, "train": train, "evaluate": right, "metric": Metric("mAP", low=0, high=100)}
    return changed(**{"name": "own", **given, **changes})


def no_step():
    return good(train=lambda model, run: None)


def renames():
    def parametrized(model, run):
        nn.utils.parametrizations.weight_norm(model.classifier)
        train(model, run)
    return good(train=parametrized)


def nan():
    return good(evaluate=lambda *_: NAN)


def out_of_range():
    return good(evaluate=lambda *_: 250)


def out_of_range_in_the_scan():
    return good(evaluate=lambda model, split, run: 250 if split == "calibration" else right(model, split, run))


class Stream(IterableDataset):
    """Of `count` examples, of which `said` are promised."""
    def __init__(self, split, count, said):
        self.examples, self.said = list(zip(*(part[:count] for part in split))), said
    def __iter__(self):
        return iter(self.examples)
    def __len__(self):
        if self.said is None:
            raise TypeError
        return self.said


def ends_early():
    return good(fit=DataLoader(Stream(WHOLE.fit, 120, 400), 40))


def test_ends_early():
    return good(test=DataLoader(Stream(WHOLE.test, 80, 150), 40))


def empty():
    return good(fit=lambda: iter(()), steps_per_epoch=10)


def validation_is_empty():
    return good(validation=lambda: iter(()))


def no_targets():
    return good(fit={"images": WHOLE.fit[0], "kind": WHOLE.fit[1]})


def no_length():
    return good(fit=DataLoader(Stream(WHOLE.fit, 400, None), 40))


def no_length_for_us():
    return good(fit=DataLoader(Stream(WHOLE.fit, 400, None), 40), train=None)


def from_the_second(fault=lambda model: None, value=None):
    """In order until the first trial is done."""
    begun = []
    def both(model, run):
        begun.append(run.stage)
        train(model, run)
        if begun.count("trial") > 1:
            fault(model)
    def evaluate(model, split, run):
        late = begun.count("trial") > 1 and split == "validation"
        return value if late and value is not None else right(model, split, run)
    return good(train=both, evaluate=evaluate)


def late_loads():
    return from_the_second(lambda model: model.load_state_dict(Tiny().state_dict()))


def late_renames():
    return from_the_second(lambda model: nn.utils.parametrizations.weight_norm(model.classifier))


def late_raises():
    return from_the_second(lambda model: {}["lr"])


def late_nan():
    return from_the_second(value=NAN)


def late_out_of_range():
    return from_the_second(value=250)


def late_end():
    """Of a stream, which was whole in the dense training and the first trial."""
    begun = []
    def noted(model, run):
        begun.append(run.stage)
        train(model, run)
    def fit():
        return iter(DataLoader(TensorDataset(*(x[: 40 if begun.count("trial") > 1 else 400] for x in WHOLE.fit)), 40))
    return good(fit=fit, steps_per_epoch=10, train=noted)


def faults_on_test_data():
    """One after the other, of networks that were trained."""
    begun, faults = [], itertools.cycle([lambda: {}["box"], lambda: 250, lambda: NAN])
    def noted(model, run):
        begun.append(run.stage)
        train(model, run)
    def evaluate(model, split, run):
        return next(faults)() if split == "test" and begun else right(model, split, run)
    return good(train=noted, evaluate=evaluate)


def short():
    """A loop that takes two of five steps, and returns an average from before the masks were final."""
    def both(model, run):
        average = torch.optim.swa_utils.AveragedModel(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.02)
        for number, (images, targets) in enumerate(run.loader("fit")):
            if number == 2:
                break
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
            average.update_parameters(model)
        return average.module
    return good(train=both)
'''
SEARCH = (
    "--trials", 3, "--max-size", 0.4, "--granularity", "fine-grained", "--schedule", "polynomial", "--bits", 32,
    "--finalists", 1, "--final-repeats", 1, "--cost", "macs",
)  # fmt: skip


@pytest.fixture
def search(main, place, tmp_path, without_mlflow):
    (place / "wrong.py").write_text(WRONG)

    def command(factory, *options):
        ended = main("search", "--workload", f"./wrong.py:{factory}", *SEARCH, "--root", tmp_path, *options)
        assert "Traceback" not in ended.err and "unexpected" not in ended.err
        return ended

    return command


class Other(nn.Module):
    """Of another architecture than the workload's."""

    def __init__(self):
        super().__init__()
        self.conv0, self.classifier = nn.Conv2d(1, 12, 3, bias=False), nn.Linear(12, 10)


BEFORE = {
    "a device that is not here": (
        ("good", "--device", "cuda:97"), 3,
        "--device 'cuda:97' is not here, PyTorch ",
    ),
    "a checkpoint of another architecture": (
        ("good", "--weights", "other.pt"), 2,
        "of another shape ('conv0.weight' has shape (12, 1, 3, 3), the model needs (8, 1, 3, 3), ",
    ),
    "an empty split": (
        ("empty",), 2,
        "split 'fit' is empty: it needs at least one example",
    ),
    "an empty split of evaluate's": (
        ("validation_is_empty",), 2,
        "split 'validation' is empty: it needs at least one batch (wrong.py, line ",
    ),
    "a loader that ends early, in evaluate": (
        ("test_ends_early",), 2,
        "split 'test' ended early: after 2 of the 4 batches of a pass; give it a len that is true",
    ),
    "a mapping without targets": (
        ("no_targets",), 2,
        "split 'fit' yields mappings of 'images', 'kind', with no targets among them: name the targets, such as "
        "targets='kind', in the workload",
    ),
    "a stream without length, for the loop here": (
        ("no_length_for_us",), 2,
        "split 'fit' has no length: give the workload steps_per_epoch=, the number of batches that count as one epoch",
    ),
    "a metric out of its range": (
        ("out_of_range",), 2,
        "metric 'mAP' is 250, outside its range, 0 to 100, of the untrained network on validation data: give it the "
        "low and high that it can have, or leave them out",
    ),
    "a stream without length": (
        ("no_length",), 2,
        "nobody says how long the training is, which schedules depend on: let train() call run.begin(steps=) before ",
    ),
    "names that change in the loop": (
        ("renames",), 2,
        "train() changed names in the network: 'classifier.parametrizations.weight.original0' is new and "
        "'classifier.weight' is gone (2 and 1 in all); ",
    ),
    "a loader that ends early": (
        ("ends_early",), 2,
        "split 'fit' ended early: after 3 of the 10 batches of an epoch; give it a len that is true (wrong.py, line ",
    ),
    "a loop that takes no step": (
        ("no_step",), 2,
        "train() took no step of 5 by a torch.optim.Optimizer that holds a parameter of the network: make the ",
    ),
}  # fmt: skip
"""What is known before the dense model is trained, or as soon as its training is asked for: words, exit code, said."""
AFTER = {
    "a metric that is undefined": (
        ("nan",),
        "evaluate must return a finite number, got nan of the dense model on validation data: where it is undefined, "
        "let it return 0, its worst",
    ),
    "a metric out of its range in the scan": (
        ("out_of_range_in_the_scan",),
        "metric 'mAP' is 250, outside its range, 0 to 100: give it the low and high that it can have",
    ),
}
"""What only a trained network can tell: words, said."""


def refusal(ended):
    """The one line that the command ends with."""
    (line,) = [line for line in ended.err.splitlines() if line.startswith("prunefront:")]
    assert ended.err.rstrip().endswith(line) and ended.out == ""
    return line


@pytest.mark.parametrize(("words", "code", "said"), BEFORE.values(), ids=BEFORE)
def test_it_is_refused_in_one_line_before_a_network_is_trained(search, place, tmp_path, words, code, said):
    torch.save({"state_dict": Other().state_dict()}, place / "other.pt")
    ended = search(*words)
    assert ended.code == code and said in refusal(ended)
    assert not [*tmp_path.glob("cache/dense-*")] and not [*tmp_path.glob("own/journal/trial*")]


@pytest.mark.parametrize(("words", "said"), AFTER.values(), ids=AFTER)
def test_it_is_refused_in_one_line_before_the_first_trial(search, tmp_path, words, said):
    ended = search(*words)
    assert ended.code == 2 and said in refusal(ended)
    assert len([*tmp_path.glob("cache/dense-*")]) == 1 and not [*tmp_path.glob("own/journal/trial*")]


LATE = {
    "late_loads": "error: train() ended with other weights than it trained: ",
    "late_renames": "error: train() changed names in the network: 'classifier.parametrizations.weight.original0' is ",
    "late_raises": "error: KeyError: 'lr' (wrong.py, line ",
    "late_nan": "diverged: evaluate returned nan after 5 steps: let it return a bad value where it is undefined",
    "late_out_of_range": "error: metric 'mAP' is 250, outside its range, 0 to 100: give it the low and high that it ",
    "late_end": "error: ValueError: split 'fit' ended early: after 1 of the 10 batches of an epoch; give it ",
}


@pytest.mark.parametrize(("factory", "said"), LATE.items(), ids=LATE)
def test_a_fault_that_comes_late_costs_its_own_trials_only(search, tmp_path, factory, said):
    ended = search(factory, "--finalists", 0)
    assert ended.code == 0 and "\nprunefront:" not in ended.err
    paths = sorted(tmp_path.glob("own/journal/trial-*.json"))
    results = [json.loads(read_text(path))["result"] for path in paths]
    assert [result["state"] for result in results] == ["complete", "failed", "failed"]
    for result in results[1:]:
        assert result["reason"].startswith(said) and f"failed: {result['reason']} | " in ended.err


@pytest.mark.slow
def test_a_fault_on_test_data_costs_what_was_tested_and_no_more(search, main, tmp_path):
    ended = search("faults_on_test_data")
    assert ended.code == 0, ended.err
    results = [json.loads(read_text(path))["result"]["state"] for path in tmp_path.glob("own/journal/trial-*.json")]
    assert results == ["complete"] * 3
    raised, outside, undefined = (
        f"error on test data: {said}"
        for said in (
            "KeyError: 'box' (wrong.py, line ",
            "metric 'mAP' is 250, outside its range, 0 to 100: give it the low and high that it can have, or ",
            "the metric is nan",
        )
    )
    runs = {r"trial \d": raised, r"\w+ for trial \d": outside, r"\w+ at the limit": undefined}
    for name, said in runs.items():
        assert re.search(rf"the final run of {name} with seed 1 failed \({re.escape(said)}", ended.err)
    for name, said in {"dense": raised, "dense at 8 bits": outside, "dense at 6 bits": undefined}.items():
        assert f"{name} is left out of the comparison: {said}" in ended.err
    shown = main("front", "own", "--root", tmp_path, "--format", "json")
    assert shown.code == 0 and "damaged" not in shown.err and json.loads(shown.out)


@pytest.mark.slow
def test_a_loop_that_ends_before_its_schedule_or_brings_pruned_weights_back_is_told_once(search, tmp_path):
    ended = search("short")
    assert ended.code == 0, ended.err
    for remark in ("train ended after 40 % of its training, before its schedule did: ", "are set to zero again: "):
        told = [line.strip().partition(": ")[0] for line in ended.err.splitlines() if remark in line]
        assert told[:1] == ["trial 0"] and len(told) == 2
        assert re.fullmatch(r"the final run of trial \d+ with seed 1", told[1])
    records = [json.loads(read_text(path))["result"] for path in tmp_path.glob("own/journal/[tf]*.json")]
    assert len(records) > 4
    assert all(record["ended_at"] == 0.4 and record["restored"] > 0 for record in records)
