"""Epochs, learning rate and batch asked of a search: loops of the user's own follow them, or are refused untrained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from search import get_workload
from search.adapters.hugging_face import from_hf
from search.adapters.lightning_trainer import from_lightning
from search.errors import UsageError
from search.training.asked_recipe import require_followed
from search.training.dense_model import build_model
from search.training.fingerprint import weights_fingerprint

ALL = {"epochs": 2.5, "learning_rate": 0.02, "batch": 40}


@pytest.fixture(scope="module")
def tiny(place):
    return get_workload(f"{place / 'tiny.py'}:tiny")


@pytest.fixture(scope="module")
def model(tiny):
    return build_model(tiny, 0)


def looked(tiny, model, train, asked=ALL, **more):
    workload = replace(tiny, train=train, recipe=tiny.recipe.of_study(2.5, 0.02, 40), **more)
    require_followed(workload, model, asked, 2.5, "trial")


def stepped(model, batches, rate):
    optimizer, taken = torch.optim.SGD(model.parameters(), rate), 0
    for images, labels in batches:
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        taken += 1
    return taken


def test_a_loop_that_follows_all_is_left_after_a_step(tiny, model):
    taken, before = [], weights_fingerprint(model)

    def train(network, run):
        batches = run.loader("fit")
        optimizer = torch.optim.SGD(network.parameters(), run.learning_rate)
        for images, labels in batches:
            assert len(images) == 40 and run.steps == 25
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            taken.append(run.stage)

    looked(tiny, model, train)
    assert taken == []  # the step's own hook ends it
    assert weights_fingerprint(model) == before


def test_steps_that_nobody_knows_are_not_followed(tiny, model):
    """Without fit data of the workload's `run.steps` says nothing."""

    def train(model, run):
        assert run.steps is None
        run.begin(9)
        stepped(model, [(tiny.fit[0][:8], tiny.fit[1][:8])] * 9, run.learning_rate)

    own = {"fit": None, "example_input": tiny.fit[0][:2], "evaluate": lambda *_: 0.25}
    with pytest.raises(UsageError, match=r"epochs 2\.5 has no effect on workload 'tiny'"):
        looked(tiny, model, train, {"epochs": 2.5}, **own)


def test_a_loop_that_catches_errors_is_ended_all_the_same(tiny, model):
    after = []

    def train(model, run):
        try:
            stepped(model, run.loader("fit"), run.learning_rate)
        except Exception:
            after.append("caught")
        after.append("went on")

    looked(tiny, model, train)
    assert not after


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (lambda m, run: stepped(m, run.loader("fit"), 0.02), "learning-rate 0.02 has no effect on workload 'tiny'"),
        (lambda m, run: stepped(m, [(torch.rand(8, 1, 8, 8), torch.arange(8))] * run.steps, run.learning_rate),
         "batch 40 has no effect on workload 'tiny', whose train= reads no run.batch and no run.loader"),
        (lambda m, run: stepped(m, [(torch.rand(run.batch, 1, 8, 8), torch.arange(run.batch) % 3)], run.learning_rate),
         "epochs 2.5 has no effect on workload 'tiny'"),
    ],
    ids=["rate", "batch", "epochs"],
)  # fmt: skip
def test_a_loop_that_does_not_read_a_value_is_refused(tiny, model, train, said):
    with pytest.raises(UsageError, match=said):
        looked(tiny, model, train)
    name = said.split()[0].replace("-", "_")
    looked(tiny, model, train, {key: value for key, value in ALL.items() if key != name})


def test_a_loop_that_fails_in_its_first_step_is_told(tiny, model):
    with pytest.raises(UsageError, match="the first training step of 'tiny' raised KeyError: 'rate'"):
        looked(tiny, model, lambda network, run: {}["rate"])
    looked(tiny, model, lambda network, run: {}["rate"], {})


def test_a_batch_has_its_size_from_us_and_no_more_than_all(tiny, model):
    loader = DataLoader(TensorDataset(*tiny.fit), 16, sampler=WeightedRandomSampler([1.0] * 400, 400))
    own = replace(tiny, fit=loader)
    with pytest.raises(UsageError, match=r"batch 40 has no effect .* batches of their own"):
        require_followed(replace(own, recipe=tiny.recipe.of_study(None, None, 40)), model, {"batch": 40}, 1, "trial")
    many = replace(tiny, recipe=tiny.recipe.of_study(None, None, 401))
    with pytest.raises(UsageError, match="batch must be at most 400, the fit examples of workload 'tiny', got 401"):
        require_followed(many, model, {"batch": 401}, 1, "trial")
    require_followed(replace(many, recipe=replace(many.recipe, batch=400)), model, {"batch": 400}, 1, "trial")


@pytest.mark.filterwarnings("ignore")
def test_what_lightning_is_told_otherwise_is_refused(tiny, model):
    pytest.importorskip("lightning", reason="Lightning is missing: pip install 'prunefront[lightning]'")
    from lit import Lit

    def made(network, run):
        return Lit(network, run.learning_rate, torch.optim.SGD)

    def loader(run):
        return DataLoader(TensorDataset(*tiny.fit), 16)

    looked(tiny, model, from_lightning(made))
    for train, said in (
        (from_lightning(made, loader), "batch 40 has no effect"),
        (from_lightning(lambda network, run: Lit(network, 0.5, torch.optim.SGD)), "learning-rate 0.02 has no effect"),
        (from_lightning(made, lambda run: DataLoader(TensorDataset(*tiny.fit), run.batch), max_steps=9), "epochs 2.5 "),
    ):
        with pytest.raises(UsageError, match=said):
            looked(tiny, model, train)


@pytest.mark.filterwarnings("ignore")
def test_what_hugging_face_is_told_otherwise_is_refused(tiny):
    pytest.importorskip("transformers", reason="transformers is missing: pip install 'prunefront[transformers]'")

    class Answering(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def forward(self, pixels, labels=None):
            outputs = self.net(pixels)
            return outputs if labels is None else {"loss": nn.functional.cross_entropy(outputs, labels)}

    def data():
        return [{"pixels": images, "labels": label} for images, label in zip(*tiny.fit, strict=True)]

    looked(tiny, Answering(), from_hf(data))
    for argument, said in (
        ({"learning_rate": 0.5}, "learning-rate 0.02 "), ({"max_steps": 9}, "epochs 2.5 "),
        ({"num_train_epochs": 1}, "epochs 2.5 "), ({"per_device_train_batch_size": 8}, "batch 40 "),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"{said}has no effect"):
            looked(tiny, Answering(), from_hf(data, argument))
