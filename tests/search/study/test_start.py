"""Studies from start to front: numbering, seeds, interruptions and resumption, the samplers."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from written_studies import proposed, records, stored

import search.executors.evaluation
import search.study.runner
from pruning.latency import describe_device, measure_latency_table
from search.config import make_config
from search.errors import Refused, UsageError
from search.export.choose import choose_trial
from search.export.rebuild import export_of_trial
from search.progress import ProgressReporter
from search.proposals.pool import FRACTIONS
from search.results.closing import closing_rows
from search.results.comparison import read_comparison
from search.results.resume import resume_command
from search.results.view import open_study
from search.store.folder import StudyFolder
from search.store.journal import Journal
from search.study.result import SearchResult
from search.study.start import run_search
from search.training.evaluate import failed
from search.workloads.run import TRIAL
from spaces import GRANULARITIES
from spaces.allocation.allocators import ALLOCATORS
from spaces.cost.timing import TimedNetwork, TimedNetworks
from spaces.search_space.initial import UNPRUNED
from spaces.wording import counted

TRACKER = ("start", "log_trial", "log_summary", "finish")
pytestmark = pytest.mark.usefixtures("without_mlflow")
QUICK = {"max_size": 0.5, "finalists": 0, "cost": "macs"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """One root for the studies of this module, so that MLflow's store is made once."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def begin(root, place):
    """Run a study of the tiny workload under the shared root."""

    def go(study: str, watcher: ProgressReporter | None = None, factory: str = "tiny", **options):
        options = QUICK | options
        return run_search(
            make_config(workload=f"{place / 'tiny.py'}:{factory}", study=study, root=str(root), **options), watcher
        )

    return go


@pytest.fixture
def whole(begin, studies):
    """A finished study of seven trials, which no test may change."""
    if "whole" not in studies:
        studies["whole"] = begin("whole", trials=7)
    return studies["whole"]


@pytest.fixture(scope="module")
def studies() -> dict[str, SearchResult]:
    """Studies of this module by name."""
    return {}


@pytest.mark.slow
def test_every_granularity_can_be_searched(begin):
    """Seeds, the scan and proposals of all of them, and mixed; no trial fails or is beyond the limit."""
    study = begin("units", granularity=GRANULARITIES, mixed=True, max_size=0.8, trials=24)
    trials = study.trials
    assert set(trials["state"]) == {"complete"}
    assert (trials["size"] <= 0.8).all()
    tried = set(trials["granularity"])
    assert tried >= {"fine-grained", "vector", "kernel", "channel", "2:4", "mixed"}
    assert {"swap", "unpruned", "scan"} <= set(trials["origin"])


@pytest.mark.slow
def test_a_study_takes_other_schedules(begin):
    study = begin("rounds", schedule="iterative", trials=8)
    assert set(study.trials["state"]) == {"complete"} and set(study.trials["schedule"]) == {"iterative"}
    with pytest.raises(UsageError, match="schedule cubic is the polynomial of exponent 3, and a search samples the"):
        begin("wrong", schedule="cubic", trials=2)


@pytest.mark.slow
def test_a_study_keeps_counts_to_a_multiple(begin):
    study = begin("rounded", granularity="channel", round_to=4, trials=10)
    assert set(study.trials["state"]) == {"complete"}
    kept = {record.policy.digest: record for record in Journal(study.folder / "journal").trials()}
    for record in kept.values():
        for name, count in (("conv0.weight", 8), ("conv1.weight", 16)):
            assert round((1 - record.result.achieved[name]) * count) % 4 == 0


def test_a_study_of_before_an_option_existed_goes_on(begin, root):
    begin("older", trials=2, bits=32)
    path = root / "older" / "study.json"
    record = json.loads(path.read_text())
    for name in ("schedule", "round_to", "bits"):
        del record["config"][name]
    path.write_text(json.dumps(record))
    assert begin("older", trials=3).counts["complete"] == 3
    assert not any(trial.policy.is_rounded for trial in records(root, "older"))


class Interrupt(ProgressReporter):
    """Ctrl-C after some trials, or in the middle of one."""

    def __init__(self, after: int | None = None, within: int | None = None) -> None:
        self.after, self.within, self.shown, self.asked = after, within, 0, []

    def headline(self, text):
        self.shown += 1
        if self.shown == self.after:
            raise KeyboardInterrupt

    def stage(self, label):
        if label.startswith("trial"):
            self.asked.append(label)
        return _Stage(label.startswith(f"trial {self.within} "))


