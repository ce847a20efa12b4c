"""Records of a study on servers that others share: real ones, which are killed and come back."""

from __future__ import annotations

import json
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from servers import MlflowProcess, PostgresCluster, free_port, postgres_programs
from worker_processes import wait_until

from search.config import make_config, storage_url
from search.errors import EnvironmentProblem, UsageError
from search.progress import ProgressReporter
from search.proposals.optuna_study import Objectives
from search.records import COMPLETE, FAILED, TrialRecord, TrialResult
from search.run import run_search
from search.store import tracker as tracking
from search.store.journal import Journal
from search.store.mlflow_place import TRACKING, mlflow_place, server_named, unused_place
from search.store.mlflow_record import LoggedStudy, MlflowRecord
from search.store.mlflow_server import EXPERIMENT_NAMED, MlflowServer
from search.store.mlflow_store import RootStore
from search.store.optuna_file import Translation
from search.store.optuna_server import OWNER, STATUS, OptunaServer, require_storage
from search.store.system_metrics import INTERVAL
from search.store.tracker import Tracker
from search.study.runner import StudyRunner

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'prunefront[postgresql]'")
NEEDS_POSTGRES = pytest.mark.skipif(
    postgres_programs() is None, reason="PostgreSQL's server is not installed: apt-get install postgresql"
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresCluster]:
    cluster = PostgresCluster()
    yield cluster
    cluster.remove()


@pytest.fixture
def url(postgres, monkeypatch) -> str:
    """Of an empty database, whose password is in the environment."""
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    postgres.query("DROP DATABASE IF EXISTS studies WITH (FORCE)", "CREATE DATABASE studies OWNER ann")
    return storage_url(postgres.url)


@pytest.fixture(scope="module")
def trials(finished) -> dict[int, TrialRecord]:
    """Three trials with all they hold, and one that failed."""
    found = {trial.number: trial for trial in Journal(finished.path / "journal").trials()[:4]}
    return found | {3: replace(found[3], result=TrialResult(FAILED, "diverged: loss is nan"))}


@pytest.fixture(scope="module")
def translation(finished) -> Translation:
    """How the finished study's trials are written in Optuna's words."""
    found = []

    class Enough(Exception): ...

    def kept(self, study_id, translation):
        found.append(translation)
        raise Enough

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(StudyRunner, "_projections", kept)
        run_search(make_config(study="tiny", root=str(finished.root)))
    return found[0]


