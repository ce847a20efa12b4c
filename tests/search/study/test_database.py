"""A study whose database or journal was lost, damaged, left behind or written by an earlier version."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing

import optuna
import pytest
from watchers import Interrupt
from written_studies import proposed, records, stored

from search.errors import Refused
from search.results.view import open_study
from search.store.folder import StudyFolder

pytestmark = pytest.mark.usefixtures("without_mlflow")


@pytest.mark.slow
@pytest.mark.parametrize("keeps_database", [True, False])
def test_a_study_begun_with_the_older_names_goes_on_as_it_would_have(begin, whole, root, keeps_database):
    """Only its names are older: it proposes what a study of the newer names does."""
    name = f"older-names-{keeps_database}"
    with pytest.raises(KeyboardInterrupt):
        begin(name, Interrupt(after=4), trials=7)
    older = root / name
    record = json.loads((older / "study.json").read_text())
    del record["knob_word"]
    (older / "study.json").write_text(json.dumps(record))
    for path in (older / "journal").glob("trial-*.json"):
        path.write_text(path.read_text().replace('"preference.', '"sparsity.'))
    if keeps_database:
        with closing(sqlite3.connect(older / "study.db")) as database:
            database.execute("UPDATE trial_params SET param_name = replace(param_name, 'preference.', 'sparsity.')")
            database.commit()
    else:
        (older / "study.db").unlink()
    assert begin(name, trials=7).counts["complete"] == 7
    newer = [
        {key.replace("preference.", "sparsity."): value for key, value in p.items()} for p in proposed(root, "whole")
    ]
    assert proposed(root, name) == newer == [dict(trial.params) for trial in stored(root, name)]
    assert "knob_word" not in json.loads((older / "study.json").read_text())


@pytest.mark.slow
def test_a_lost_database_is_rebuilt_from_the_journal(begin, whole, root):
    shutil.copytree(root / "whole", root / "rebuilt")
    record = json.loads((root / "rebuilt" / "study.json").read_text())
    record["config"]["study"] = "rebuilt"
    (root / "rebuilt" / "study.json").write_text(json.dumps(record))
    (root / "rebuilt" / "study.db").unlink()
    journal = {path.name: path.read_bytes() for path in (root / "rebuilt" / "journal").iterdir()}
    watcher = Interrupt()
    begin("rebuilt", watcher, trials=7)
    assert watcher.asked == []
    assert {path.name: path.read_bytes() for path in (root / "rebuilt" / "journal").iterdir()} == journal
    ours, theirs = stored(root, "rebuilt"), stored(root, "whole")
    assert [(t.number, t.state, t.params, t.values) for t in ours] == [
        (t.number, t.state, t.params, t.values) for t in theirs
    ]


@pytest.mark.slow
def test_a_result_on_disk_that_optuna_never_heard_of_is_adopted(begin, root):
    """A kill between the journal and Optuna's file leaves the file behind, and perhaps the mark of a pending trial."""
    begin("adopted", trials=3)
    folder = StudyFolder(root, "adopted")
    with pytest.raises(KeyboardInterrupt):
        begin("adopted", Interrupt(within=3), trials=5)
    ahead = json.loads((folder.path / "journal" / "trial-00002.json").read_text())
    ahead |= {"number": 3, "params": dict(folder.journal.pending()[0].params), "origin": "sampler"}
    (folder.path / "journal" / "trial-00003.json").write_text(json.dumps(ahead))
    watcher = Interrupt()
    begin("adopted", watcher, trials=5)
    assert [label.split()[1] for label in watcher.asked] == ["4"]
    assert stored(root, "adopted")[3].values[0] == ahead["result"]["accuracy"] and not folder.journal.pending()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["guided", "random"])
def test_a_trial_that_an_earlier_version_began_in_the_database_is_run_as_what_it_was(begin, root, sampler):
    """By its parameters, which a sampler would not draw, where they are all there; one cut in between is drawn anew."""
    name = f"earlier-{sampler}"
    begin(name, trials=3, sampler=sampler, seeds=False, bits=32)
    folder = StudyFolder(root, name)
    known = stored(root, name)[-1]
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{folder.database}")
    begun = {**known.params, "size": 0.4375}
    study.enqueue_trial(begun)
    trial = study.ask()
    for axis, distribution in known.distributions.items():
        trial._suggest(axis, distribution)
    if sampler == "guided":
        trial.set_user_attr("scores", {"gain": 0.5})
        trial.set_user_attr("origin", "scan")
    study.ask().suggest_float("size", 0.3125, 0.34375, log=True)
    assert open_study(root, name).counts["waiting"] == 2
    begin(name, trials=5, sampler=sampler, seeds=False, bits=32)
    third, fourth = records(root, name)[3:]
    assert third.params == begun and third.origin == ("scan" if sampler == "guided" else "sampler")
    assert third.scores == ({"gain": 0.5} if sampler == "guided" else {})
    assert not 0.3125 <= fourth.params["size"] <= 0.34375
    assert [trial.params for trial in stored(root, name)[3:]] == [third.params, fourth.params]
    assert not list(folder.path.glob("*.broken-*")) and open_study(root, name).counts["waiting"] == 0


@pytest.mark.slow
def test_a_deleted_journal_entry_is_repeated(begin, root):
    """As the message about a damaged one advises; what it sampled went with it, so it is proposed anew."""
    begin("hole", trials=4)
    path = root / "hole" / "journal" / "trial-00001.json"
    before = records(root, "hole")
    path.write_text("{")
    with pytest.raises(Refused, match=r"trial-00001\.json.*delete it and the study\.db"):
        begin("hole", trials=4)
    path.unlink()
    (root / "hole" / "study.db").unlink()
    watcher = Interrupt()
    begin("hole", watcher, trials=4)
    after = records(root, "hole")
    assert [trial.number for trial in after] == [0, 1, 2, 3]
    assert [label.split()[1] for label in watcher.asked] == ["1"]
    assert [after[n] for n in (0, 2, 3)] == [before[n] for n in (0, 2, 3)]
    assert [trial.params for trial in stored(root, "hole")] == [dict(trial.params) for trial in after]


@pytest.mark.slow
def test_a_garbage_database_is_kept_and_rebuilt_from_the_journal(begin, root):
    before = begin("garbage", trials=2).trials
    path = root / "garbage" / "study.db"
    path.write_bytes(b"no database" * 100)
    after = begin("garbage", trials=3)
    assert path.with_name("study.db.broken-1").read_bytes() == b"no database" * 100
    assert after.counts["complete"] == 3 and list(after.trials["digest"])[:2] == list(before["digest"])
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone() == (3,)
