"""MLflow's record of a study: a projection of the journal that can be rebuilt at any time.

One parent run for a study and one child run for each finished trial, written by the coordinator only, each child in one
batch. A store that fails costs a warning, never a trial; what is missing is logged as soon as the store can be written
again.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.metric import SHARE, Metric
from search.process.interrupts import check
from search.progress import ProgressReporter
from search.records import COMPLETE, FAILED, TrialRecord
from search.store.mlflow_store import EXPERIMENT, artifacts_place, open_store, problem_of, silenced

if TYPE_CHECKING:  # importing MLflow takes seconds
    from mlflow import MlflowClient

BATCH_METRICS = 1000
"""The most metrics that MLflow takes in one batch."""
LONGEST_TEXT = 4000
"""The most characters written of a tag or parameter; MLflow takes a few more."""
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0
"""Seconds before a store that failed is tried again; doubled each time, up to the longest."""
SPARSITY, SAMPLED, POLICY = "sparsity.json", "sampled.json", "policy.json"
log = logging.getLogger(__name__)


class Tracker:
    """Writes one study to MLflow.

    Until it is known which trials MLflow has, none is logged, so that nothing is ever logged twice. After a failure
    that is unknown again: the next write that is due looks, repairs what it finds and logs everything that is missing.

    Attributes:
        parent: id of the study's parent run; None while the store cannot be used.
    """

    def __init__(
        self,
        root: Path,
        study: str,
        study_id: str,
        epoch_of_start: Callable[[float], float],
        watcher: ProgressReporter | None = None,
        unit: Metric = SHARE,
    ) -> None:
        """`epoch_of_start` turns running seconds of the study into a UNIX time for MLflow's run times.

        Besides accuracies, which are shares, the values that they stand for in the `unit` are logged, under its name.
        """
        self._unit = unit
        self._root, self._study, self._study_id, self._to_time = root, study, study_id, epoch_of_start
        self._watcher = watcher
        self._client: MlflowClient | None = None
        self.parent: str | None = None
        self._experiment = ""
        self._logged: set[int] | None = None
        self._records: dict[int, TrialRecord] = {}
        self._params: dict[str, Any] = {}
        self._summary: tuple[Mapping[str, float], Mapping[str, bytes]] | None = None
        self._failing, self._pause, self._due = False, FIRST_PAUSE, 0.0

    def start(self, params: Mapping[str, Any], records: Mapping[int, TrialRecord]) -> None:
        """Mark the parent run as running, with the study's settings, and make its children match `records`."""
        self._records, self._params = dict(records), dict(params)
        self._write(lambda: None, due=True, attempts=2)

    def log_trial(self, record: TrialRecord) -> None:
        """Log one child run for a finished trial; a trial that is already there is left unchanged."""
        self._records[record.number] = record
        self._write(self._log_missing)

    def log_summary(self, metrics: Mapping[str, float], files: Mapping[str, bytes]) -> None:
        """Log metrics and files (name -> content) on the parent run."""
        self._summary = metrics, files
        self._write(self._log_summary, due=True)

    def finish(self, status: str) -> None:
        """Close the parent run as `FINISHED`, `KILLED` or `FAILED`, after logging what is still missing."""

        def write() -> None:
            self._log_summary()
            self._store.set_terminated(self._run, status=status)

        self._write(write, due=status == "FINISHED")
        if self._failing:
            log.warning("MLflow's record of this study is not complete: the same command completes it without training")

    def _write(self, action: Callable[[], None], due: bool = False, attempts: int = 1) -> None:
        """Bring MLflow up to date with the records, then act; a failure is told once and tried again after a pause."""
        if self._logged is None and not due and time.monotonic() < self._due:
            return
        try:
            with silenced():
                if self._logged is None:
                    self._match()
                action()
        except Exception as error:
            self._logged = None
            check()
            if attempts > 1:
                self._write(action, due, attempts - 1)
            else:
                self._fail(error)
        except BaseException:
            self._logged = None  # it may have ended a half-written run
            raise
        else:
            if self._failing:
                log.warning("MLflow is written again, and lacks nothing")
            self._failing, self._pause = False, FIRST_PAUSE

    def _fail(self, error: Exception) -> None:
        self._due, self._pause = time.monotonic() + self._pause, min(2 * self._pause, LONGEST_PAUSE)
        if not self._failing:
            reason = problem_of(self._root, error)
            log.warning("MLflow could not be written, the study goes on without it and tries again: %s", reason)
        self._failing = True

    def _match(self) -> None:
        """Make MLflow's record of this study equal to the journal's."""
        from mlflow.entities import Param

        self._client = client = open_store(self._root, self._watcher)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None, "made with the store"
        self._experiment = experiment.experiment_id
        parents, children = self._found()
        self.parent = parent = self._one_parent(parents, children)
        client.update_run(parent, status="RUNNING")
        known = client.get_run(parent).data.params
        fresh = [Param(key, _text(value)) for key, value in self._params.items() if key not in known]
        client.log_batch(parent, params=fresh)
        self._logged = self._keep_right_ones(children)
        self._log_missing()

    @property
    def _store(self) -> MlflowClient:
        assert self._client is not None, "opened before anything is written"
        return self._client

    @property
    def _run(self) -> str:
        assert self.parent is not None, "found or made before anything is written"
        return self.parent

    def _found(self) -> tuple[list[Any], list[Any]]:
        """Active runs of this study, oldest first: parents, and children, even if they lost a tag or their parent."""
        runs = {run.info.run_id: run for run in self._runs(f"tags.study_id = '{self._study_id}'") if self._is_ours(run)}
        parents = [key for key, run in runs.items() if run.data.tags.get("kind") == "study"]
        for parent in parents:
            for run in self._runs(f"tags.`mlflow.parentRunId` = '{parent}'"):
                if run.data.tags.get("kind") == "trial" or "trial" in run.data.tags:  # else somebody's own
                    runs.setdefault(run.info.run_id, run)
        ordered = sorted(runs.values(), key=lambda run: (run.info.start_time, run.info.run_id))
        return [run for run in ordered if run.info.run_id in parents], [
            run for run in ordered if run.info.run_id not in parents
        ]

    def _is_ours(self, run: Any) -> bool:
        """Whether a parent run is this folder's: a copied folder is a study of its own, a renamed one takes its runs
        along.
        """
        name = run.data.tags.get("study", self._study)
        return name == self._study or not (self._root / name / "study.json").is_file()

    def _one_parent(self, parents: list[Any], children: list[Any]) -> str:
        """The parent with the most children, or a new one; any others are deleted."""
        tags = {"study": self._study, "study_id": self._study_id, "kind": "study"}
        if not parents:
            return self._store.create_run(self._experiment, tags=tags, run_name=self._study).info.run_id
        counts = Counter(child.data.tags.get("mlflow.parentRunId") for child in children)
        kept = max(parents, key=lambda run: counts[run.info.run_id])
        for run in parents:
            if run is not kept:
                self._store.delete_run(run.info.run_id)
        self._set_tags(kept, tags | {"mlflow.runName": self._study})
        return kept.info.run_id

    def _keep_right_ones(self, children: list[Any]) -> set[int]:
        """Delete children that are half-written, duplicated or of no trial; returns the trials that have a run."""
        logged: set[int] = set()
        for run in children:
            number = run.data.tags.get("trial", "")
            record = self._records.get(int(number)) if number.isdecimal() else None
            if record is None or record.number in logged or not self._is_of(run, record):
                self._store.delete_run(run.info.run_id)
                continue
            logged.add(record.number)
            self._set_tags(run, self._tags(record))
        return logged

    def _set_tags(self, run: Any, tags: Mapping[str, str]) -> None:
        for tag, value in tags.items():
            if run.data.tags.get(tag) != value:
                self._store.set_tag(run.info.run_id, tag, value)

    def _is_of(self, run: Any, record: TrialRecord) -> bool:
        """Whether a run is complete and was written from exactly this record."""
        expected = self._summary_of(record) if record.result.state == COMPLETE else {}
        essential = ("accuracy", "loss", "macs", "size_encoded", "size_nonzero", logged_name(self._unit))
        files = artifacts_place(self._root, run.info.run_id)
        return (
            run.info.status == _status(record)
            and (run.data.tags.get("state"), run.data.tags.get("digest")) == (record.result.state, record.policy.digest)
            and all(run.data.metrics.get(key) == expected[key] for key in essential if key in expected)
            and all((files / name).is_file() for name in (SPARSITY, SAMPLED, POLICY))
        )

    def _log_missing(self) -> None:
        logged = self._logged
        assert logged is not None, "known before anything is written"
        for number in sorted(self._records.keys() - logged):
            self._create_child(self._records[number])
            logged.add(number)

    def _log_summary(self) -> None:
        from mlflow.entities import Metric as Logged

        if self._summary is None:
            return
        metrics, files = self._summary
        now = _milliseconds(time.time())
        self._store.log_batch(self._run, metrics=[Logged(k, float(v), now, 0) for k, v in metrics.items()])
        self._log_files(self._run, files)
        self._summary = None

    def _tags(self, record: TrialRecord) -> dict[str, str]:
        tags = {
            "mlflow.parentRunId": self._run,
            "study": self._study,
            "study_id": self._study_id,
            "kind": "trial",
            "trial": str(record.number),
            "state": record.result.state,
            "origin": record.origin,
            "digest": record.policy.digest,
        }
        tags |= {"reason": record.result.reason} if record.result.reason else {}
        return {tag: _text(value) for tag, value in tags.items()}

    def _create_child(self, record: TrialRecord) -> None:
        from mlflow.entities import Metric as Logged
        from mlflow.entities import Param

        result, policy = record.result, record.policy
        started, finished = (_milliseconds(self._to_time(t)) for t in (record.started, record.finished))
        client = self._store
        run = client.create_run(
            self._experiment,
            start_time=started,
            tags=self._tags(record),
            run_name=f"{self._study}-trial-{record.number:05d}",
        ).info.run_id
        params = {
            "granularity": policy.granularity_label,
            "bits": "mixed" if isinstance(policy.bits, Mapping) else policy.bits,
            "criterion": policy.criterion,
            "schedule": policy.schedule.kind,
            "exponent": "" if "exponent" in policy.schedule.idle else policy.schedule.exponent,
            "size_target": record.target,
            "layers": len(policy.sparsity),
        }
        metrics = [Logged(key, float(value), finished, 0) for key, value in self._summary_of(record).items()]
        for number, point in enumerate(result.curve, 1):
            curve = {"train_loss": point.train_loss, "val_loss": point.validation_loss, "val_accuracy": point.accuracy}
            curve |= logged_values(self._unit, {"val_": point.accuracy})
            metrics += [Logged(f"epoch_{key}", float(value), finished, number) for key, value in curve.items()]
        client.log_batch(run, params=[Param(k, _text(v)) for k, v in params.items()])
        for start in range(0, len(metrics), BATCH_METRICS):
            client.log_batch(run, metrics=metrics[start : start + BATCH_METRICS])
        self._log_files(
            run,
            {
                SPARSITY: json.dumps(dict(policy.sparsity), indent=1).encode(),
                SAMPLED: json.dumps(dict(record.sampled), indent=1).encode(),
                POLICY: policy.to_json().encode(),
            },
        )
        client.set_terminated(run, status=_status(record), end_time=finished)

    def _summary_of(self, record: TrialRecord) -> dict[str, float]:
        shares = {"": record.result.accuracy, "guide_predicted_": record.scores.get("predicted")}
        return logged_values(self._unit, shares) | _summary(record)

    def _log_files(self, run: str, files: Mapping[str, bytes]) -> None:
        """Write files where MLflow looks for them; its own client would use the place that a moved root had earlier in
        this process.
        """
        folder = artifacts_place(self._root, run)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def _runs(self, condition: str) -> list[Any]:
        runs: list[Any] = []
        token: str | None = None
        while token is None or token:
            page = self._store.search_runs([self._experiment], condition, max_results=1000, page_token=token)
            runs += page
            token = page.token or ""
        return runs


