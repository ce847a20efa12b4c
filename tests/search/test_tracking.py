"""MLflow's record of a study, read back by MLflow's own client."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from search.config import make_config
from search.console import Watcher
from search.journal import Journal
from search.run import run_search
from search.tracking import Tracker, store_uri, ui_command


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


def test_telemetry_is_off_before_mlflow_is_imported(tmp_path):
    code = (
        "import builtins, os, sys\n"
        "real, seen = builtins.__import__, []\n"
        "def spy(name, *rest, **more):\n"
        "    if name.split('.')[0] == 'mlflow' and not seen:\n"
        "        seen.append((os.environ.get('MLFLOW_DISABLE_TELEMETRY'), os.environ.get('DO_NOT_TRACK')))\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = spy\n"
        "import search.tracking, search.run, search.commands\n"
        "assert 'mlflow' not in sys.modules, 'imported too early'\n"
        "from pathlib import Path\n"
        f"search.tracking.open_store(Path({str(tmp_path)!r}))\n"
        "print(seen[0])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == "('true', 'true')", ended.stderr


def test_four_processes_may_make_the_store_at_once(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom search.tracking import open_store, EXPERIMENT\n"
        "print(open_store(Path(sys.argv[1])).get_experiment_by_name(EXPERIMENT).experiment_id)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "new")]
    begun = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ended = [process.communicate(timeout=180) for process in begun]
    assert [process.returncode for process in begun] == [0] * 4, ended
    assert len({out for out, _ in ended}) == 1


def quick(place: Path, root: Path, trials: int):
    options = {"workload": f"{place / 'tiny.py'}:tiny", "root": str(root), "max_size": 0.5, "finalists": 0}
    return run_search(make_config(trials=trials, seeds=False, **options), Watcher())


def test_a_broken_store_costs_a_warning_and_a_lost_one_is_rebuilt(place, tmp_path, caplog):
    """The second root is a copy, since MLflow keeps what it once opened for as long as the process lives."""
    broken, root = tmp_path / "broken", tmp_path / "mlruns"
    broken.mkdir()
    (broken / "mlflow.db").write_bytes(b"no database at all" * 100)
    with caplog.at_level(logging.WARNING):
        assert quick(place, broken, 2).counts["complete"] == 2
    assert any("MLflow could not be written" in line for line in caplog.messages)
    shutil.copytree(broken, root, ignore=shutil.ignore_patterns("mlflow.*"))
    caplog.clear()
    assert quick(place, root, 3).counts["complete"] == 3
    assert not caplog.messages
    parents, children = runs(root, "tiny")
    assert len(parents) == 1 and sorted(int(run.data.tags["trial"]) for run in children) == [0, 1, 2]
    _half_written_run_is_replaced(place, root, parents[0].info.run_id, children)


def _half_written_run_is_replaced(place: Path, root: Path, parent: str, children: list) -> None:
    """A kill in the middle of logging leaves a run RUNNING, without its metrics."""
    reader = client(root)
    lost = next(run for run in children if run.data.tags["trial"] == "1")
    reader.delete_run(lost.info.run_id)
    tags = {**lost.data.tags, "mlflow.parentRunId": parent}
    half = reader.create_run(lost.info.experiment_id, tags=tags)
    quick(place, root, 3)
    _, after = runs(root, "tiny")
    assert sorted(int(run.data.tags["trial"]) for run in after) == [0, 1, 2]
    again = next(run for run in after if run.data.tags["trial"] == "1")
    assert again.info.run_id != half.info.run_id and again.info.status == "FINISHED"
    assert again.data.metrics["accuracy"] == lost.data.metrics["accuracy"]


def test_logging_a_trial_twice_makes_one_run(finished, tmp_path):
    (trial,) = [t for t in Journal(finished.path / "journal").trials() if t.number == 3]
    shutil.copy(finished.root / "mlflow.db", tmp_path / "mlflow.db")
    for _ in range(2):
        tracker = Tracker(tmp_path, "twice", "id-of-twice", lambda seconds: 1e9 + seconds)
        tracker.start({})
        tracker.log_trial(trial)
        tracker.log_trial(trial)
        tracker.finish("FINISHED")
    parents, children = runs(tmp_path, "twice")
    assert (len(parents), len(children)) == (1, 1)


def test_the_ui_is_bound_to_this_machine(tmp_path):
    command = ui_command(tmp_path, 5123)
    assert command[:2] == ["mlflow", "ui"] and command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--backend-store-uri") + 1] == store_uri(tmp_path)
