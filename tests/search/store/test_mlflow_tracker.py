"""MLflow's record of a study, read back by MLflow's own client."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from io import StringIO
from itertools import count
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from search.cli.mlflow_ui import ui_command
from search.metric import SHARE, Metric
from search.progress import ProgressReporter
from search.records import FAILED, TrialRecord, TrialResult
from search.store import tracker as tracking
from search.store.journal import Journal
from search.store.mlflow_page import run_name
from search.store.mlflow_place import mlflow_place, study_page
from search.store.mlflow_record import LoggedStudy, MlflowRecord, logged_name, logged_values
from search.store.mlflow_store import silenced
from search.store.projection import Summary
from search.store.tracker import Tracker
from spaces.policy import PruningPolicy


def client(root: Path):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{(root / 'mlflow.db').resolve()}")


def runs(root: Path, study: str) -> tuple[list, list]:
    """Parents and children of a study, as MLflow finds them."""
    reader = client(root)
    experiment = reader.get_experiment_by_name("prunefront").experiment_id
    found = [run for run in reader.search_runs([experiment], max_results=1000) if run.data.tags["study"] == study]
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return parents, [run for run in found if "mlflow.parentRunId" in run.data.tags]


def test_one_parent_and_a_child_a_trial_with_everything_measured(finished):
    parents, children = runs(finished.root, "tiny")
    (parent,) = parents
    assert parent.info.status == "FINISHED" and parent.data.params["max_size"] == "0.5"
    assert parent.data.metrics["front_size"] == len(finished.reply["front"])
    assert {file.path for file in client(finished.root).list_artifacts(parent.info.run_id)} >= {
        "front.csv",
        "front.png",
    }
    journal = {trial.number: trial for trial in Journal(finished.path / "journal").trials()}
    assert sorted(int(run.data.tags["trial"]) for run in children) == sorted(journal) == list(range(8))
    for run in children:
        trial = journal[int(run.data.tags["trial"])]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id and run.info.status == "FINISHED"
        assert run.data.metrics["accuracy"] == trial.result.accuracy
        assert run.data.metrics["size_encoded"] == trial.result.shares.encoded
        assert run.data.metrics["macs"] == trial.result.shares.macs
        assert run.data.params["granularity"] == trial.policy.granularity_label
        assert run.data.params["bits"] == str(trial.policy.bits)
        assert all(len(value) < 100 and "conv" not in value for value in run.data.params.values())
        assert run.info.end_time - run.info.start_time == pytest.approx(1000 * (trial.finished - trial.started), abs=2)


def test_curves_and_the_sparsity_dict_are_there(finished, tmp_path):
    reader = client(finished.root)
    _, children = runs(finished.root, "tiny")
    run = children[0]
    trial = Journal(finished.path / "journal").trials()[int(run.data.tags["trial"])]
    history = reader.get_metric_history(run.info.run_id, "epoch_val_accuracy")
    assert [(point.step, point.value) for point in history] == [
        (n, point.accuracy) for n, point in enumerate(trial.result.curve, 1)
    ]
    path = reader.download_artifacts(run.info.run_id, "sparsity.json", str(tmp_path))
    assert json.loads(Path(path).read_text()) == dict(trial.policy.sparsity)


def test_artifacts_lie_under_the_root(finished):
    parents, _ = runs(finished.root, "tiny")
    assert parents[0].info.artifact_uri.removeprefix("file://").startswith(str(finished.root.resolve() / "artifacts"))


@pytest.mark.slow
def test_telemetry_is_off_before_mlflow_is_imported(tmp_path):
    code = (
        "import builtins, os, sys\n"
        "real, seen = builtins.__import__, []\n"
        "def spy(name, *rest, **more):\n"
        "    if name.split('.')[0] == 'mlflow' and not seen:\n"
        "        seen.append((os.environ.get('MLFLOW_DISABLE_TELEMETRY'), os.environ.get('DO_NOT_TRACK')))\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = spy\n"
        "import search.store.tracker, search.store.mlflow_store, search.study.start, search.cli.commands\n"
        "assert 'mlflow' not in sys.modules, 'imported too early'\n"
        "from pathlib import Path\n"
        f"search.store.mlflow_store.open_store(Path({str(tmp_path)!r}))\n"
        "print(seen[0])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == "('true', 'true')", ended.stderr


@pytest.mark.slow
def test_four_processes_may_make_the_store_at_once(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom search.store.mlflow_store import open_store, EXPERIMENT\n"
        "print(open_store(Path(sys.argv[1])).get_experiment_by_name(EXPERIMENT).experiment_id)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "new")]
    begun = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ended = [process.communicate(timeout=180) for process in begun]
    assert [process.returncode for process in begun] == [0] * 4, ended
    assert len({out for out, _ in ended}) == 1


@pytest.fixture(scope="module")
def trials(finished) -> dict[int, TrialRecord]:
    """Three trials with all they hold, and one that failed."""
    found = {trial.number: trial for trial in Journal(finished.path / "journal").trials()[:4]}
    return found | {3: replace(found[3], result=TrialResult(FAILED, "diverged: loss is nan"))}


@pytest.fixture(scope="module")
def logged_once(trials, tmp_path_factory) -> Path:
    """A root in which MLflow has these trials, to be copied."""
    root = tmp_path_factory.mktemp("logged")
    begin_and_end(root, trials)
    return root


@pytest.fixture
def logged(logged_once, tmp_path) -> Path:
    return Path(shutil.copytree(logged_once, tmp_path, dirs_exist_ok=True))


def begun(root: Path, records, params=(), unit=SHARE, **changes) -> Tracker:
    options = {"root": root, "name": "mine", "study_id": "id-of-mine", "unit": unit} | changes
    record = MlflowRecord(LoggedStudy(**options, to_time=lambda seconds: 1e9 + seconds), mlflow_place(root))
    tracker = Tracker(record)
    tracker.start(dict(params), records)
    return tracker


def begin_and_end(root: Path, records, *later, **changes) -> None:
    """A study that begins with these records, has others `later`, and ends."""
    tracker = begun(root, records, {"trials": 4}, **changes)
    for record in later:
        tracker.log_trial(record)
    tracker.finish("FINISHED")


@pytest.fixture
def study(tmp_path):
    """Begin the study again, with these trials in its journal, and end it."""
    return partial(begin_and_end, tmp_path)


def shown(root: Path, study: str = "mine") -> list[tuple]:
    """Trial, status and accuracy of every active run under the one active parent, in order."""
    (parent,), children = runs(root, study)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
    found = [(int(run.data.tags["trial"]), run.info.status, run.data.metrics.get("accuracy")) for run in children]
    for run in children:
        assert [file.path for file in client(root).list_artifacts(run.info.run_id)], run.data.tags["trial"]
    return sorted(found)


def expected(records) -> list[tuple]:
    return [
        (n, "FAILED" if record.result.state == FAILED else "FINISHED", record.result.accuracy)
        for n, record in sorted(records.items())
    ]


def run_of(root: Path, trial: int):
    _, children = runs(root, "mine")
    return next(run for run in children if run.data.tags.get("trial") == str(trial))


def test_a_trial_is_logged_once_however_often(study, trials, logged):
    before = {run.info.run_id for run in runs(logged, "mine")[1]}
    study(trials, trials[2])
    assert shown(logged) == expected(trials)
    assert {run.info.run_id for run in runs(logged, "mine")[1]} == before


def _double(reader, root, trial):
    lost = run_of(root, trial)
    tags = {key: value for key, value in lost.data.tags.items() if key != "mlflow.runName"}
    again = reader.create_run(lost.info.experiment_id, tags=tags, run_name="again")
    for key, value in lost.data.metrics.items():
        reader.log_metric(again.info.run_id, key, value)
    (root / "artifacts" / again.info.run_id / "artifacts").mkdir(parents=True)
    for name in ("sparsity.json", "sampled.json", "policy.json"):
        (root / "artifacts" / again.info.run_id / "artifacts" / name).write_text("{}")
    reader.set_terminated(again.info.run_id)


def _doubled(reader, root):
    for trial in (0, 1, 1):
        _double(reader, root, trial)


def _without_its_number(reader, root):
    reader.delete_tag(run_of(root, 1).info.run_id, "trial")


def _with_no_number(reader, root):
    reader.set_tag(run_of(root, 1).info.run_id, "trial", "one")


def _of_no_study(reader, root):
    reader.delete_tag(run_of(root, 1).info.run_id, "study_id")


def _of_no_trial(reader, root):
    reader.set_tag(run_of(root, 1).info.run_id, "trial", "17")


def _without_a_parent(reader, root):
    reader.delete_tag(run_of(root, 1).info.run_id, "mlflow.parentRunId")


def _half_written(reader, root):
    reader.update_run(run_of(root, 1).info.run_id, status="RUNNING")


def _said_to_have_failed(reader, root):
    reader.update_run(run_of(root, 1).info.run_id, status="FAILED")


def _with_another_accuracy(reader, root):
    reader.log_metric(run_of(root, 1).info.run_id, "accuracy", 0.0625, timestamp=2**42)


def _deleted(reader, root):
    reader.delete_run(run_of(root, 1).info.run_id)


def _without_files(reader, root):
    shutil.rmtree(root / "artifacts")


def _parent_deleted(reader, root):
    reader.delete_run(runs(root, "mine")[0][0].info.run_id)


def _two_parents(reader, root):
    tags = {"study": "mine", "study_id": "id-of-mine", "kind": "study"}
    reader.create_run(run_of(root, 0).info.experiment_id, tags=tags, run_name="mine", start_time=1)


def _experiment_deleted(reader, root):
    reader.delete_experiment(run_of(root, 0).info.experiment_id)


def _experiment_renamed(reader, root):
    reader.rename_experiment(run_of(root, 0).info.experiment_id, "kept")


@pytest.mark.parametrize(
    "damage",
    [
        _doubled, _without_its_number, _with_no_number, _of_no_study, _of_no_trial, _without_a_parent, _half_written,
        _said_to_have_failed, _with_another_accuracy, _deleted, _without_files, _parent_deleted, _two_parents,
        _experiment_deleted, _experiment_renamed,
    ],
)  # fmt: skip
def test_the_next_start_makes_the_record_equal_to_the_journal(study, trials, logged, caplog, damage):
    damage(client(logged), logged)
    study(trials)
    assert shown(logged) == expected(trials)
    assert not caplog.messages


def test_runs_of_the_users_own_under_the_parent_stay(study, trials, logged):
    parent = runs(logged, "mine")[0][0]
    own = client(logged).create_run(parent.info.experiment_id, tags={"mlflow.parentRunId": parent.info.run_id})
    study(trials)
    assert client(logged).get_run(own.info.run_id).info.lifecycle_stage == "active"


def locked(*_arguments, **_options):
    from mlflow.exceptions import MlflowException

    try:
        raise sqlite3.OperationalError("database is locked")
    except sqlite3.OperationalError as error:
        raise MlflowException("(sqlite3.OperationalError) database is locked") from error


def test_one_failing_query_at_resume_doubles_nothing(study, trials, logged, monkeypatch, caplog):
    found, calls = MlflowRecord._runs, []

    def once(tracker, condition):
        calls.append(condition)
        return locked() if len(calls) == 1 else found(tracker, condition)

    monkeypatch.setattr(MlflowRecord, "_runs", once)
    study(trials)
    assert len(calls) > 1 and shown(logged) == expected(trials)
    assert not caplog.messages


def test_while_it_is_unknown_what_was_logged_nothing_is(study, trials, tmp_path, monkeypatch, caplog):
    study({0: trials[0]})
    with monkeypatch.context() as failing:
        failing.setattr(MlflowRecord, "_runs", locked)
        study({0: trials[0], 1: trials[1]}, trials[2])
    assert shown(tmp_path) == expected({0: trials[0]})
    first, last = caplog.messages
    assert "could not be written" in first and "another program has it locked" in first
    assert last.endswith("(up to 3 of 3 trials are missing): the same command completes it without training")
    study(trials)
    assert shown(tmp_path) == expected(trials)


def test_a_store_that_can_be_written_again_gets_all_that_is_missing(trials, tmp_path, monkeypatch, caplog):
    tracker = begun(tmp_path, {})
    with monkeypatch.context() as failing:
        failing.setattr(tracker._record._client, "log_batch", locked)
        tracker.log_trial(trials[0])  # its run is there, without its metrics
        tracker.log_trial(trials[1])
        tracker.wait()
    monkeypatch.setattr(tracker, "_due", 0.0)
    tracker.log_trial(trials[2])
    tracker.wait()
    assert shown(tmp_path) == expected({n: trials[n] for n in range(3)})
    assert [line.split(",")[0] for line in caplog.messages] == [
        "MLflow could not be written",
        "MLflow is written again",
    ]


def test_a_summary_that_could_not_be_written_is_when_the_study_ends(trials, tmp_path, monkeypatch):
    tracker = begun(tmp_path, {})
    with monkeypatch.context() as failing:
        failing.setattr(tracker._record._client, "log_batch", locked)
        tracker.log_summary(Summary({"front_size": 3}, {"front.csv": b"trial\n"}, "note"))
        tracker.wait()
    tracker.finish("FINISHED")
    parent = runs(tmp_path, "mine")[0][0]
    assert parent.data.metrics == {"front_size": 3.0} and parent.info.status == "FINISHED"
    assert [file.path for file in client(tmp_path).list_artifacts(parent.info.run_id)] == ["front.csv"]


def test_a_store_that_failed_is_tried_again_although_no_trial_ends(trials, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "FIRST_PAUSE", 0.0)
    tracker = begun(tmp_path, {})
    done, calls, again = tracker._record._client.log_batch, [], Event()

    def thrice(*arguments, **options):
        calls.append(arguments)
        if len(calls) <= 3:
            locked()
        again.set()
        return done(*arguments, **options)

    monkeypatch.setattr(tracker._record._client, "log_batch", thrice)
    monkeypatch.setattr(tracker, "_pause", 0.0)
    monkeypatch.setattr("search.store.mlflow_store.open_store", lambda *_: tracker._record._client)
    tracker.log_trial(trials[1])
    assert again.wait(60)
    tracker.finish("FAILED")  # which tries nothing that is not due
    assert shown(tmp_path) == expected({1: trials[1]})
    assert [line.split(",")[0] for line in caplog.messages] == [
        "MLflow could not be written",
        "MLflow is written again",
    ]


class Stuck:
    """A call of MLflow's client that returns when it may."""

    def __init__(self, tracker: Tracker, call: str, monkeypatch) -> None:
        self.entered, self.may_return = Event(), Event()
        done = getattr(tracker._record._client, call)

        def stuck(*arguments, **options):
            result = done(*arguments, **options)
            self.entered.set()
            assert self.may_return.wait(60)
            return result

        monkeypatch.setattr(tracker._record._client, call, stuck)