TAKEN = {
    "accuracy", "loss", "macs", "latency", "learning_rate", "size", "size_encoded", "size_nonzero", "front_size",
    "final_accuracy", "test_accuracy",
}  # fmt: skip
"""Names of metrics that MLflow shows of every study."""


def logged_name(unit: Metric) -> str:
    """The name by which MLflow shows a metric with a unit: its own, in characters that MLflow takes; "" of accuracy.

    >>> logged_name(Metric("mAP@0.5")), logged_name(Metric("loss"))
    ('mAP_0_5', 'loss value')
    """
    name = re.sub(r"[^\w\- ]", "_", unit.name.strip(), flags=re.ASCII)
    return "" if unit == SHARE else f"{name} value" if name in TAKEN else name


def logged_values(unit: Metric, shares: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics of MLflow: the values that shares stand for, named by their key and the name of the metric; none of
    accuracy, which is a share itself.
    """
    name = logged_name(unit)
    found = {f"{key}{name}": unit.value_of(share) for key, share in shares.items()} if name else {}
    return {key: value for key, value in found.items() if value is not None}


def _status(record: TrialRecord) -> str:
    return "FAILED" if record.result.state == FAILED else "FINISHED"


def _summary(record: TrialRecord) -> dict[str, float]:
    """The measurements of a trial, under the names MLflow shows."""
    result = record.result
    summary = {f"seconds_{phase}": s for phase, s in result.seconds.items()} | {"seconds_proposing": record.proposing}
    summary |= {f"guide_{name}": score for name, score in record.scores.items()}
    if record.latency is not None:
        summary["latency"] = record.latency
    if result.rate is not None:
        summary["learning_rate"] = result.rate
    if result.state == COMPLETE:
        accuracy, loss, shares = result.measured
        summary |= {"accuracy": accuracy, "loss": loss, "macs": shares.macs}
        summary |= {"size_encoded": shares.encoded, "size_nonzero": shares.nonzero}
    return summary


def _text(value: object) -> str:
    """Text that MLflow takes as a tag or parameter: short enough, and without characters that cannot be stored."""
    return str(value)[:LONGEST_TEXT].encode(errors="replace").decode()


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