class _Stage:
    def __init__(self, stops: bool) -> None:
        self.stops = stops

    def __enter__(self):
        return self.step

    def __exit__(self, *_):
        return None

    def step(self, done, total):
        if self.stops and done == 5:
            raise KeyboardInterrupt


def test_a_study_is_numbered_without_gaps_and_seeds_take_at_most_half(whole, root):
    found = records(root, "whole")
    assert [trial.number for trial in found] == list(range(7)) == [trial.number for trial in stored(root, "whole")]
    origins = [trial.origin for trial in found]
    assert set(origins[:3]) <= {*ALLOCATORS, UNPRUNED} and set(origins[3:]) <= set(FRACTIONS)
    assert whole.counts["complete"] == 7
    for trial, theirs in zip(found, stored(root, "whole"), strict=True):
        shares = trial.result.shares
        assert theirs.values == [trial.result.accuracy, shares.encoded, shares.macs]
        assert theirs.params == dict(trial.params)


def test_the_front_is_optunas(whole, root):
    best = optuna.load_study(study_name="whole", storage=f"sqlite:///{root / 'whole' / 'study.db'}").best_trials
    assert set(whole.front["trial"]) == {trial.number for trial in best if trial.values[0] > whole.state.chance}


def test_every_trial_is_within_the_limit(whole, root):
    assert all(trial.result.shares.encoded <= trial.target <= 0.5 for trial in records(root, "whole"))


def test_only_the_front_keeps_weights(whole, root):
    kept = {int(path.stem[-5:]) for path in (root / "whole" / "checkpoints").iterdir()}
    assert kept == set(whole.front["trial"])


def test_seeds_can_be_left_out(begin, root):
    begin("unseeded", trials=3, seeds=False)
    assert {trial.origin for trial in records(root, "unseeded")} <= set(FRACTIONS)


def test_a_stock_sampler_is_named_as_the_origin(begin, root):
    begin("stock", trials=3, sampler="random")
    assert [trial.origin for trial in records(root, "stock")][1:] == ["sampler"] * 2


def test_what_the_guide_knew_is_in_the_journal_and_in_optuna(whole, root):
    for trial, theirs in zip(records(root, "whole"), stored(root, "whole"), strict=True):
        assert dict(trial.scores) == theirs.user_attrs.get("scores", {})
        assert trial.origin == theirs.user_attrs["origin"]
    known = records(root, "whole")[-1].scores
    assert 0 <= known["predicted_low"] <= known["predicted"] <= known["predicted_high"] <= 1 and known["gain"] >= 0


def test_optuna_knows_what_came_of_the_preferences(whole, root):
    study = optuna.load_study(study_name="whole", storage=f"sqlite:///{root / 'whole' / 'study.db'}")
    assert study.metric_names == [
        "validation accuracy (share of 1)", "encoded size (share of dense)", "MACs (share of dense)",
    ]  # fmt: skip
    for trial, theirs in zip(records(root, "whole"), study.trials, strict=True):
        assert {name for name in theirs.params if "." in name} >= {f"preference.{name}" for name in trial.sampled}
        landed, shares = theirs.user_attrs["landed"], trial.result.shares
        assert landed == {
            "granularity": trial.policy.granularity_label, "bits": trial.policy.bits, "size": shares.encoded,
            "macs": shares.macs, "sparsity": dict(trial.result.achieved),
        }  # fmt: skip
        assert theirs.params["bits"] == str(trial.policy.bits) in ("8", "6", "4", "3")


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
def test_the_smallest_of_an_accuracy_asked_for(begin, root):
    result = begin("accurate", trials=7, min_accuracy="dense-0.2")
    accurate = result.front[result.front["accuracy"] >= result.least_accuracy]
    assert result.best == accurate.loc[accurate["size"].astype(float).idxmin(), "trial"]


def test_trials_stay_within_a_limit_on_macs(begin, root):
    result = begin("swift", trials=5, max_macs=0.7)
    assert all(trial.result.shares.macs <= 0.7 for trial in records(root, "swift"))
    assert set(result.trials["granularity"]) == {"channel"}


def test_a_finished_study_returns_at_once_and_changes_no_file(begin, whole, root):
    before = {path: path.read_bytes() for path in (root / "whole" / "journal").iterdir()}
    watcher = Interrupt()
    begin("whole", watcher, trials=7)
    assert watcher.asked == []
    assert {path: path.read_bytes() for path in (root / "whole" / "journal").iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "gp"])