@pytest.mark.parametrize("call", ["create_run", "log_batch", "set_terminated"])
def test_no_trial_waits_for_mlflow_and_all_are_there_when_the_study_ends(trials, tmp_path, monkeypatch, call):
    tracker = begun(tmp_path, {0: trials[0]})
    stuck = Stuck(tracker, call, monkeypatch)
    for number in (1, 2, 3):
        tracker.log_trial(trials[number])
    assert stuck.entered.wait(60) and tracker._there < 2
    stuck.may_return.set()
    tracker.finish("KILLED")
    assert shown(tmp_path) == expected(trials)
    assert runs(tmp_path, "mine")[0][0].info.status == "KILLED"


@pytest.mark.parametrize(
    ("call", "status"), [("create_run", "FAILED"), ("log_batch", "KILLED"), ("set_terminated", "FAILED")]
)
def test_a_study_that_ends_leaves_an_mlflow_that_is_stuck(study, trials, tmp_path, monkeypatch, caplog, call, status):
    monkeypatch.setattr(tracking, "BRIEFLY", 0.05)
    monkeypatch.setattr(tracking, "PATIENCE", 0.05)
    tracker = begun(tmp_path, {0: trials[0]})
    stuck = Stuck(tracker, call, monkeypatch)
    tracker.log_trial(trials[1])
    tracker.log_trial(trials[2])
    assert stuck.entered.wait(60)
    tracker.finish(status)
    (line,) = caplog.messages
    assert "(up to 2 of 3 trials are missing): the same command completes it" in line
    stuck.may_return.set()
    tracker._thread.join(60)
    (parent,), children = runs(tmp_path, "mine")
    assert parent.info.status == "RUNNING" and {run.data.tags["trial"] for run in children} == {"0", "1"}
    study({n: trials[n] for n in range(3)})
    assert shown(tmp_path) == expected({n: trials[n] for n in range(3)}) and len(caplog.messages) == 1


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_wait_for_mlflow_is_shown_and_a_signal_ends_it(trials, tmp_path, monkeypatch, interrupted):
    shown_so_far = []

    class Watcher(ProgressReporter):
        @contextmanager
        def stage(self, label):
            def progress(done, total):
                shown_so_far.append((label, done, total))
                if interrupted:
                    raise KeyboardInterrupt
                stuck.may_return.set()

            yield progress

    monkeypatch.setattr(tracking, "POLL", 0.02)
    tracker = begun(tmp_path, {0: trials[0]})
    tracker._watcher = Watcher()
    stuck = Stuck(tracker, "log_batch", monkeypatch)
    tracker.log_trial(trials[1])
    tracker.log_trial(trials[2])
    assert stuck.entered.wait(60)
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        tracker.finish("FINISHED")
    stuck.may_return.set()
    tracker._thread.join(60)
    assert shown_so_far[0] == ("MLflow's record", 1, 3)
    assert runs(tmp_path, "mine")[0][0].info.status == ("RUNNING" if interrupted else "FINISHED")
    assert len(runs(tmp_path, "mine")[1]) == (2 if interrupted else 3)