def stored(url: str, study: str = "mine") -> dict[int, tuple]:
    """State and values of every trial that Optuna finds there, by number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metric names are experimental
        found = optuna.load_study(study_name=study, storage=url.replace("{", "%7B"))
        assert found.metric_names == list(Objectives("encoded", "macs").names)
    return {trial.number: (trial.state.name, trial.values) for trial in found.trials}


def wanted(records: dict[int, TrialRecord]) -> dict[int, tuple]:
    """The same by the journal."""
    return {
        number: ("FAIL", None) if record.result.state == FAILED else (
            "COMPLETE",
            [record.result.accuracy, record.result.shares.encoded, record.result.shares.macs],
        )
        for number, record in records.items()
    }  # fmt: skip


def begun(url: str, translation: Translation, records: dict[int, TrialRecord], study_id: str = "id") -> Tracker:
    tracker = Tracker(OptunaServer(url, "mine", study_id, translation))
    tracker.start({}, records)
    return tracker


@NEEDS_POSTGRES
def test_trials_are_there_for_optunas_own_tools_in_any_order(url, translation, trials):
    tracker = begun(url, translation, {0: trials[0]})
    for number in (2, 3, 1):
        tracker.log_trial(trials[number])
        tracker.wait()
        there = {0: (0,), 2: (0,), 3: (0,), 1: (0, 1, 2, 3)}[number]
        assert stored(url) == wanted({n: trials[n] for n in there}) if number != 2 else True
    tracker.finish("FINISHED")
    assert stored(url) == wanted(trials)
    attributes = optuna.load_study(study_name="mine", storage=url).user_attrs
    assert attributes == {OWNER: "id", STATUS: "FINISHED"}


@NEEDS_POSTGRES
def test_a_server_that_restarts_gets_what_it_missed(url, postgres, translation, trials, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "FIRST_PAUSE", 0.05)
    tracker = begun(url, translation, {0: trials[0]})
    before = random.getstate()
    postgres.stop()
    try:
        tracker.log_trial(trials[1])
        tracker.log_trial(trials[2])
        tracker.wait()
        (line,) = caplog.messages
        assert line.startswith("PostgreSQL could not be written, the study goes on without it and tries again: cannot")
        assert postgres.password not in line
        assert random.getstate() == before  # the code of users may draw from it at the same time
    finally:
        postgres.start()
    tracker.log_trial(trials[3])
    tracker.finish("FINISHED")
    assert stored(url) == wanted(trials)
    assert len(caplog.messages) <= 2  # that it is written again, unless the study ended first


@NEEDS_POSTGRES
def test_a_connection_that_was_cut_costs_nothing_and_doubles_nothing(url, postgres, translation, trials, caplog):
    tracker = begun(url, translation, {0: trials[0]})
    for number in (1, 2, 3):
        postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'studies'")
        tracker.log_trial(trials[number])
        tracker.wait()
    tracker.finish("FINISHED")
    assert stored(url) == wanted(trials) and caplog.messages == []


@NEEDS_POSTGRES
def test_a_trial_whose_writing_was_not_confirmed_is_there_once(url, translation, trials, monkeypatch, caplog):
    tracker = begun(url, translation, {0: trials[0]})
    commit, cut = psycopg.Connection.commit, []

    def unconfirmed(connection):
        commit(connection)
        if not cut:
            cut.append(connection.close())
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(psycopg.Connection, "commit", unconfirmed)
    tracker.log_trial(trials[1])
    tracker.wait()
    monkeypatch.undo()
    monkeypatch.setenv("PGPASSWORD", PostgresCluster.password)
    for number in (2, 3):
        tracker.log_trial(trials[number])
    tracker.finish("FINISHED")
    assert cut and stored(url) == wanted(trials)


@NEEDS_POSTGRES
def test_what_an_interrupted_study_held_back_is_there_after_the_next(url, translation, trials, monkeypatch):
    monkeypatch.setattr(tracking, "BRIEFLY", 60.0)
    tracker = begun(url, translation, {0: trials[0], 2: trials[2]})
    tracker.finish("KILLED")
    assert stored(url) == wanted({0: trials[0]})
    begun(url, translation, trials).finish("FINISHED")
    assert stored(url) == wanted(trials)


@NEEDS_POSTGRES
def test_what_contradicts_the_journal_is_written_anew(url, translation, trials):
    begun(url, translation, trials).finish("FINISHED")
    other = replace(trials[1], result=replace(trials[1].result, accuracy=0.25))
    begun(url, translation, trials | {1: other}).finish("FINISHED")
    assert stored(url) == wanted(trials | {1: other})


@NEEDS_POSTGRES
def test_a_study_of_the_same_name_that_is_anothers_is_left_alone(url, translation, trials, caplog):
    begun(url, translation, trials).finish("FINISHED")
    require_storage(url, "mine", "id")
    with pytest.raises(UsageError, match="has a study 'mine' that is another one: choose another --study"):
        require_storage(url, "mine", "another")
    with pytest.raises(UsageError):
        require_storage(url, "mine", None)
    begun(url, translation, {0: trials[0]}, study_id="another").finish("FAILED")
    assert stored(url) == wanted(trials)
    assert "has a study 'mine' that is another one" in caplog.messages[0]


@NEEDS_POSTGRES
def test_four_studies_may_make_the_tables_at_once(url):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: require_storage(url, f"study-{n}", None), range(4))) == [None] * 4


@NEEDS_POSTGRES
def test_what_a_server_refuses_is_told_before_any_training(main, url, postgres, monkeypatch, tmp_path):
    words = ["search", "--workload", "./tiny.py:tiny", "--root", tmp_path, "--optuna-storage"]
    inside = url.replace("ann@", f"ann:{quote(postgres.password, safe='')}@")
    wrong = inside.replace(":s3", ":t4")
    away = wrong.replace(wrong.rpartition(":")[2], f"{free_port()}/studies")
    for given, said in (
        (wrong, "password authentication failed"),
        (inside.replace("/studies", "/nothing"), "make it (createdb), or correct --optuna-storage"),
        (away, "start it, or correct --optuna-storage"),
    ):
        monkeypatch.delenv("PGPASSWORD", raising=False)
        ended = main(*words, given, "--json")
        assert ended.code == 3 and said in ended.err, ended.err
        assert "ann:***@" in ended.err and "cr%40t" not in ended.err + ended.out and postgres.password not in ended.err
    assert [*tmp_path.iterdir()] == []


@NEEDS_POSTGRES
def test_tables_of_another_optuna_are_told(url, postgres):
    require_storage(url, "mine", None)
    postgres.query("UPDATE alembic_version SET version_num = 'v2.6.0.a'", database="studies")
    with pytest.raises(EnvironmentProblem, match="run `optuna storage upgrade --storage URL`"):
        require_storage(url, "mine", None)


@pytest.mark.parametrize(
    "given",
    [
        "mysql://ann:s3cret@db/studies", "postgresql+psycopg2://ann:s3cret@db/s", "postgresql:/ann:s3cret@db/s", "",
        "postgresql://ann:s3cret@db:port/s", "sqlite:///study.db", "ann:s3cret@db",
    ],
)  # fmt: skip
def test_other_addresses_of_databases_are_refused_without_a_secret(main, given, tmp_path):
    ended = main("search", "--root", tmp_path, "--optuna-storage", given)
    assert ended.code == 2 and "optuna-storage must be postgresql+psycopg://HOST:PORT/DATABASE, got " in ended.err
    assert "s3cret" not in ended.err
    assert [*tmp_path.iterdir()] == []


def test_an_address_is_kept_nowhere(tmp_path):
    config = make_config(workload="digits", root=str(tmp_path), optuna_storage="postgres://ann:s3cret@db/studies")
    assert config.optuna_storage == "postgresql+psycopg://ann:s3cret@db/studies"
    assert "s3cret" not in repr(config) + str(config) + json.dumps(config.stored())


def test_a_driver_that_is_not_installed_is_told(monkeypatch):
    def lacking(*_, **__):
        raise ModuleNotFoundError("No module named 'psycopg'")

    monkeypatch.setattr("search.store.optuna_server.sqlalchemy.create_engine", lacking)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'prunefront\[postgresql\]'"):
        require_storage("postgresql+psycopg://db/studies", "mine", None)


@pytest.fixture
def no_server(monkeypatch) -> str:
    """The address, with a password, of an MLflow server that does not run."""
    uri = f"http://ann:s3cret@127.0.0.1:{free_port()}"
    monkeypatch.setenv(TRACKING, f"{uri}/")
    for variable in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    return uri


def test_the_environment_names_the_place_of_mlflows_record(no_server, monkeypatch, tmp_path):
    assert server_named() == no_server and isinstance(mlflow_place(tmp_path), MlflowServer)
    assert unused_place() is None
    others = "sqlite:////elsewhere/mlflow.db", "postgresql://ann:s3cret@db/mlflow", "s3cret@db", "databricks", "mlruns"
    for other in ("", *others):
        monkeypatch.setenv(TRACKING, other)
        assert server_named() is None and isinstance(mlflow_place(tmp_path), RootStore)
        said = unused_place()
        assert (said is None) == (not other) and "s3cret" not in str(said)


@pytest.mark.parametrize("address", ["http://", "https:/host", "http://host:port", "http://:5000", "http:host"])
def test_an_address_of_mlflow_that_is_none_is_refused_before_anything_is_computed(main, monkeypatch, tmp_path, address):
    monkeypatch.setenv(TRACKING, address)
    ended = main("search", "--workload", "./tiny.py:tiny", "--root", tmp_path)
    assert ended.code == 2 and f"must be http://HOST:PORT or https://HOST:PORT, got {address!r}" in ended.err
    assert main("view", "--root", tmp_path).code == 2
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "named", ["http:s3cret@host", "https:/s3cret@host", "http://s3cret@host:port", "http://s3cret@"]
)
def test_a_token_alone_is_shown_nowhere(main, monkeypatch, tmp_path, named):
    monkeypatch.setenv(TRACKING, named)
    ended = main("view", "--root", tmp_path, "--json")
    assert ended.code == 2 and "***@" in ended.out and "s3cret" not in ended.out + ended.err


def test_a_token_alone_is_masked_where_a_server_is_named(main, monkeypatch, tmp_path):
    monkeypatch.setenv(TRACKING, f"http://s3cret@127.0.0.1:{free_port()}")
    for words in (("view", "--root", tmp_path, "--json"), ("doctor", "--root", tmp_path)):
        ended = main(*words)
        assert "http://***@127.0.0.1:" in ended.out and "s3cret" not in ended.out + ended.err


def test_view_names_a_server_that_is_not_ours(main, no_server, tmp_path):
    ended = main("view", "--root", tmp_path, "--json")
    said = f"cannot use {no_server.replace('s3cret', '***')!r} (Connection refused)"
    assert ended.code == 3 and json.loads(ended.out)["error"].startswith(said) and not [*tmp_path.iterdir()]


def test_an_mlflow_server_that_is_not_there_costs_a_line(no_server, trials, tmp_path, caplog):
    random.seed(7)
    before = random.getstate()
    tracker = Tracker(MlflowRecord(LoggedStudy(tmp_path, "mine", "id", float), mlflow_place(tmp_path)))
    tracker.start({}, {0: trials[0]})
    tracker.log_trial(trials[1])
    tracker.finish("FINISHED")
    assert random.getstate() == before  # the code of users may draw from it at the same time
    first, last = caplog.messages
    address = no_server.replace("s3cret", "***")
    assert first == (
        "MLflow could not be written, the study goes on without it and tries again: cannot use "
        f"{address!r} (Connection refused): start it, or correct MLFLOW_TRACKING_URI"
    )
    assert last.startswith("MLflow's record of this study is not complete (up to 2 of 2 trials are missing)")
    assert [*tmp_path.iterdir()] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[MlflowProcess]:
    process = MlflowProcess(tmp_path_factory.mktemp("server"))
    process.start()
    yield process
    process.kill()


def children_of(server: MlflowProcess, experiment: str, study: str) -> dict[int, tuple]:
    """Of every child run, by trial: status, accuracy and the names of its files."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    place = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([place], f"tags.study = '{study}'", max_results=1000)
    (parent,) = (run for run in runs if run.data.tags["kind"] == "study")
    used = client.get_metric_history(parent.info.run_id, "system/cpu_utilization_percentage")
    assert [point.step for point in used] == [*range(len(used))] and (used or find_spec("psutil") is None)
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
    assert len({run.data.tags["trial"] for run in children}) == len(children), "no trial twice"
    assert parent.info.status == "FINISHED"
    return {
        int(run.data.tags["trial"]): (
            run.info.status,
            run.data.metrics.get("accuracy"),
            {file.path for file in client.list_artifacts(run.info.run_id)},
        )
        for run in children
    }