def test_every_sampler_runs_and_repeats_itself(begin, root, sampler):
    """Of the others, the resumed study below."""
    for study in (f"{sampler}-a", f"{sampler}-b"):
        assert begin(study, trials=4, sampler=sampler, seed=3).counts["complete"] == 4
    assert proposed(root, f"{sampler}-a") == proposed(root, f"{sampler}-b")
    assert len({json.dumps(params) for params in proposed(root, f"{sampler}-a")}) == 4


@pytest.mark.slow
def test_another_seed_proposes_otherwise(begin, root):
    begin("stock", trials=3, sampler="random")
    begin("other", trials=3, sampler="random", seed=4)
    for one, other in zip(proposed(root, "stock")[1:], proposed(root, "other")[1:], strict=True):
        assert one["size"] != other["size"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["guided", "tpe", "nsga2"])
def test_a_resumed_study_proposes_what_it_would_have_proposed(begin, root, sampler):
    """13 trials, so that TPE's 10 random ones are over and NSGA-II has a second generation."""
    options = {"trials": 13, "sampler": sampler}
    begin(f"{sampler}-straight", **options)
    with pytest.raises(KeyboardInterrupt):
        begin(f"{sampler}-broken", Interrupt(after=4), **options)
    with pytest.raises(KeyboardInterrupt):
        begin(f"{sampler}-broken", Interrupt(after=8), **options)
    assert len(records(root, f"{sampler}-broken")) == 12
    begin(f"{sampler}-broken", **options)
    assert proposed(root, f"{sampler}-broken") == (straight := proposed(root, f"{sampler}-straight"))
    assert len({json.dumps(params) for params in straight}) == 13


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


def test_where_every_trial_fails_there_are_no_finals(begin, root, monkeypatch):
    def evaluate(*_, stage, **__):
        return failed("diverged: the loss is nan") if stage == TRIAL else pytest.fail("a baseline was fine-tuned")

    monkeypatch.setattr(search.executors.evaluation, "evaluate_policy", evaluate)
    result = begin("hopeless", trials=3, finalists=2)
    assert result.counts["failed"] == 3 and result.comparison is None and result.best is None


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


def test_a_workload_that_fails_late_costs_trials_not_the_study(root, place):
    (place / "faulty.py").write_text(
        "from tiny import changed\n"
        "from pathlib import Path\n"
        "from search.workloads import accuracy\n"
        "def metric(outputs, targets):\n"
        f"    done = len(list(Path({str(root / 'faulty' / 'journal')!r}).glob('trial-*.json')))\n"
        "    if done == 1: raise KeyError('no such class')\n"
        "    return float('nan') if done == 2 else accuracy(outputs, targets)\n"
        "def faulty(): return changed(name='faulty', metric=metric)\n"
    )
    config = make_config(
        workload=f"{place / 'faulty.py'}:faulty", root=str(root), trials=4, seeds=False, sampler="tpe", **QUICK
    )
    result = run_search(config)
    states = [(trial.result.state, trial.result.reason) for trial in records(root, "faulty")]
    assert [state for state, _ in states] == ["complete", "failed", "failed", "complete"]
    assert states[1][1].startswith("error: KeyError") and states[2][1] == "diverged: the metric is nan"
    assert result.counts["failed"] == 2
    assert {t.state.name for t in stored(root, "faulty")} == {"COMPLETE", "FAIL"}
    assert set(result.front["trial"]) <= {n for n, (state, _) in enumerate(states) if state == "complete"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_size": 0.4}, "max-size was 0.5, is 0.4"),
        ({"sampler": "random"}, "sampler was 'guided', is 'random'"),
        ({"granularity": ("channel",)}, "granularity was"),
        ({"seeds": False}, "warm-start was True, is False"),
        ({"criterion": "random"}, "criterion was"),
        ({"size_metric": "nonzero"}, "size-metric was"),
        ({"seed": 9}, "seed was 0, is 9"),
        ({"final_repeats": 2, "granularity": "kernel"}, "granularity was"),
        ({"mixed": True}, "mixed was False, is True"),
        ({"bits": (8, 3)}, "bits was (8, 6, 4, 3), is (8, 3)"),
    ],
)
def test_only_budgets_may_change(begin, whole, root, change, said):
    with pytest.raises(UsageError) as raised:
        begin("whole", trials=7, **change)
    assert said in str(raised.value)
    kept = json.loads((root / "whole" / "study.json").read_text())["config"]
    assert kept["max_size"] == 0.5 and kept["trials"] == 7


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


