"""MLflow's database: made whole or not at all, checked, mended, set aside, and found again after a move."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from search import storage
from search.cli.mlflow_ui import ui_command
from search.config import check_study_name
from search.errors import EnvironmentProblem
from search.proposals.optuna_study import Objectives
from search.store import mlflow_store
from search.store.mlflow_store import artifacts_uri, open_store, store_uri
from search.store.optuna_file import Translation, projection_in_file

ODD = ["we?ird ha#sh", "per%20cent ünï-日本", "semi;colon quo'te\"s", "br{ace} a&b=c@d:e", "back\\s"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A root with a store, and one run with a file in it, to be copied."""
    root = tmp_path_factory.mktemp("made") / "root"
    log_a_run(root)
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "root"))


def log_a_run(root: Path) -> str:
    client = open_store(root)
    experiment = client.get_experiment_by_name("prunefront").experiment_id
    run = client.create_run(experiment, tags={"kind": "study"}).info.run_id
    client.log_text(run, "here", "note.txt")
    return run


def runs(root: Path) -> list:
    from mlflow import MlflowClient

    reader = MlflowClient(tracking_uri=store_uri(root))
    found = reader.search_runs([reader.get_experiment_by_name("prunefront").experiment_id])
    for run in found:
        assert [file.path for file in reader.list_artifacts(run.info.run_id)] == ["note.txt"]
    return found


def change(root: Path, *statements: str) -> None:
    with closing(sqlite3.connect(root / "mlflow.db")) as store, store:
        for statement in statements:
            store.execute(statement)


def test_a_store_is_found_again_as_it_was(root, caplog):
    before = (root / "mlflow.db").read_bytes()
    open_store(root)
    assert len(runs(root)) == 1 and not caplog.messages
    assert sorted(path.name for path in root.iterdir()) == ["artifacts", "mlflow.db", "mlflow.lock"]
    open_store(root)
    after = (root / "mlflow.db").read_bytes()
    open_store(root)
    assert (root / "mlflow.db").read_bytes() == after and len(before) == len(after)


