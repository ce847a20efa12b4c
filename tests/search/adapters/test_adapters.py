"""Loops of other libraries: masks hold in them, a ramp is followed to its end, and the run's wishes reach them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from pruning.channels.tracing import trace_channels
from search import Metric, Recipe, Workload
from search.adapters.hugging_face import from_hf
from search.adapters.lightning_trainer import from_lightning
from search.errors import EnvironmentProblem, OwnCodeProblem, UsageError
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.fingerprint import training_fingerprint
from search.training.scoring import score
from search.training.train import train_dense
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, which change them with every version
X, Y = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(96) % 3
POLICY = PruningPolicy({"net.1.weight": 0.6, "net.3.weight": 0.4}, schedule=Schedule("polynomial", 1, ramp=0.5))
ASKED = {"net.1.weight": 0.6, "net.3.weight": 0.4}


class Net(nn.Module):
    """Answers with a loss where it is given labels, as networks of transformers do."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3))
        self.seen = []

    def forward(self, pixels, labels=None):
        if self.training:
            self.seen.append(float((self.net[1].weight == 0).float().mean()))
        outputs = self.net(pixels)
        return outputs if labels is None else {"loss": nn.functional.cross_entropy(outputs, labels), "logits": outputs}


def evaluate(model, split, run):
    return float((model(X).argmax(1) == Y).float().mean())


def task(train, **more):
    recipe = Recipe(batch=16, optimizer="adamw", learning_rate=0.004, rate="fixed")
    return Workload("task", Net, example_input=X[:2], train=train, recipe=recipe, **{"evaluate": evaluate, **more})


def followed(workload, steps, monkeypatch):
    """A fine-tune of two epochs; the network saw the ramp rise in this many steps, and ended with what was asked."""
    torch.manual_seed(4)
    dense = Net()
    seen = []
    monkeypatch.setattr(Net, "__deepcopy__", lambda self, memo: copied(self, seen), raising=False)
    prepared = PreparedModel(workload, dense, trace_channels(dense, workload.example_input))
    found = evaluate_policy(prepared, POLICY, 2, seed=7)
    assert found.result.reason is None
    assert found.result.achieved == pytest.approx(ASKED, abs=0.01)
    assert found.result.restored == 0
    assert len(seen) == steps
    half = steps // 2
    assert seen[: half + 1] == pytest.approx([0.6 * step / half for step in range(half + 1)], abs=0.01)
    assert seen[half:] == pytest.approx([0.6] * (steps - half), abs=0.01)
    assert found.result.curve[0].train_loss < 1.3
    return found


def copied(network, seen):
    twin = Net()
    twin.load_state_dict(network.state_dict())
    twin.train(network.training)
    twin.seen = seen
    return twin


@pytest.mark.parametrize("own_data", [False, True])
def test_lightning(own_data, monkeypatch):
    pytest.importorskip("lightning", reason="Lightning is missing: pip install 'prunefront[lightning]'")
    from lit import Lit

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rates = []

    def optimizer(parameters, rate):
        rates.append(rate)
        return torch.optim.AdamW(parameters, rate)

    def loader(run):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 16, shuffle=True)

    train = from_lightning(
        lambda network, run: Lit(network, run.learning_rate, optimizer), loader if own_data else None
    )
    followed(task(train) if own_data else task(train, fit=(X, Y)), 12, monkeypatch)
    assert rates == [0.004]


def test_a_metric_of_torchmetrics(monkeypatch):
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is missing: pip install torchmetrics")

    def scored(**options):
        metric = Metric("F1", torchmetrics.classification.MulticlassF1Score(3, **options), low=0, high=1)
        splits = dict.fromkeys(("fit", "calibration", "validation", "test"), (X, Y))
        return task(None, metric=metric, evaluate=None, **splits)

    workload = scored()
    unused = training_fingerprint(workload)
    torch.manual_seed(4)
    model = Net()
    with torch.no_grad():
        found = model(X).argmax(1)
    parts = [score(model, (X[begin::2], Y[begin::2]), workload).accuracy for begin in (0, 1)]
    assert parts == pytest.approx([f1_score(Y[begin::2], found[begin::2], average="macro") for begin in (0, 1)])
    assert parts[0] != parts[1]
    monkeypatch.setattr("search.training.scoring.examples_at_once", lambda *_: 7)  # F1 is no mean over batches
    assert score(model, "validation", workload).accuracy == pytest.approx(f1_score(Y, found, average="macro"))
    assert training_fingerprint(workload) == unused == training_fingerprint(scored())
    assert training_fingerprint(scored(top_k=2)) != unused
    with pytest.raises(UsageError, match=r"'F1' must return a finite number, got a Tensor .*: let it return one n"):
        dense_model(scored(average=None), 0, Path("no folder"))


def test_a_lightning_module_without_the_network_is_refused_before_it_is_fitted():
    lightning = pytest.importorskip("lightning", reason="Lightning is missing: pip install 'prunefront[lightning]'")

    class Another(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = Net()

    refused = "the Another that module\\(\\) returned does not hold the given network: return that network"
    with pytest.raises(OwnCodeProblem, match=refused):
        train_dense(task(from_lightning(lambda network, run: Another()), fit=(X, Y)), 0)


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, number):
        return {"pixels": X[number], "labels": int(Y[number])}


def test_hugging_face(monkeypatch):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is missing: pip install 'prunefront[transformers]'"
    )
    transformers.utils.logging.set_verbosity_error()
    followed(task(from_hf(Items, {"logging_steps": 4})), 12, monkeypatch)


def test_the_code_behind_an_adapter_counts():
    tasks = [
        task(from_lightning(lambda network, run: network)), task(from_lightning(lambda network, run: None)),
        task(from_lightning(lambda network, run: network, max_epochs=7)), task(from_hf(Items)),
        task(from_hf(Items, {"weight_decay": 0.25})),
    ]  # fmt: skip
    assert len({training_fingerprint(one) for one in tasks}) == len(tasks)


@pytest.mark.parametrize(
    ("library", "train"), [("lightning", from_lightning(lambda *_: None)), ("transformers", from_hf(Items))]
)
def test_a_library_that_is_missing_is_asked_for(library, train, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EnvironmentProblem, match=rf"pip install 'prunefront\[{library}\]'"):
        train(Net(), None)