def test_an_interrupted_study_writes_no_long_backlog(trials, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "BRIEFLY", 10.0)
    tracker = begun(tmp_path, {0: trials[0]})
    stuck = Stuck(tracker, "log_batch", monkeypatch)
    for number in (1, 2, 3):
        tracker.log_trial(trials[number])
    assert stuck.entered.wait(60)
    monkeypatch.setattr(tracker, "_answered", lambda *_: stuck.may_return.set() or tracker._thread.join(60) or True)
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=count(1e6, 11.0).__next__))
    tracker.finish("KILLED")
    assert runs(tmp_path, "mine")[0][0].info.status == "KILLED" and shown(tmp_path)[:2] == expected(trials)[:2]
    (line,) = caplog.messages
    assert "up to 2 of 4 trials are missing" in line and len(shown(tmp_path)) == 2


def test_only_what_our_own_thread_makes_mlflow_say_is_silenced():
    import mlflow  # noqa: F401 - it replaces the handlers of its loggers

    heard, said = logging.StreamHandler(StringIO()), logging.getLogger("mlflow.store.db.utils")
    logging.getLogger("mlflow").addHandler(heard)
    try:
        with silenced():
            said.error("ours")
            users = Thread(target=said.error, args=("the user's",))
            users.start()
            users.join()
            with silenced():
                said.error("ours")
            said.error("ours still")
        said.error("another")
    finally:
        logging.getLogger("mlflow").removeHandler(heard)
    assert heard.stream.getvalue() == "the user's\nanother\n"