def test_an_interruption_while_it_is_made_leaves_nothing(tmp_path, monkeypatch):
    for place, end in (("_in_memory", KeyboardInterrupt), ("write_durably", SystemExit)):
        mlflow_store._empty_database.cache_clear()
        with monkeypatch.context() as interrupted:

            def raise_it(*_, end=end):
                raise end

            interrupted.setattr(mlflow_store, place, raise_it)
            with pytest.raises(end):
                open_store(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mlflow.lock"]
    assert open_store(tmp_path).get_experiment_by_name("prunefront") is not None


def _no_database(root):
    (root / "mlflow.db").write_bytes(b"no database at all " * 100)


def _another_programs(root):
    (root / "mlflow.db").unlink()
    change(root, "CREATE TABLE bookmarks (url)")


def _cut(root):
    content = (root / "mlflow.db").read_bytes()
    (root / "mlflow.db").write_bytes(content[: len(content) // 3])


def _overwritten(root):
    with (root / "mlflow.db").open("r+b") as file:
        file.seek(8 * 4096)
        file.write(os.urandom(100 * 4096))


def _without_a_table(root):
    change(root, "DROP TABLE latest_metrics")


def _without_a_column(root):
    change(root, "ALTER TABLE runs DROP COLUMN source_version")


def _without_a_version(root):
    change(root, "DELETE FROM alembic_version")


def _with_two_versions(root):
    change(root, "INSERT INTO alembic_version VALUES ('0123456789ab')")


def _half_made(root):
    """As an interruption left it: the next step finds its table there already."""
    from alembic.script import ScriptDirectory
    from mlflow import __file__ as place

    scripts = ScriptDirectory(str(Path(place).parent / "store" / "db_migrations"))
    change(root, f"UPDATE alembic_version SET version_num = '{list(scripts.walk_revisions())[30].revision}'")


def _a_folder(root):
    (root / "mlflow.db").unlink()
    (root / "mlflow.db").mkdir()


def _a_pipe(root):
    (root / "mlflow.db").unlink()
    os.mkfifo(root / "mlflow.db")


def _a_link_to_nowhere(root):
    (root / "mlflow.db").unlink()
    (root / "mlflow.db").symlink_to("/nowhere/at/all")


BROKEN = [
    _no_database, _another_programs, _cut, _overwritten, _without_a_table, _without_a_column, _without_a_version,
    _with_two_versions, _half_made, _a_folder, _a_pipe, _a_link_to_nowhere,
]  # fmt: skip


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_database_is_kept_aside_and_said_in_one_line(root, caplog, damage):
    (root / "fine").mkdir()
    (root / "fine" / "study.json").write_text("{}")
    damage(root)
    (root / "mlflow.db-journal").write_bytes(b"of the broken one")
    kept = os.lstat(root / "mlflow.db")
    open_store(root)
    assert runs(root) == []
    assert os.path.samestat(os.lstat(root / "mlflow.db.broken-1"), kept)
    assert not (root / "mlflow.db-journal").exists()
    (line,) = caplog.messages
    assert "kept as mlflow.db.broken-1" in line and line.endswith("when that study is next started: fine")
    assert "\n" not in line
    open_store(root)
    assert len(caplog.messages) == 1


def test_each_broken_one_has_a_name_of_its_own(root):
    for number in (1, 2, 3):
        _no_database(root)
        open_store(root)
        assert (root / f"mlflow.db.broken-{number}").is_file()


def test_an_empty_file_and_a_journal_without_its_database_make_way(tmp_path, caplog):
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "mlflow.db-journal").write_bytes(b"\xd9\xd5\x05\xf9 of a database that was deleted")
    log_a_run(tmp_path)
    assert len(runs(tmp_path)) == 1 and not caplog.messages
    assert not list(tmp_path.glob("*broken*"))


def test_a_link_to_somebodys_file_leaves_that_as_it_is(tmp_path, caplog):
    (tmp_path / "thesis.txt").write_text("two years of work")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mlflow.db").symlink_to(tmp_path / "thesis.txt")
    log_a_run(tmp_path / "root")
    assert (tmp_path / "thesis.txt").read_text() == "two years of work" and len(runs(tmp_path / "root")) == 1


@pytest.mark.slow
def test_a_database_of_an_older_mlflow_is_brought_up_to_date_with_all_it_holds(root, caplog):
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from mlflow import __file__ as place
    from mlflow.store.db.utils import create_sqlalchemy_engine
    from mlflow.store.tracking.dbmodels.initial_models import Base

    scripts = Path(place).parent / "store" / "db_migrations"
    old = list(ScriptDirectory(str(scripts)).walk_revisions())[4].revision
    (root / "mlflow.db").unlink()
    engine = create_sqlalchemy_engine(f"sqlite:///{root / 'mlflow.db'}")
    Base.metadata.create_all(engine)
    config = Config(scripts / "alembic.ini")
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("sqlalchemy.url", str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, old)
    engine.dispose()
    change(root, "INSERT INTO experiments (name, artifact_location, lifecycle_stage) VALUES ('theirs', '/x', 'active')")
    client = open_store(root)
    assert client.get_experiment_by_name("theirs").artifact_location == "/x"
    assert not caplog.messages and not list(root.glob("*broken*"))


def test_a_database_of_a_newer_mlflow_is_left_alone(root):
    change(root, "UPDATE alembic_version SET version_num = 'f00dfeed0000'", "CREATE TABLE of_tomorrow (a)")
    before = (root / "mlflow.db").read_bytes()
    with pytest.raises(EnvironmentProblem, match=r"newer MLflow .*f00dfeed0000.*move mlflow\.db away"):
        open_store(root)
    assert (root / "mlflow.db").read_bytes() == before and not list(root.glob("*broken*"))


def test_a_locked_database_is_not_a_broken_one(root, monkeypatch):
    monkeypatch.setattr(storage, "TIMEOUT", 0.05)
    with closing(sqlite3.connect(root / "mlflow.db")) as viewer:
        viewer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(EnvironmentProblem, match=r"another program has it locked.*close that program"):
            open_store(root)
    open_store(root)
    assert not list(root.glob("*broken*")) and len(runs(root)) == 1


def test_a_full_disk_leaves_no_half_of_it(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as filled:
        filled.setattr(os, "fsync", full)
        with pytest.raises(EnvironmentProblem, match=r"mlflow\.db.*No space left on device.*free space"):
            open_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.lock"]
    log_a_run(tmp_path)
    assert len(runs(tmp_path)) == 1


def test_what_a_killed_process_was_writing_is_removed(root):
    left = root / ".mlflow.db.999999999.0123abcd.tmp"
    left.write_bytes(b"half")
    open_store(root)
    assert not left.exists()


@pytest.mark.parametrize("how", ["moved", "copied", "linked", "relative"])
def test_a_root_in_another_place_finds_its_files_and_writes_new_ones_there(root, tmp_path, monkeypatch, how):
    new = tmp_path / "else where" / "new"
    new.parent.mkdir()
    if how == "moved":
        root.rename(new)
    elif how == "copied":
        shutil.copytree(root, new)
        shutil.rmtree(root / "artifacts")
    elif how == "linked":
        root.rename(tmp_path / "target")
        new.symlink_to(tmp_path / "target")
    else:
        root.rename(new)
        monkeypatch.chdir(new.parent)
        new = Path("new")
    log_a_run(new)
    assert len(runs(new)) == 2
    assert not (root / "artifacts").exists()
    here = new.resolve()
    with closing(sqlite3.connect(here / "mlflow.db")) as store:
        places = store.execute("SELECT artifact_uri FROM runs UNION SELECT artifact_location FROM experiments")
        assert all(place.startswith(f"{here.as_uri()}/artifacts") for (place,) in places)


def test_experiments_of_others_move_along_and_those_elsewhere_stay(root, tmp_path):
    client = open_store(root)
    inside = client.create_experiment("inside", artifact_location=artifacts_uri(root) + "/inside")
    outside = client.create_experiment("outside", artifact_location="/data/outside")
    run = client.create_run(inside).info.run_id
    root.rename(tmp_path / "new")
    client = open_store(tmp_path / "new")
    here = (tmp_path / "new").as_uri() + "/artifacts"
    assert client.get_experiment(inside).artifact_location == f"{here}/inside"
    assert client.get_run(run).info.artifact_uri == f"{here}/inside/{run}/artifacts"
    assert client.get_experiment(outside).artifact_location == "/data/outside"


@pytest.mark.parametrize("name", ODD)
def test_databases_lie_in_roots_of_any_name(made, tmp_path, name):
    root = tmp_path / name / "runs"
    shutil.copytree(made, root)
    run = log_a_run(root)
    assert len(runs(root)) == 2
    assert (root / "artifacts" / run / "artifacts" / "note.txt").read_text() == "here"
    (root / "tiny").mkdir()
    own = Translation((), Objectives(), float)
    assert projection_in_file(root / "tiny" / "study.db", "tiny", own, {}).trials() == []
    assert (root / "tiny" / "study.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name] and [p.name for p in (tmp_path / name).iterdir()] == [
        "runs"
    ]
    command = ui_command(root)
    assert shlex.split(shlex.join(command)) == command
    uri = command[command.index("--backend-store-uri") + 1]
    assert uri == store_uri(root) and "?" not in uri and "#" not in uri
    place = command[command.index("--default-artifact-root") + 1]
    from mlflow.utils.file_utils import local_file_uri_to_path

    assert local_file_uri_to_path(place) == str(root / "artifacts")


def test_a_root_too_deep_for_sqlite_is_refused_in_one_line(tmp_path):
    deep = tmp_path / "/".join("x" * 80 for _ in range(6))
    with pytest.raises(EnvironmentProblem, match=r"SQLite opens at most 504: choose a shorter --root"):
        open_store(deep)


@pytest.mark.parametrize(
    "name", ["mlflow.db-journal", "mlflow.db-wal", "mlflow.db.broken-1", "mlflow.lock", "mlflow.db", "cache"]
)
def test_no_study_takes_a_name_of_the_store(name):
    with pytest.raises(ValueError, match="study name"):
        check_study_name(name)


@pytest.mark.parametrize("name", ["mlflow", "mlflow.1", "artifacts2"])
def test_names_like_the_stores_are_free(name):
    assert check_study_name(name) == name
