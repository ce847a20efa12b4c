"""An export is of the network that was measured: of a study that changed, or of weights that did, there is none."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from watchers import Notes

from search import get_workload
from search.errors import Refused, UsageError
from search.export import rebuild
from search.export.choose import choose_trial
from search.export.rebuild import export_of_trial
from search.progress import ProgressReporter
from search.results.view import open_study


@pytest.fixture
def root(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "root" / "tiny")
    shutil.copytree(finished.root / "cache", tmp_path / "root" / "cache")
    return tmp_path / "root"


def trial_with_weights(root) -> int:
    view = open_study(root, "tiny")
    return next(row.trial for row in view.state.front if _plain(view, row.trial))


def _plain(view, number: int) -> bool:
    """Whether a trial has weights of its own and no finals."""
    return choose_trial(view, str(number)).final is None and view.folder.trial_weights(number).is_file()


def other_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.25)


class Wider(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.classifier = nn.Conv2d(1, 9, 3), nn.Linear(9, 10)

    def forward(self, images):
        return self.classifier(self.conv0(images).relu().mean(dim=(2, 3)))


def shifted(workload):
    inputs, targets = workload.validation
    return inputs + 0.25, targets


CHANGES = {
    "data": (lambda w: {"validation": shifted(w)}, "validation data was .* seed and sort them$"),
    "fit data": (lambda w: {"fit": (w.fit[0] + 0.25, w.fit[1])}, "fit data was"),
    "recipe": (lambda w: {"recipe": replace(w.recipe, learning_rate=0.0625)}, "recipe was"),
    "loss": (lambda w: {"loss": other_loss}, "loss, metric and augmentation was"),
    "architecture": (lambda w: {"build_model": Wider}, "architecture was"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "repeated"])
def test_a_changed_study_is_not_exported(root, monkeypatch, change, kept):
    make, said = CHANGES[change]
    monkeypatch.setattr(
        rebuild, "get_workload", lambda *a, **k: replace(w := get_workload(*a, **k), **make(w))
    )  # fmt: skip
    monkeypatch.setattr(rebuild, "fine_tuned", lambda *a: pytest.fail("computed"))
    view = open_study(root, "tiny")
    if not kept:
        shutil.rmtree(view.folder.path / "checkpoints")
    for choice in ("best", "0"):
        with pytest.raises(UsageError, match=rf"study 'tiny' was begun with other settings \(.*{said}"):
            export_of_trial(view, choose_trial(view, choice), ProgressReporter())


def test_a_changed_dense_model_is_named_where_it_is_there(root):
    (cached,) = (root / "cache").glob("dense-*.safetensors")
    with safe_open(cached, framework="pt") as file:
        metadata = {"structure": file.metadata()["structure"]}
    state = load_file(cached)
    state["conv0.weight"] *= 1.25
    save_file(state, cached, metadata=metadata)
    view = open_study(root, "tiny")
    with pytest.raises(UsageError, match="dense model was"):
        export_of_trial(view, choose_trial(view, "best"), ProgressReporter())
    cached.unlink()  # nothing is trained for weights that are kept
    made, _, _ = export_of_trial(view, choose_trial(view, "best"), ProgressReporter())
    assert made.result.accuracy > 0.5 and not list((root / "cache").glob("dense-*"))


def test_weights_that_were_not_measured_are_refused(root):
    """Of another network of the same shapes, checksum and all."""
    number = trial_with_weights(root) if has_plain(root) else None
    view = open_study(root, "tiny")
    chosen = choose_trial(view, "best" if number is None else str(number))
    path = (
        view.folder.final_weights(chosen.final.digest, chosen.final.seed)
        if chosen.final
        else view.folder.trial_weights(number)
    )
    with safe_open(path, framework="pt") as file:
        metadata = {"structure": file.metadata()["structure"]}
    state = load_file(path)
    state["classifier.bias"] = torch.arange(10.0) * 25
    save_file(state, path, metadata=metadata)
    with pytest.raises(Refused, match=r"have validation accuracy .*recorded .*delete them"):
        export_of_trial(view, chosen, ProgressReporter())
    os.truncate(path, 300)
    with pytest.raises(Refused, match=r"damaged weights .*; delete them, and the export repeats the fine-tune"):
        export_of_trial(view, chosen, ProgressReporter())


def has_plain(root) -> bool:
    view = open_study(root, "tiny")
    return any(_plain(view, row.trial) for row in view.state.front)


def test_a_repeated_fine_tune_that_differs_is_said(root):
    entry = root / "tiny" / "journal" / "trial-00000.json"
    data = json.loads(entry.read_text())
    assert data["result"]["state"] == "complete"
    data["result"]["accuracy"] = 0.0625
    entry.write_text(json.dumps(data))
    view = open_study(root, "tiny")
    view.folder.trial_weights(0).unlink(missing_ok=True)
    chosen = replace(choose_trial(view, "0"), final=None)
    watcher = Notes()
    made, _, _ = export_of_trial(view, chosen, watcher)
    assert any("the study recorded 6.25 %" in note for note in watcher.notes)
    assert made.result.accuracy > 0.25