def test_a_database_deleted_in_the_middle_is_written_anew(trials, tmp_path, monkeypatch):
    tracker = begun(tmp_path, {0: trials[0]})
    (tmp_path / "mlflow.db").unlink()
    tracker.log_trial(trials[1])
    tracker.wait()
    monkeypatch.setattr(tracker, "_due", 0.0)
    tracker.log_trial(trials[2])
    tracker.finish("FINISHED")
    assert shown(tmp_path) == expected({n: trials[n] for n in range(3)})


def test_a_broken_database_is_set_aside_and_the_record_is_whole_again(study, trials, logged, caplog):
    content = (logged / "mlflow.db").read_bytes()
    (logged / "mlflow.db").write_bytes(content[: len(content) // 2])
    study(trials)
    assert shown(logged) == expected(trials)
    (line,) = caplog.messages
    assert "mlflow.db.broken-1" in line and (logged / "mlflow.db.broken-1").stat().st_size == len(content) // 2


def test_reasons_and_settings_of_any_length_and_bytes_are_logged(study, trials, tmp_path, caplog):
    odd = replace(trials[3], result=TrialResult(FAILED, "no \udcff text\n" + "x" * 20_000))
    begun(tmp_path, {3: odd}, {"workload": "./" + "y" * 20_000 + ".py:f\udcff"}).finish("KILLED")
    before = run_of(tmp_path, 3).info.run_id
    study({3: odd})
    assert run_of(tmp_path, 3).info.run_id == before and not caplog.messages


def test_a_copied_study_has_its_own_record_and_a_renamed_one_takes_its_record_along(study, trials, tmp_path):
    for name in ("mine", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text("{}")
    study(trials)
    study(trials, name="copy")
    assert shown(tmp_path) == shown(tmp_path, "copy") == expected(trials)
    shutil.rmtree(tmp_path / "mine")
    shutil.move(tmp_path / "copy", tmp_path / "third")
    study(trials, name="third")
    assert shown(tmp_path, "third") == expected(trials)
    assert runs(tmp_path, "copy") == runs(tmp_path, "mine") == ([], [])


def test_a_metric_with_a_unit_is_logged_by_its_name_besides(trials, logged):
    """Runs that lack it, since they were logged before, are logged again."""
    unit = Metric("mAP@0.5", low=0, high=40)
    begun(logged, {**trials, 0: replace(trials[0], scores={"predicted": 0.75, "gain": 0.5})}, unit=unit)
    run, result = run_of(logged, 0), trials[0].result
    assert (run.data.metrics["guide_predicted"], run.data.metrics["guide_predicted_mAP_0_5"]) == (0.75, 30)
    assert run.data.metrics["mAP_0_5"] == pytest.approx(40 * result.accuracy)
    assert run.data.metrics["accuracy"] == result.accuracy
    history = client(logged).get_metric_history(run.info.run_id, "epoch_val_mAP_0_5")
    assert [point.value for point in history] == pytest.approx([40 * point.accuracy for point in result.curve])
    assert shown(logged) == expected(trials) and "mAP_0_5" not in run_of(logged, 3).data.metrics
    assert logged_values(unit, {"best_": 0.5, "best_test_": None}) == {"best_mAP_0_5": 20.0}
    assert logged_values(SHARE, {"best_": 0.5}) == {} and logged_name(Metric("accuracy", low=0, high=100)) == (
        "accuracy value"
    )


def test_the_ui_is_bound_to_this_machine(tmp_path):
    command = ui_command(tmp_path, 5123)
    assert command[:2] == ["mlflow", "ui"] and command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "00 fine-grained 12.5 % 90.1"),
        ({"bits": 4}, "00 fine-grained 12.5 % 4-bit 90.1"),
        ({"bits": {"conv0.weight": 8}}, "00 fine-grained 12.5 % mixed bits 90.1"),
        ({"granularity": "channel", "bits": 3}, "00 channel 12.5 % 3-bit 90.1"),
    ],
)
def test_a_trial_is_called_by_its_policy(trials, changes, name):
    policy = PruningPolicy(
        **({"sparsity": {"conv0.weight": 0.25}, "granularity": "fine-grained", "bits": 32} | changes)
    )
    shares = replace(trials[0].result.shares, encoded=0.1251)
    record = replace(trials[0], policy=policy, result=replace(trials[0].result, accuracy=0.9012, shares=shares))
    assert run_name(record, "encoded") == name
    assert run_name(record, "encoded", Metric("mAP", low=0, high=50)) == name.replace("90.1", "45.06")
    failed = replace(record, number=3000, target=0.375, result=TrialResult(FAILED, "diverged: loss is nan"))
    assert run_name(failed, "encoded") == name.replace("00 ", "3000 ").replace("12.5", "37.5").replace("90.1", "failed")


