"""A study that goes on: with a longer budget, after an interrupted trial, and with what it kept."""

from __future__ import annotations

import json

import pytest
import torch
from quick_studies import QUICK
from watchers import Interrupt, Notes
from written_studies import proposed, records, stored

from search.config import make_config
from search.errors import UsageError
from search.export.choose import choose_trial
from search.export.rebuild import export_of_trial
from search.progress import ProgressReporter
from search.results.view import open_study
from search.store.journal import Journal
from search.study.start import run_search
from spaces.allocation.allocators import ALLOCATORS
from spaces.wording import counted

pytestmark = pytest.mark.usefixtures("without_mlflow")


def test_a_study_of_before_an_option_existed_goes_on(begin, root):
    begin("older", trials=2, bits=32)
    path = root / "older" / "study.json"
    record = json.loads(path.read_text())
    for name in ("schedule", "round_to", "bits"):
        del record["config"][name]
    path.write_text(json.dumps(record))
    assert begin("older", trials=3).counts["complete"] == 3
    assert not any(trial.policy.is_rounded for trial in records(root, "older"))


@pytest.mark.slow
def test_a_longer_budget_goes_on_where_it_ended(begin, root):
    begin("straight", trials=8, seeds=False)
    begin("longer", trials=4, seeds=False)
    first = [path.read_bytes() for path in sorted((root / "longer" / "journal").iterdir())]
    begin("longer", trials=8)
    assert proposed(root, "longer") == proposed(root, "straight")
    assert [path.read_bytes() for path in sorted((root / "longer" / "journal").iterdir())][:4] == first


@pytest.mark.slow
def test_a_longer_budget_brings_no_further_seeds(begin, root):
    begin("grown", trials=4, bits=32)
    begin("grown", trials=12, bits=32)
    assert [record.origin in ALLOCATORS for record in records(root, "grown")] == [True] * 2 + [False] * 10


@pytest.mark.slow
def test_an_interrupted_trial_is_not_run_again_beyond_the_budget(begin, root):
    with pytest.raises(KeyboardInterrupt):
        begin("shortened", Interrupt(within=4), trials=8)
    begin("shortened", trials=8, timeout=1e-6)
    begin("shortened", trials=4, timeout=3600.0)
    assert len(records(root, "shortened")) == 4
    begin("shortened", trials=6)
    assert [record.number for record in records(root, "shortened")] == list(range(6))


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 5])
def test_an_interrupted_trial_is_run_again_with_its_own_params(begin, root, number):
    """Trial 1 is a seed, trial 5 the sampler's."""
    study = f"midway-{number}"
    with pytest.raises(KeyboardInterrupt):
        begin(study, Interrupt(within=number), trials=8)
    (begun,) = Journal(root / study / "journal").pending()
    assert begun.number == number == len(stored(root, study))
    assert open_study(root, study).counts["waiting"] == 1
    watcher = Interrupt()
    begin(study, watcher, trials=8)
    found = records(root, study)
    assert [trial.number for trial in found] == list(range(8))
    assert (found[number].params, found[number].origin) == (begun.params, begun.origin)
    assert not Journal(root / study / "journal").pending()
    assert (found[number].origin in {*ALLOCATORS, "unpruned"}) == (number == 1)
    assert sum(label.startswith(f"trial {number} ") for label in watcher.asked) == 1
    assert not any(label.startswith(f"trial {number - 1} ") for label in watcher.asked)


@pytest.mark.slow
def test_a_changed_recipe_or_model_is_refused(begin, root, place):
    code = (place / "tiny.py").read_text()
    for name, old, new, said in (
        ("recipe", "trial_epochs=1", "trial_epochs=2", "recipe was"),
        ("model", "nn.functional.max_pool2d", "nn.functional.avg_pool2d", "architecture was"),
        ("data", '("fit", 400)', '("fit", 380)', "data was"),
    ):
        file = place / f"changed_{name}.py"
        file.write_text(code)
        options = {"study": f"changed-{name}", "root": str(root), "trials": 2, "seeds": False, **QUICK}
        run_search(make_config(workload=f"{file}:tiny", **options))
        file.write_text(code.replace(old, new))
        with pytest.raises(UsageError, match=said):
            run_search(make_config(workload=f"{file}:tiny", **options))
        file.write_text("# a comment changes nothing\n" + code)
        assert run_search(make_config(workload=f"{file}:tiny", **options)).counts["complete"] == 2


@pytest.mark.slow
def test_settings_not_given_keep_the_stored_values(begin, root, place):
    begin("kept", trials=2, granularity=("channel",), seed=5)
    config = make_config(workload=f"{place / 'tiny.py'}:tiny", study="kept", root=str(root), trials=3, finalists=0)
    run_search(config)
    found = records(root, "kept")
    assert len(found) == 3 and {trial.policy.granularity_label for trial in found} == {"channel"}
    by_name_alone = make_config(study="kept", root=str(root), trials=4)
    assert run_search(by_name_alone).counts["complete"] == 4


@pytest.mark.slow
def test_a_study_named_by_its_workload_keeps_its_placement(place, tmp_path, monkeypatch):
    options = {"workload": f"{place / 'tiny.py'}:tiny", "root": str(tmp_path), "seeds": False, **QUICK}
    run_search(make_config(**options, trials=1, precision="bf16", threads=1))
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    run_search(make_config(**options, trials=2))
    assert [trial.result.precision for trial in records(tmp_path, "tiny")] == ["bf16", "bf16"]
    assert 1 in threads
    run_search(make_config(**options, trials=1, study="whole"))  # whose dense model is another, of the same cache
    view = open_study(tmp_path, "tiny")
    export_of_trial(view, choose_trial(view, "0"), ProgressReporter())


@pytest.mark.slow
def test_the_environment_is_recorded_and_a_change_of_threads_is_only_said(begin, root, monkeypatch):
    begin("threads", trials=1)
    first = json.loads((root / "threads" / "study.json").read_text())
    assert first["environment"]["threads"] == torch.get_num_threads()
    assert first["environment"]["torch"] == torch.__version__
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    watcher = Notes()
    assert begin("threads", watcher, trials=2).counts["complete"] == 2
    (said,) = [note for note in watcher.notes if "threads" in note]
    threads = counted(first["environment"]["threads"], "thread")
    assert f"had {threads} when the study last ran and has 7 now" in said
    second = json.loads((root / "threads" / "study.json").read_text())
    assert second["environment"] == first["environment"] | {"threads": 7} and second["identity"] == first["identity"]
    again = Notes()
    begin("threads", again, trials=2)
    assert not [note for note in again.notes if "threads" in note]
