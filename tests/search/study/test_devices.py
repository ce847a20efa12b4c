"""A whole study on a device that is not the CPU: the same results, resumed elsewhere, exported on the CPU."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from fake_device import DEVICE, OnDevice
from watchers import Notes

from search.config import make_config
from search.export import rebuild
from search.export.choose import choose_trial
from search.export.rebuild import export_of_trial
from search.placement import CPU, Placement
from search.results.view import open_study
from search.study import checks
from search.study.start import run_search

THERE = Placement(DEVICE)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_mlflow")]


def test_a_study_is_the_same_on_a_device_and_goes_on_elsewhere(place, tmp_path, monkeypatch):
    def study(name: str, placement: Placement, trials: int, notes: Notes | None = None):
        monkeypatch.setattr(checks, "placement_of", lambda *_: placement)
        options = {"max_size": 0.5, "finalists": 1, "final_repeats": 1, "trials": trials, "study": name}
        options["cost"] = "macs"
        config = make_config(workload=f"{place / 'tiny.py'}:tiny", root=str(tmp_path / "root"), **options)
        return run_search(config, notes or Notes())

    here, away = study("here", CPU, 4).state, study("there", THERE, 4).state
    assert [one.result.device for one in away.records.values()] == ["fake"] * 4
    for own, other in (
        (here.records.values(), away.records.values()),
        (here.finals, away.finals),
    ):
        assert [bare(one.result) for one in own] == [bare(one.result) for one in other] and own
    assert [one.test_accuracy for one in here.finals] == [one.test_accuracy for one in away.finals]
    assert here.comparison.references == away.comparison.references

    notes = Notes()
    longer = study("there", CPU, 5, notes).state
    assert [one.result.device for one in longer.records.values()] == ["fake"] * 4 + [None]
    (said,) = [note for note in notes.notes if "last ran on" in note]
    assert said.startswith("the study last ran on fake and runs on ")

    monkeypatch.setattr(rebuild, "placement_of", lambda *_: THERE)
    for repeated in (False, True):
        if repeated:
            shutil.rmtree(tmp_path / "root" / "there" / "checkpoints")
        view, notes = open_study(tmp_path / "root", "there"), Notes()
        made, workload, _ = export_of_trial(view, choose_trial(view, "best"), notes)
        assert any("repeating its fine-tune" in note for note in notes.notes) == repeated
        assert not any(isinstance(tensor, OnDevice) for tensor in made.model.state_dict().values())
        assert workload.placement == CPU
        assert made.result.accuracy == choose_trial(view, "best").result.accuracy


def bare(result):
    """Without what may differ: seconds, and where it was."""
    return replace(result, seconds={}, device=None)