def test_a_page_of_mlflows_opens_at_what_a_person_looks_for(finished, tmp_path):
    """In the view for training runs, with columns and order; links are those that MLflow 3.17 was seen to follow."""
    root = shutil.copytree(finished.root, tmp_path, dirs_exist_ok=True)
    place, study_id = mlflow_place(root), json.loads((finished.path / "study.json").read_text())["study_id"]
    (parent,), children = runs(finished.root, "tiny")
    experiment, run = parent.info.experiment_id, parent.info.run_id
    page = study_page(place, study_id, b"<p>what to ship</p>")
    assert page == f"#/experiments/{experiment}/runs/{run}/artifacts/report.html?workflowType=machine_learning"
    found = client(root).download_artifacts(run, "report.html", str(tmp_path))
    assert Path(found).read_bytes() == b"<p>what to ship</p>"
    assert study_page(place, study_id) == f"#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"
    view = f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey=prunefront"
    assert study_page(place, None) == study_page(place, "no such id") == view
    tags = client(finished.root).get_experiment(experiment).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    columns = json.loads(tags["mlflow.sharedViewState.prunefront"])["selectedColumns"]
    shown = {name.split("`")[1] for name in columns if name.startswith("metrics")}
    assert shown == {"accuracy", "size", "macs", "latency_ms"}
    assert all(shown - {"latency_ms"} <= child.data.metrics.keys() for child in children)  # whose cost is MACs