def test_the_resume_command_repeats_what_makes_the_workload():
    config = make_config(workload="./my file.py:make", data="some where", trials=9, root="r")
    command = resume_command(config)
    assert f"--workload '{Path('my file.py').resolve()}:make'" in command
    assert "--data 'some where'" in command and "--root r" in command and "trials" not in command
    assert resume_command(make_config()) == "prunefront search --workload digits"
    own = make_config(criterion="score.py:spread")
    assert resume_command(own, "/my code/score.py:spread").endswith("--criterion '/my code/score.py:spread'")
    assert resume_command(own).endswith("--criterion score.py:spread")


class Notes(ProgressReporter):
    def __init__(self) -> None:
        self.notes, self.headlines = [], []

    def note(self, text):
        self.notes.append(text)

    def headline(self, text):
        self.headlines.append(text)


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


@pytest.mark.slow
def test_finals_are_timed_once_where_latency_plays_a_part(begin, root, monkeypatch):
    """By a stand-in for the clock's work: what is timed, when it is timed again, and what is written down."""
    calls, measure = [], measure_latency_table

    def timed(dense, networks, example, progress):
        calls.append(set(networks))
        one = TimedNetwork(0.002, 0.01, 1.0, 1.0, 1.0)
        shares = {name: sum(p.numel() for p in n.parameters()) / 1442 for name, n in networks.items()}
        found = {name: TimedNetwork(0.002 * share, 0.01, share, share, share) for name, share in shares.items()}
        return TimedNetworks(describe_device(torch.device("cpu")), torch.get_num_threads(), 1, 30, one, one, found)

    monkeypatch.setattr("search.training.latency_cache.time_networks", timed)
    monkeypatch.setattr(
        "search.training.latency_cache.measure_latency_table", lambda *a, **k: measure(*a, **k, repeats=1, levels=())
    )
    options = {"cost": "latency", "granularity": "channel", "bits": 32, "finalists": 1, "final_seeds": 2}
    first = begin("timed-finals", trials=4, **options)
    comparison = read_comparison(StudyFolder(root, "timed-finals"))
    compared = set(comparison.digests)
    assert calls == [compared] and len(compared) >= 2 and comparison == first.comparison
    rows = {row.name: row for row in closing_rows(comparison, first.finals, {})}
    assert {name for name, row in rows.items() if row.latency is None} == {*comparison.rounded}
    begin("timed-finals", trials=4, **options)
    assert len(calls) == 1, "nothing new to time"
    begin("timed-finals", trials=4, **options | {"finalists": 3})
    again = read_comparison(StudyFolder(root, "timed-finals"))
    assert len(calls) == 2 and calls[1] == set(again.digests) > compared
    assert begin("untimed", trials=2, finalists=1, final_seeds=1).comparison.latency is None and len(calls) == 2


@pytest.mark.slow
def test_best_so_far_is_what_would_be_exported(begin):
    """With an accuracy asked for, that is the smallest trial that has it, not the most accurate one."""
    watcher = Notes()
    result = begin("so-far", watcher, trials=8, min_accuracy="0.2")
    best = result.trials.set_index("trial").loc[result.best]
    said = f"best so far {best['accuracy'] * 100:.2f} % at {best['size'] * 100:.1f} %"
    assert said in watcher.headlines[-1] and best["accuracy"] < result.front["accuracy"].max()
    assert "left" not in watcher.headlines[-1] and "about" in watcher.headlines[0]


def test_a_time_limit_starts_no_further_trial(begin, root):
    result = begin("timed", trials=50, timeout=1e-6, seeds=False)
    assert sum(result.counts.values()) == 0 and result.front.empty and result.best is None


@pytest.mark.slow
def test_a_study_of_removals_before_masks_is_searched_and_resumed(begin, root):
    """Any limit on MACs, which masks alone are not within, holds for them too."""
    options = {"granularity": "channel,channel+fine-grained,channel+*:4", "max_macs": 0.8, "bits": 32}
    begin("in-turn", trials=5, **options)
    before = proposed(root, "in-turn")
    study = begin("in-turn", trials=10, **options)
    assert proposed(root, "in-turn")[:5] == before
    assert set(study.trials["state"]) == {"complete"}
    assert set(study.trials["granularity"]) >= {"channel", "channel+fine-grained"}
    for trial in records(root, "in-turn"):
        own = trial.params["granularity"] != "channel"
        assert trial.result.shares.encoded <= trial.target <= 0.5 and trial.result.shares.macs <= 0.8
        assert (trial.policy.removal == {}) == (not own) and 0.1 <= trial.params["removal"] <= 0.9
        told = study.trials.set_index("trial")["removal"][trial.number]  # None where nothing is asked for
        assert (told or {}) == dict(trial.policy.removal)