@pytest.mark.slow
def test_a_deleted_experiment_of_others_is_not_restored(server, trials, monkeypatch, tmp_path, caplog):
    from mlflow import MlflowClient

    monkeypatch.setenv(TRACKING, server.uri)
    monkeypatch.setenv(EXPERIMENT_NAMED, "ours")
    client = MlflowClient(tracking_uri=server.uri)
    client.delete_experiment(client.create_experiment("ours"))
    tracker = Tracker(MlflowRecord(LoggedStudy(tmp_path, "mine", "id", float), mlflow_place(tmp_path)))
    tracker.start({}, {0: trials[0]})
    tracker.finish("FAILED")
    assert "experiment 'ours' of" in caplog.messages[0] and "is deleted: restore it (mlflow" in caplog.messages[0]
    assert client.get_experiment_by_name("ours").lifecycle_stage == "deleted"


class Outage(ProgressReporter):
    """Ends both servers after the second trial, and begins them again after the fifth, once both were missed."""

    def __init__(self, server: MlflowProcess, postgres: PostgresCluster, missed: Callable[[], set[str]]) -> None:
        self._servers, self._missed, self.trials = (server, postgres), missed, 0

    def headline(self, text: str) -> None:
        self.trials += 1
        if self.trials == 2:
            self._servers[0].kill()
            self._servers[1].stop()
        if self.trials == 5:
            assert wait_until(lambda: len(self._missed()) == 2)
            for one in self._servers:
                one.start()