def test_columns_of_an_earlier_version_give_way_and_others_stay(logged):
    reader, tag = client(logged), "mlflow.sharedViewState.prunefront"
    experiment = reader.get_experiment_by_name("prunefront")
    former = (
        '{"orderByKey": "metrics.`accuracy`", "orderByAsc": false, "selectedColumns": ["metrics.`accuracy`", '
        '"metrics.`size`", "metrics.`macs`", "params.`granularity`", "params.`bits`"], "runListHidden": false, '
        '"viewMaximized": true}'
    )
    for before, after in ((former, experiment.tags[tag]), ("{}", "{}")):
        reader.set_experiment_tag(experiment.experiment_id, tag, before)
        study_page(mlflow_place(logged), None)
        assert reader.get_experiment(experiment.experiment_id).tags[tag] == after
    assert "latency_ms" in experiment.tags[tag]


def test_predicted_latency_is_logged_in_milliseconds(trials, logged):
    """By hand: shares of 8 ms. Runs that lack it, since they were logged before, get it, and stay what they are."""
    records = {n: replace(trials[n], latency=share) for n, share in ((0, 0.375), (1, 0.25), (2, 0.5))}
    before = {run_of(logged, n).info.run_id for n in records}
    begin_and_end(logged, records, dense_milliseconds=8.0)
    reader = client(logged)
    found = reader.search_runs(
        [reader.get_experiment_by_name("prunefront").experiment_id], "tags.kind = 'trial'",
        order_by=["metrics.latency_ms ASC"],
    )  # fmt: skip
    assert [(run.data.tags["trial"], run.data.metrics["latency_ms"]) for run in found] == [
        ("1", 2.0), ("0", 3.0), ("2", 4.0)
    ]  # fmt: skip
    assert {run.info.run_id for run in found} == before
    assert logged_name(Metric("latency_ms", low=0, high=9)) == "latency_ms value"


def test_the_studys_own_run_tells_what_it_found_and_began_with(finished):
    (parent,), children = runs(finished.root, "tiny")
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("8 trials, ") and f"| {finished.reply['best']} | " in note
    command = f"prunefront export tiny --trial best --out DIR --root {finished.root.resolve()}"
    assert command in note.splitlines()
    identity = json.loads((finished.path / "study.json").read_text())["identity"]
    held = {one.dataset.name: json.loads(one.dataset.source)["fingerprint"] for one in parent.inputs.dataset_inputs}
    assert held == {part: found for part, found in identity.items() if part.endswith(" data") or part == "dense model"}
    names = {int(run.data.tags["trial"]): run.info.run_name for run in children}
    journal = {trial.number: trial for trial in Journal(finished.path / "journal").trials()}
    assert names == {number: run_name(trial, "encoded") for number, trial in journal.items()}