def test_a_word_for_whole_policies_is_refused_for_mixed_layers(begin):
    with pytest.raises(UsageError, match="'channel\\+kernel' is for a whole policy, not for mixed layers"):
        begin("no", granularity="fine-grained,channel+kernel", mixed=True)
    with pytest.raises(UsageError, match=r"unknown granularity 'channel\+kernal': did you mean 'channel\+kernel'"):
        begin("no", granularity="channel+kernal")


@pytest.mark.slow
def test_finalists_and_baselines_of_removals_before_masks(begin):
    study = begin("in-turn-finals", granularity="channel+fine-grained", trials=3, finalists=1, final_seeds=1)
    assert study.comparison.granularity == "channel+fine-grained" and study.comparison.matched
    assert study.finals.keys() >= {one.digest for one in study.comparison.matched.values()}
    assert all(final.size_encoded <= 0.5 for final in study.finals.values())


def test_making_the_stores_takes_nothing_from_the_time_limit(begin, monkeypatch):
    """An hour passes while MLflow is set up, of a limit of half an hour that two trials are far within."""
    late, monotonic = [0.0], time.monotonic
    monkeypatch.setattr(
        "search.study.clock.time", SimpleNamespace(monotonic=lambda: monotonic() + late[0], time=time.time)
    )
    slow = SimpleNamespace(**dict.fromkeys(TRACKER, lambda *_: None))
    slow.start = lambda *_: late.__setitem__(0, 3600.0)
    monkeypatch.setattr("search.study.runner.Tracker", lambda *_: slow)
    result = begin("late", trials=2, timeout=1800.0, seeds=False)
    assert result.counts["complete"] == 2 and result.trials["finished"].max() < 1800


@pytest.mark.slow
def test_static_baselines_choose_their_bits_on_validation_data_once(begin, root, monkeypatch):
    """Each short fine-tune is on disk before the next; what was done before an interruption is not repeated."""
    asked, evaluate = [], search.executors.evaluation.evaluate_job

    def counted(subject, job, *rest):
        if job.key.startswith("static-"):
            asked.append((job.policy.digest, job.epochs, job.seed))
            if len(asked) == 3:
                raise KeyboardInterrupt
        return evaluate(subject, job, *rest)

    monkeypatch.setattr(search.executors.evaluation, "evaluate_job", counted)
    options = {
        "trials": 2,
        "bits": (8, 4),
        "max_size": 0.2,
        "finalists": 1,
        "final_repeats": 1,
        "seed": 5,
        "comparison": "full",
    }
    options |= {"granularity": "fine-grained", "sampler": "random", "warm_start": False}
    with pytest.raises(KeyboardInterrupt):
        begin("chosen-bits", **options)
    journal = Journal(root / "chosen-bits" / "journal")
    assert len(journal.short_runs()) == 2 and len(journal.finals()) == 1  # the finalist's
    result = begin("chosen-bits", **options)
    runs = {run.digest: run for run in journal.short_runs()}
    assert len(asked) == len(runs) + 1 and {asked[2]} == {one for one in asked if asked.count(one) == 2}
    assert {one[1:] for one in asked} == {(1, 5)}
    comparison, best = result.comparison, {}
    for run in runs.values():
        assert run.test_accuracy is None and run.result.shares.encoded <= 0.2
    best |= {digest: runs[digest].result.accuracy for digest in {one.digest for one in comparison.static} & {*runs}}
    for name, digest in comparison.baselines.items():
        assert comparison.bits[name] in (8, 4) and result.finals[digest].bits == comparison.bits[name]
        best[name] = runs[digest].result.accuracy if digest in runs else None
    assert max(run.result.accuracy for run in runs.values()) in best.values()
    begin("chosen-bits", **options)
    assert len(asked) == len(runs) + 1, "nothing is left to choose"
    rows = {row.name: row.bits for row in closing_rows(comparison, result.finals, {})}
    assert {name: rows[name] for name in ("dense", "dense at 8 bits", "dense at 4 bits")} == {
        "dense": 32, "dense at 8 bits": 8, "dense at 4 bits": 4,
    }  # fmt: skip
