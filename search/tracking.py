"""MLflow's record of a study: a projection of the journal that can be rebuilt at any time.

One parent run a study, one child run a finished trial, written only by the coordinator, in one batch each.
A store that fails costs a warning, never a trial; the next start of the study logs what is missing.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from search.errors import EnvironmentProblem
from search.interrupts import check
from search.locks import held_lock
from search.records import COMPLETE, TrialRecord

EXPERIMENT = "prunefront"
DATABASE, ARTIFACTS = "mlflow.db", "artifacts"
BATCH_METRICS = 1000
"""MLflow's limit of metrics a batch."""
SECONDS_TO_END = 10
"""What a server asked to end may take before it is killed."""
log = logging.getLogger(__name__)


def store_uri(root: Path) -> str:
    """The tracking URI of the store under a root folder."""
    return f"sqlite:///{(root / DATABASE).resolve()}"


def ui_command(root: Path, port: int = 5000) -> list[str]:
    """MLflow's own command for its UI on the store of `root`, on this machine only."""
    return [
        "mlflow", "ui", "--backend-store-uri", store_uri(root),
        "--default-artifact-root", str((root / ARTIFACTS).resolve()), "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip


def open_store(root: Path) -> Any:
    """An `MlflowClient` on the store of `root`, its database made under a lock if it is not there.

    Telemetry is switched off before MLflow is imported.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)

    root.mkdir(parents=True, exist_ok=True)
    with held_lock(root / "mlflow.lock", wait=True):
        client = MlflowClient(tracking_uri=store_uri(root))
        if client.get_experiment_by_name(EXPERIMENT) is None:
            client.create_experiment(EXPERIMENT, artifact_location=(root / ARTIFACTS).resolve().as_uri())
    return client


class Tracker:
    """Writes one study to MLflow.

    Attributes:
        parent: id of the study's parent run; None while the store cannot be used.
    """

    def __init__(self, root: Path, study: str, study_id: str, epoch_of_start: Callable[[float], float]) -> None:
        """`epoch_of_start` turns running seconds of the study into a UNIX time for MLflow's run times."""
        self._study, self._study_id, self._to_time = study, study_id, epoch_of_start
        self._logged: set[int] = set()
        self._client = self.parent = None
        self._warned = False
        with self._forgiven():
            self._client = open_store(root)
            self._experiment = self._client.get_experiment_by_name(EXPERIMENT).experiment_id
            self.parent = self._find_or_create_parent()
            self._logged = self._complete_children()

    def start(self, params: Mapping[str, Any]) -> None:
        """Mark the parent run as running, with the study's settings."""
        from mlflow.entities import Param

        with self._forgiven():
            self._client.update_run(self.parent, status="RUNNING")
            known = self._client.get_run(self.parent).data.params
            fresh = [Param(k, str(v)) for k, v in params.items() if k not in known]
            self._client.log_batch(self.parent, params=fresh)

    def log_trial(self, record: TrialRecord) -> None:
        """One child run for a finished trial; a trial already there is left alone."""
        if record.number in self._logged:
            return
        with self._forgiven():
            self._create_child(record)
            self._logged.add(record.number)

    def log_summary(self, metrics: Mapping[str, float], files: Mapping[str, bytes]) -> None:
        """Metrics and files (name -> content) on the parent run."""
        from mlflow.entities import Metric

        with self._forgiven():
            now = _milliseconds(time.time())
            self._client.log_batch(self.parent, metrics=[Metric(k, float(v), now, 0) for k, v in metrics.items()])
            self._log_files(self.parent, files)

    def finish(self, status: str) -> None:
        """Close the parent run as `FINISHED`, `KILLED` or `FAILED`."""
        with self._forgiven():
            self._client.set_terminated(self.parent, status=status)

    def _find_or_create_parent(self) -> str:
        runs = self._runs(f"tags.study_id = '{self._study_id}' and tags.kind = 'study'")
        if runs:
            return runs[0].info.run_id
        tags = {"study": self._study, "study_id": self._study_id, "kind": "study"}
        return self._client.create_run(self._experiment, tags=tags, run_name=self._study).info.run_id

    def _complete_children(self) -> set[int]:
        """Trials already logged; runs a kill left half-written are deleted, to be logged anew."""
        children = self._runs(f"tags.`mlflow.parentRunId` = '{self.parent}'")
        for run in children:
            if run.info.status == "RUNNING":
                self._client.delete_run(run.info.run_id)
        return {int(run.data.tags["trial"]) for run in children if run.info.status != "RUNNING"}

    def _create_child(self, record: TrialRecord) -> None:
        from mlflow.entities import Metric, Param

        result, policy = record.result, record.policy
        started, finished = (_milliseconds(self._to_time(t)) for t in (record.started, record.finished))
        tags = {
            "mlflow.parentRunId": self.parent,
            "study": self._study,
            "study_id": self._study_id,
            "kind": "trial",
            "trial": str(record.number),
            "state": result.state,
            "origin": record.origin,
            "digest": policy.digest,
        }
        if result.reason:
            tags["reason"] = result.reason
        run = self._client.create_run(
            self._experiment, start_time=started, tags=tags, run_name=f"{self._study}-trial-{record.number:05d}"
        ).info.run_id
        params = {
            "granularity": policy.granularity_label,
            "criterion": policy.criterion,
            "schedule": policy.schedule.kind,
            "exponent": "" if "exponent" in policy.schedule.idle else policy.schedule.exponent,
            "size_target": record.target,
            "layers": len(policy.sparsity),
        }
        summary = {f"seconds_{phase}": s for phase, s in result.seconds.items()} | {
            "seconds_proposing": record.proposing
        }
        summary |= {f"guide_{name}": score for name, score in record.scores.items()}
        if record.latency is not None:
            summary["latency"] = record.latency
        if result.state == COMPLETE:
            summary |= {"accuracy": result.accuracy, "loss": result.loss, "macs": result.shares.macs}
            summary |= {"size_encoded": result.shares.encoded, "size_nonzero": result.shares.nonzero}
        metrics = [Metric(key, float(value), finished, 0) for key, value in summary.items()]
        for number, point in enumerate(result.curve, 1):
            curve = {"train_loss": point.train_loss, "val_loss": point.validation_loss, "val_accuracy": point.accuracy}
            metrics += [Metric(f"epoch_{key}", float(value), finished, number) for key, value in curve.items()]
        self._client.log_batch(run, params=[Param(k, str(v)) for k, v in params.items()])
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(run, metrics=metrics[start : start + BATCH_METRICS])
        self._log_files(
            run,
            {
                "sparsity.json": json.dumps(dict(policy.sparsity), indent=1).encode(),
                "sampled.json": json.dumps(dict(record.sampled), indent=1).encode(),
                "policy.json": policy.to_json().encode(),
            },
        )
        self._client.set_terminated(run, status="FAILED" if result.state == "failed" else "FINISHED", end_time=finished)

    def _log_files(self, run: str, files: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder, name)
                path.write_bytes(content)
                self._client.log_artifact(run, str(path))

    def _runs(self, condition: str) -> list[Any]:
        runs, token = [], None
        while token is None or token:
            page = self._client.search_runs([self._experiment], condition, max_results=1000, page_token=token)
            runs += page
            token = page.token or ""
        return runs

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            check()
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if not self._warned:
                log.warning("MLflow could not be written (%s): the study goes on, its next start logs the rest", reason)
            self._warned = True


def serve_ui(root: Path, port: int) -> None:
    """Serve MLflow's UI on the store of `root` until this process is interrupted, which ends the server's workers too.

    The server has a session of its own: Ctrl-C reaches this process alone, and MLflow's workers print no tracebacks.

    Raises:
        EnvironmentProblem: the server ended by itself.
    """
    server = subprocess.Popen([sys.executable, "-m", *ui_command(root, port)], start_new_session=True)
    try:
        code = server.wait()
    finally:
        _end_session(server)
    raise EnvironmentProblem(f"MLflow's UI server ended with code {code}: what it says is above; try another --port")


def _end_session(server: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
