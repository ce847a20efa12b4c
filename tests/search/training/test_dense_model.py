"""Which dense model a workload has: trained, cached, or as it is built; and that a damaged cache is noticed."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from watchers import Notes

from pruning.channels.structure import Structure
from search import Recipe, Workload
from search.checksum import sealed, unsealed
from search.errors import Refused
from search.training.checkpoints import load_model, save_model
from search.training.dense_model import dense_model
from search.training.profile_cache import cached_profile

PIXELS, LABELS = (torch.tensor(part) for part in load_digits(return_X_y=True))
IMAGES = PIXELS.float().reshape(-1, 1, 8, 8) / 16


SHORT = Recipe(batch=60, dense_epochs=1)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def task(build_model=net, **changes) -> Workload:
    places = {"fit": (0, 600), "calibration": (600, 800), "validation": (800, 1100), "test": (1100, 1400)}
    splits = {name: (IMAGES[a:b], LABELS[a:b]) for name, (a, b) in places.items()}
    recipe = Recipe(batch=20, dense_epochs=3)
    return Workload(**{"name": "net", "build_model": build_model, "recipe": recipe, **splits, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    found = dense_model(task(), 0, tmp_path_factory.mktemp("cache"))
    assert found.accuracy > 0.7
    return found


@pytest.fixture
def dense(tmp_path):
    def made(workload, cache="cache"):
        watcher = Notes()
        found = dense_model(workload, 0, tmp_path / cache, watcher=watcher)
        assert (found.trained_seconds > 0) == bool(watcher.labels)
        return SimpleNamespace(found=found, trained=bool(watcher.labels), notes=watcher.notes)

    return made


def loaded(trained) -> nn.Module:
    model = net()
    model.load_state_dict(trained.model.state_dict())
    return model


def test_a_network_that_comes_trained_is_taken_as_it_is(dense, trained):
    kept = loaded(trained)
    for build in (lambda: loaded(trained), lambda: kept):
        made = dense(task(build))
        assert not made.trained and made.found.weights == trained.weights
        assert len(made.notes) == 1 and "same weights under every seed, and they do the task" in made.notes[0]
        assert "train_dense=True" in made.notes[0]


def test_a_network_that_comes_trained_is_trained_where_that_is_asked_for(dense, trained):
    made = dense(task(lambda: loaded(trained), train_dense=True))
    assert made.trained and not made.notes and made.found.weights != trained.weights
    with pytest.raises(ValueError, match=r"weights 'w\.pt' have no use"):
        task(train_dense=True, weights="w.pt")


def partly(trained) -> nn.Module:
    model = loaded(trained)
    model[7] = nn.Linear(16, 10)
    return model


def seeded() -> nn.Module:
    torch.manual_seed(4)
    return net()


def constant() -> nn.Module:
    model = net()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.125)
    return model


def test_a_network_that_is_not_trained_yet_is_trained(dense, trained):
    made = dense(task(lambda: partly(trained)), "partly")
    assert made.trained and not made.notes and made.found.accuracy > trained.accuracy
    one = seeded()
    for number, build in enumerate((seeded, constant, lambda: one)):
        made = dense(task(build, recipe=SHORT), str(number))
        assert made.trained and ["same weights" in note for note in made.notes].count(True) == 1, number
        assert "no better than shuffled ones" in made.notes[0] and "weights='as built'" in made.notes[0]
        assert not dense(task(build, recipe=SHORT), str(number)).trained
    assert torch.equal(one[0].weight, seeded()[0].weight)  # the user's own object is not trained


def test_as_built_takes_whatever_is_built(dense):
    made = dense(task(seeded, weights="as built"))
    assert not made.trained and not made.notes
    assert torch.equal(made.found.model[0].weight, seeded()[0].weight)


def from_numpy() -> nn.Module:
    model = net()
    model[0].weight.data = torch.tensor(np.random.randn(16, 1, 3, 3)).float()
    return model


def from_nowhere() -> nn.Module:
    model = net()
    model[0].weight.data = torch.frombuffer(bytearray(os.urandom(144)), dtype=torch.uint8).reshape(16, 1, 3, 3) / 255
    return model


@pytest.mark.parametrize("build", [from_numpy, from_nowhere])
def test_weights_drawn_by_other_generators_do_not_train_again(dense, build):
    first, second = dense(task(build)), dense(task(build))
    assert first.trained and not second.trained and first.found.weights == second.found.weights


def test_other_first_weights_or_frozen_layers_are_another_dense_model(dense):
    builds = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = net().state_dict()
        for frozen in (False, True):

            def build(state=state, frozen=frozen):
                model = net()
                model.load_state_dict(state)
                model[:5].requires_grad_(not frozen)
                return model

            builds.append(build)
    alone = [dense(task(build, recipe=SHORT), f"own {n}").found.weights for n, build in enumerate(builds)]
    shared = [dense(task(build, recipe=SHORT), "shared").found.weights for build in builds]
    assert shared == alone and len(set(alone)) == 4


def test_flipped_numbers_of_a_cached_model_are_noticed(dense, trained, tmp_path):
    first = dense(task())
    (path,) = (tmp_path / "cache").glob("dense-*.safetensors")
    spoil(path)
    with pytest.raises(Refused, match=r"damaged weights .*dense-.*checksum"):
        load_model(net(), path)
    again = dense(task())
    assert again.trained and again.found.weights == first.found.weights
    assert not dense(task()).trained


def spoil(path):
    """Another exponent in one weight, the file in order otherwise."""
    state = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state["0.weight"][3] *= 2.0
    save_file(state, path, metadata)


def test_weights_from_before_checksums_load(tmp_path):
    model = net()
    save_model(model, Structure({}), tmp_path / "new.safetensors")
    save_file(model.state_dict(), tmp_path / "old.safetensors", {"structure": json.dumps(Structure({}).to_dict())})
    for name in ("new", "old"):
        found = load_model(net(), tmp_path / f"{name}.safetensors")[0]
        assert torch.equal(found[3].weight, model[3].weight)


def test_a_seal_tells_a_changed_number():
    text = json.dumps({"version": 1, "points": [0.25, 0.5]})
    assert json.loads(unsealed(sealed(text))) == json.loads(text)
    assert unsealed(text) == text  # from before there were seals
    with pytest.raises(ValueError, match="checksum"):
        unsealed(sealed(text).replace("0.25", "0.75"))


def test_a_changed_number_in_a_cached_profile_is_scanned_again(trained, tmp_path, monkeypatch):
    from search.training.evaluate import PreparedModel

    monkeypatch.setattr("search.training.profile_cache.LEVELS", (0.5,))
    subject = PreparedModel.of(task(), trained.model)
    given = subject, trained, "magnitude-l2", ("channel",), tmp_path
    first = cached_profile(*given)
    (path,) = tmp_path.glob("profile-*.json")
    text = path.read_text()
    path.write_text(text.replace(f"{first.dense_loss!r}", "0.0625"))
    assert path.read_text() != text
    assert cached_profile(*given).dense_loss == first.dense_loss
    path.write_text(unsealed(text))
    assert cached_profile(*given).dense_loss == first.dense_loss
