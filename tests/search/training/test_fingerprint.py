"""What counts as another task: code that decides results does, its wording and its place do not."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pruning.channels.structure import Structure
from pruning.channels.tracing import trace_channels
from search.config import SearchConfig
from search.errors import UsageError
from search.identity.study_identity import in_todays_words, study_identity
from search.progress import ProgressReporter
from search.store.folder import StudyFolder
from search.store.study_record import of_split
from search.study.start import _dense_model, _settle_identity
from search.training.checkpoints import save_model
from search.training.dense_model import dense_model
from search.training.fingerprint import SplitFingerprints, model_fingerprint, training_fingerprint, weights_fingerprint
from search.training.former_fingerprints import BUILT_IN, old_model_fingerprints, old_training_fingerprints
from search.training.train import train_dense
from search.workloads import get_workload
from search.workloads.base import SPLITS
from search.workloads.fashion_mnist import shift_and_flip
from search.workloads.metrics import accuracy
from search.workloads.vgg import VGG9

GOLDEN = Path(__file__).parents[2] / "golden" / "fingerprints-v1.json"

HELPER = '''
"""What the task uses."""
SCALE = 0.25
TABLE = {"a": 0.5}

def shared(x):
    """Half of it."""
    return x * 0.5

def unused(x):
    return x * 3
'''
TASK = '''
"""A task."""
import functools
import torch
from torch import nn
import helper
from helper import shared
from search import Recipe, Workload

POWER = 2
SMOOTHING = 0.1

class Base(nn.Module):
    def forward(self, x):
        """Outputs."""
        return self.net(x) * self.factor

class Net(Base):
    """A network."""
    bias = 0.5
    def __init__(self, factor=1.5):
        super().__init__()
        self.factor = factor
        self.net = nn.Linear(3, 2)

def closed(weight):
    def loss(outputs, targets):  # a comment
        """A loss."""
        return weight * shared(nn.functional.cross_entropy(outputs, targets, label_smoothing=SMOOTHING))
    return loss

def metric(outputs, targets, power=1.0):
    return float((outputs.argmax(1) == targets).float().mean() ** power ** POWER)

class Augment:
    """Noise."""
    def __init__(self, size):
        self.size = size
    def __call__(self, inputs, generator):
        return inputs + self.size * helper.SCALE * helper.TABLE["a"]

def neighbour():
    return 5

def task():
    """The task."""
    x, y = torch.arange(60.0).reshape(20, 3) / 60, torch.arange(20) % 2
    return Workload(name="t", build_model=Net, fit=(x, y), calibration=(x, y), validation=(x, y), test=(x, y),
                    loss=closed(0.7), metric=functools.partial(metric, power=1.5), augment=Augment(0.3),
                    recipe=Recipe(batch=5, dense_epochs=1, trial_epochs=1))
'''


@pytest.fixture
def prints(tmp_path, monkeypatch):
    """The fingerprints of the task, its two files changed by replacements."""
    numbers = iter(range(999))

    def of(*changes: tuple[str, str], folder: str = "", file: str = "task") -> tuple[str, str]:
        place = tmp_path / (folder or f"n{next(numbers)}")
        place.mkdir(exist_ok=True)
        texts = [TASK, HELPER]
        for old, new in changes:
            assert any(old in text for text in texts), old
            texts = [text.replace(old, new) for text in texts]
        (place / f"{file}.py").write_text(texts[0])
        (place / "helper.py").write_text(texts[1])
        monkeypatch.syspath_prepend(str(place))
        monkeypatch.delitem(__import__("sys").modules, "helper", raising=False)
        workload = get_workload(f"{place / file}.py:task")
        return model_fingerprint(workload.build_model()), training_fingerprint(workload)

    return of


SAME = {
    "docstring of a module": [('"""A task."""', '"""Another."""')],
    "docstring of a class": [('"""A network."""', '"""Words."""')],
    "no docstring": [('        """A loss."""\n', "")],
    "docstring in another file": [('"""Half of it."""', '"""Less."""')],
    "comment": [("# a comment", "# words")],
    "format": [("return weight * shared(", "return (weight\n            * shared("), ("=SMOOTHING))", "=SMOOTHING)))")],
    "annotations": [("def closed(weight):", "def closed(weight: float) -> object:")],
    "import": [("import functools\n", "import functools\nimport math\n")],
    "neighbour": [("return 5", "return 6")],
    "neighbour in another file": [("return x * 3", "return x * 4")],
    "recipe": [("trial_epochs=1", "trial_epochs=2")],
    "lines before": [("POWER = 2", "\n\n\nOTHER = 7\nPOWER = 2")],
}
OTHER_MODEL = {
    "method of a base": [("return self.net(x) * self.factor", "return self.net(x) * self.factor + 1")],
    "constant of the class": [("bias = 0.5", "bias = 0.25")],
    "argument kept beside tensors": [("factor=1.5", "factor=1.25")],
    "shape": [("nn.Linear(3, 2)", "nn.Linear(3, 3)")],
    "frozen": [("self.net = nn.Linear(3, 2)", "self.net = nn.Linear(3, 2).requires_grad_(False)")],
}
OTHER_TRAINING = {
    "loss": [("return weight * shared(", "return 2 * weight * shared(")],
    "closed over": [("closed(0.7)", "closed(0.6)")],
    "constant": [("SMOOTHING = 0.1", "SMOOTHING = 0.2")],
    "function in another file": [("return x * 0.5", "return x * 0.25")],
    "metric": [("outputs.argmax(1) == targets", "outputs.argmin(1) == targets")],
    "partial": [("power=1.5", "power=1.25")],
    "default": [("power=1.0", "power=1.1")],
    "state of an object": [("Augment(0.3)", "Augment(0.4)")],
    "method of an object": [("return inputs + self.size", "return inputs - self.size")],
    "constant in another file": [("SCALE = 0.25", "SCALE = 0.5")],
    "dict in another file": [('{"a": 0.5}', '{"a": 0.75}')],
    "constant of the metric": [("POWER = 2", "POWER = 3")],
}


def test_rewording_and_moving_change_nothing(prints):
    first = prints()
    for what, changes in SAME.items():
        assert prints(*changes) == first, what
    assert prints(folder="elsewhere", file="renamed") == first


def test_what_decides_results_counts(prints):
    model, training = prints()
    for what, changes in OTHER_MODEL.items():
        found = prints(*changes)
        assert found[0] != model and found[1] == training, what
    for what, changes in OTHER_TRAINING.items():
        found = prints(*changes)
        assert found[1] != training and found[0] == model, what


def of(**parts) -> str:
    return training_fingerprint(code(**parts))


def code(**parts) -> SimpleNamespace:
    """What a workload has besides its data."""
    usual = {"loss": nn.functional.cross_entropy, "metric": accuracy}
    return SimpleNamespace(
        **usual | dict.fromkeys(("augment", "forward", "steps_per_epoch", "train", "evaluate")) | parts
    )


def test_lambdas_of_one_line_are_told_apart():
    first, second = (lambda o, t: o.sum(), lambda o, t: o.mean())
    assert of(loss=first) != of(loss=second)
    assert of(loss=first) == of(loss=lambda o, t: o.sum())


def test_functions_without_source_and_weights_of_a_loss_count():
    one, two = (
        types.FunctionType(given.__code__.replace(co_filename="nowhere"), {})
        for given in (lambda o, t: o * 2, lambda o, t: o * 3)
    )
    assert of(loss=one) != of(loss=two)
    weighted = [nn.CrossEntropyLoss(torch.tensor([1.0, weight])) for weight in (0.5, 0.25)]
    assert of(loss=weighted[0]) != of(loss=weighted[1]) == of(loss=nn.CrossEntropyLoss(torch.tensor([1.0, 0.25])))
    smooth = [functools.partial(nn.functional.cross_entropy, label_smoothing=by) for by in (0.0, 0.25)]
    assert of(loss=smooth[0]) != of(loss=smooth[1])
    assert of(loss=nn.functional.mse_loss) != of(loss=nn.functional.l1_loss)
    assert of(loss=accuracy, metric=one) != of(loss=one, metric=accuracy)


def test_a_function_that_notes_things_down_keeps_its_fingerprint():
    seen = []
    workload = code(loss=lambda o, t: seen.append(o))
    first = training_fingerprint(workload)
    seen.append(5)
    assert training_fingerprint(workload) == first


class Hooked(nn.Module):
    def __init__(self, hook=None, act=torch.relu):
        super().__init__()
        self.linear, self.act = nn.Linear(3, 2), act
        self.parts, self.noise = [self.linear], torch.rand(4)
        if hook:
            self.linear.register_forward_hook(hook)

    def forward(self, x):
        return self.act(self.linear(x))


def test_a_network_is_known_by_what_it_keeps_and_not_by_its_weights():
    assert model_fingerprint(Hooked()) == model_fingerprint(Hooked())
    assert model_fingerprint(Hooked()) != model_fingerprint(Hooked(act=torch.tanh))
    hooks = [lambda module, inputs, output: output * 2, lambda module, inputs, output: output * 3]
    assert len({model_fingerprint(Hooked(hook)) for hook in (None, *hooks)}) == 3


def test_a_trained_model_outlives_a_rewording_and_a_move(place, tmp_path, monkeypatch):
    """Neither is a study refused nor a dense model trained again; a change of code does both."""
    labels = []
    monkeypatch.setattr(
        "search.training.dense_model.train_dense", lambda *given: labels.append(1) or train_dense(*given)
    )
    code = (place / "tiny.py").read_text()

    def dense(folder, text):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "moved.py").write_text(text)
        workload = get_workload(f"{tmp_path / folder / 'moved.py'}:tiny")
        found = dense_model(workload, 0, tmp_path / "cache")
        return study_identity(SearchConfig(), workload, found)

    first = dense("a", code)
    again = dense("b", code.replace("class Tiny(nn.Module):\n", 'class Tiny(nn.Module):\n    """Small."""\n\n'))
    assert again == first and len(labels) == 1
    changed = dense("c", code.replace(".relu().mean(dim=(2, 3))", ".relu().amax(dim=(2, 3))", 1))
    assert {key for key in first if changed[key] != first[key]} == {"architecture", "dense model"} and len(labels) == 2


def recorded() -> dict[str, dict[str, str]]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_built_in_workloads_keep_their_fingerprints_and_know_their_old_ones(name):
    """Raise the version in `search.user_code.source` for a change of what they compute, and keep this file for any
    other."""
    golden = recorded()[name]
    model = VGG9(width=1 / 8, inputs=1, pools=3 if name == "digits" else 4)
    task = code(augment=shift_and_flip if name == "fashion-mnist" else None)
    new = model_fingerprint(model), training_fingerprint(task)
    assert new == (golden["architecture"], golden["training"])
    assert golden["old architecture"] in old_model_fingerprints(model, new[0]) & set(BUILT_IN.values())
    assert golden["old training"] in old_training_fingerprints(task) & set(BUILT_IN.values())


def test_a_study_recorded_with_old_fingerprints_is_the_same_study(tmp_path):
    golden = recorded()["digits"]
    workload = get_workload("digits")
    path = tmp_path / "weights.pt"
    torch.save(workload.build_model().state_dict(), path)
    dense = dense_model(workload, 0, tmp_path, path)
    now = study_identity(SearchConfig(), workload, dense)
    old = {key: value for key, value in now.items() if not key.endswith(" data")} | {
        "architecture": golden["old architecture"], "loss, metric and augmentation": golden["old training"],
        "data": golden["data"],
    }  # fmt: skip
    assert in_todays_words(old, SearchConfig(), workload, dense) == now
    other = in_todays_words(old | {"data": "0" * 16}, SearchConfig(), workload, dense)
    assert {key for key in now if other[key] != now[key]} == {of_split(split) for split in SPLITS}
    other = in_todays_words(old | {"architecture": "0" * 16}, SearchConfig(), workload, dense)
    assert {key for key in now if other[key] != now[key]} == {"architecture"}


def test_a_dense_model_cached_under_the_old_key_is_not_trained_again(tmp_path, monkeypatch):
    golden = recorded()["digits"]
    workload = get_workload("digits")
    monkeypatch.setattr("search.training.dense_model.train_dense", None)  # calling it fails
    torch.manual_seed(3)
    kept = workload.build_model()
    save_model(kept, Structure({}), tmp_path / f"dense-{golden['dense key, seed 0']}.safetensors")
    found = dense_model(workload, 0, tmp_path)
    assert weights_fingerprint(found.model) == weights_fingerprint(kept)


def test_a_changed_study_is_refused_before_its_dense_model_is_trained(finished, place, tmp_path, monkeypatch):
    shutil.copytree(finished.path, tmp_path / "tiny")
    (tmp_path / "tiny.py").write_text((place / "tiny.py").read_text().replace('("fit", 400)', '("fit", 401)'))
    workload = get_workload(f"{tmp_path / 'tiny.py'}:tiny")
    folder, labels = StudyFolder(tmp_path, "tiny"), []
    monkeypatch.setattr(
        "search.training.dense_model.train_dense", lambda *given: labels.append(1) or train_dense(*given)
    )
    with pytest.raises(UsageError, match=r"fit data was .*, is .*name a new --study"):
        _dense_model(folder, folder.config, workload, SimpleNamespace(note=labels.append))
    assert not labels
    (tmp_path / "tiny.py").write_text((place / "tiny.py").read_text())
    workload = get_workload(f"{tmp_path / 'tiny.py'}:tiny")
    again = _dense_model(folder, folder.config, workload, ProgressReporter())  # its cache is gone
    assert labels and again.weights == folder.read_record()["identity"]["dense model"]


def test_a_test_split_may_change_until_a_final_run_depends_on_it(finished, place, tmp_path):
    shutil.copytree(finished.path, tmp_path / "tiny")
    folder, notes = StudyFolder(tmp_path, "tiny"), []
    workload = get_workload(f"{place / 'tiny.py'}:tiny")
    dense = dense_model(workload, 0, finished.root / "cache")

    def settle(split=None):
        changed = workload
        if split:
            inputs, targets = getattr(workload, split)
            changed = dataclasses.replace(workload, **{split: (inputs, targets.flip(0))})
        found = dataclasses.replace(dense, data=SplitFingerprints(changed))
        network = trace_channels(dense.model, workload.example_input).network
        searched, watcher = SimpleNamespace(space=SimpleNamespace(network=network), table=None), SimpleNamespace()
        watcher.note = notes.append
        config = folder.config
        _settle_identity(folder, config, changed, found, searched, watcher, config.stored())

    settle()
    for split in SPLITS:  # there are final runs
        with pytest.raises(UsageError, match=f"{split} data was"):
            settle(split)
    for path in (folder.path / "journal").glob("final-*"):
        path.unlink()
    assert not notes
    settle("test")
    assert len(notes) == 1 and "test split" in notes[0]
    settle("test")
    assert len(notes) == 1  # it is the study's from now on
    with pytest.raises(UsageError, match="fit data was"):
        settle("fit")