@pytest.mark.slow
@NEEDS_POSTGRES
def test_a_study_goes_on_while_its_servers_are_away(server, postgres, url, place, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "FIRST_PAUSE", 0.2)
    monkeypatch.setenv(TRACKING, server.uri)
    monkeypatch.setenv(EXPERIMENT_NAMED, "shared")
    monkeypatch.setenv(INTERVAL, "0.2")
    caplog.set_level(logging.WARNING)

    def missed() -> set[str]:
        return {line.partition(" could not be written")[0] for line in caplog.messages if "could not be" in line}

    outage = Outage(server, postgres, missed)
    config = make_config(
        workload=f"{place / 'tiny.py'}:tiny", root=str(tmp_path), study="mine", max_size=0.5, trials=7, finalists=0,
        cost="macs",
        optuna_storage=url, system_metrics=find_spec("psutil") is not None,
    )  # fmt: skip
    run_search(config, outage)
    assert outage.trials == 7
    journal = {trial.number: trial for trial in Journal(tmp_path / "mine" / "journal").trials()}
    assert len(journal) == 7 and all(record.result.state == COMPLETE for record in journal.values())
    files = {"sparsity.json", "sampled.json", "policy.json"}
    assert children_of(server, "shared", "mine") == {
        number: ("FINISHED", record.result.accuracy, files) for number, record in journal.items()
    }
    assert stored(url) == wanted(journal)
    assert missed() == {"MLflow", "PostgreSQL"}
    assert not (tmp_path / "mlflow.db").exists()
    secret = postgres.password.encode()
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file() and secret in path.read_bytes()]
