"""A study in MLflow: one parent run, and a child run for each finished trial, made equal to the journal."""

from __future__ import annotations

import json
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import EnvironmentProblem
from search.metric import SHARE, Metric
from search.records import COMPLETE, FAILED, TrialRecord
from search.store.mlflow_page import inputs, run_name, set_up
from search.store.mlflow_place import MlflowPlace
from search.store.mlflow_store import silenced
from search.store.projection import Summary
from search.store.system_metrics import PREFIX, Sample
from spaces.cost.counts import SIZE_METRICS

if TYPE_CHECKING:  # importing MLflow takes seconds
    from mlflow import MlflowClient

BATCH = 1000
"""The most metrics and parameters that MLflow takes in one batch."""
MOST_SAMPLES = 1000
"""Of the machine, that wait until they can be written; older ones are dropped."""
LONGEST_TEXT = 4000
"""The most characters written of a tag or parameter; MLflow takes a few more."""
NOTE = "mlflow.note.content"
"""Tag of a run: Markdown that its page begins with."""
SPARSITY, SAMPLED, POLICY = "sparsity.json", "sampled.json", "policy.json"


@dataclass(frozen=True)
class LoggedStudy:
    """What MLflow is told of a study besides its trials.

    Attributes:
        root: the folder of the study's folder.
        to_time: turns running seconds of the study into a UNIX time for MLflow's run times.
        unit: besides accuracies, which are shares, the values that they stand for are logged, under its name.
        metric: of size, which the limit binds on.
        fingerprints: of what the study began with: name of a split, or of the dense model -> fingerprint.
        dense_milliseconds: of one example, of the dense network in the table that latencies are predicted by; None
            where they are not.
    """

    root: Path
    name: str
    study_id: str
    to_time: Callable[[float], float]
    unit: Metric = SHARE
    metric: str = SIZE_METRICS[0]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    dense_milliseconds: float | None = None


class MlflowRecord:
    """The runs of one study; a `Projection`.

    Args:
        place: where MLflow keeps them.

    Attributes:
        parent: id of the study's parent run; None while the store cannot be used.
        records: what MLflow is to hold: finished trials by number.
        params: the study's settings, for the parent run.
        summary: what the parent run is still to get.
        logged: trials that MLflow is known to have; None while that is unknown.
        samples: of the machine, to be written to the parent run; another thread may add to them.
    """

    title = "MLflow"

    def __init__(self, study: LoggedStudy, place: MlflowPlace) -> None:
        self._study, self._place = study, place
        self.key, self.attempts = study.study_id, place.attempts
        self._client: MlflowClient | None = None
        self._experiment = ""
        self.parent: str | None = None
        self.records: dict[int, TrialRecord] = {}
        self.params: dict[str, Any] = {}
        self.summary: Summary | None = None
        self.logged: set[int] | None = None
        self.samples: deque[Sample] = deque(maxlen=MOST_SAMPLES)
        self._first_step: int | None = None

    @silenced()
    def match(self) -> None:
        """Open the store, and make all that it has of this study equal to the journal; what it lacks is missing still.

        The parent run is marked as running.
        """
        from mlflow.entities import Param

        client, self._experiment = self._place.open()
        self._client = client
        set_up(client, self._experiment)
        parents, children = self._found()
        self.parent = parent = self._one_parent(parents, children)
        client.update_run(parent, status="RUNNING")
        known = client.get_run(parent).data
        fresh = [Param(key, _text(value)) for key, value in self.params.items() if key not in known.params]
        if self._first_step is None:  # a study that is resumed goes on behind the samples that are there
            sampled = [metric.step for metric in known.to_proto().metrics if metric.key.startswith(PREFIX)]
            self._first_step = max(sampled, default=-1) + 1
        client.log_batch(parent, params=fresh)
        client.log_inputs(parent, datasets=inputs(self._study.fingerprints))
        self.logged = self._keep_right_ones(children)

    def forget(self) -> None:
        """It is unknown again what MLflow has: a run may be half written."""
        self.logged = None

    def missing(self) -> list[int]:
        """Trials that MLflow is known to lack."""
        assert self.logged is not None, "known before anything is written"
        return sorted(self.records.keys() - self.logged)

    @silenced()
    def log(self, number: int) -> None:
        """Log a trial that is missing."""
        assert self.logged is not None, "known before anything is written"
        self._create_child(self.records[number])
        self.logged.add(number)

    @silenced()
    def terminate(self, status: str) -> None:
        """Close the parent run as `FINISHED`, `KILLED` or `FAILED`; what samples are left come last."""
        self._store.set_terminated(self._run, status=status)
        while self.samples:
            self._log_samples()

    def problem_of(self, error: Exception) -> EnvironmentProblem:
        """An error of MLflow, or of what is below it, in our words and without a secret."""
        return self._place.problem_of(error)

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
        runs = {
            run.info.run_id: run
            for run in self._runs(f"tags.study_id = '{self._study.study_id}'")
            if self._is_ours(run)
        }
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
        name = run.data.tags.get("study", self._study.name)
        return name == self._study.name or not (self._study.root / name / "study.json").is_file()

    def _one_parent(self, parents: list[Any], children: list[Any]) -> str:
        """The parent with the most children, or a new one; any others are deleted."""
        tags = {"study": self._study.name, "study_id": self._study.study_id, "kind": "study"}
        if not parents:
            return self._store.create_run(self._experiment, tags=tags, run_name=self._study.name).info.run_id
        counts = Counter(child.data.tags.get("mlflow.parentRunId") for child in children)
        kept = max(parents, key=lambda run: counts[run.info.run_id])
        for run in parents:
            if run is not kept:
                self._store.delete_run(run.info.run_id)
        self._set_tags(kept, tags | {"mlflow.runName": self._study.name})
        return kept.info.run_id

    def _keep_right_ones(self, children: list[Any]) -> set[int]:
        """Delete children that are half-written, duplicated or of no trial; returns the trials that have a run."""
        logged: set[int] = set()
        for run in children:
            number = run.data.tags.get("trial", "")
            record = self.records.get(int(number)) if number.isdecimal() else None
            if record is None or record.number in logged or not self._is_of(run, record):
                self._store.delete_run(run.info.run_id)
                continue
            logged.add(record.number)
            self._set_tags(run, self._tags(record) | {"mlflow.runName": self._name(record)})
            self._set_latency(run, record)
        return logged

    def _name(self, record: TrialRecord) -> str:
        return _text(run_name(record, self._study.metric, self._study.unit))

    def _set_latency(self, run: Any, record: TrialRecord) -> None:
        """Of a run that an earlier version wrote, without milliseconds, or by a table that was lost."""
        for key, value in milliseconds(record.latency, self._study.dense_milliseconds).items():
            if run.data.metrics.get(key) != value:
                self._store.log_metric(run.info.run_id, key, value)

    def _set_tags(self, run: Any, tags: Mapping[str, str]) -> None:
        for tag, value in tags.items():
            if run.data.tags.get(tag) != value:
                self._store.set_tag(run.info.run_id, tag, value)

    def _is_of(self, run: Any, record: TrialRecord) -> bool:
        """Whether a run is complete and was written from exactly this record."""
        expected = self._summary_of(record) if record.result.state == COMPLETE else {}
        essential = ("accuracy", "loss", "macs", "size_encoded", "size_nonzero", logged_name(self._study.unit))
        return (
            run.info.status == _status(record)
            and (run.data.tags.get("state"), run.data.tags.get("digest")) == (record.result.state, record.policy.digest)
            and all(run.data.metrics.get(key) == expected[key] for key in essential if key in expected)
            and all(self._place.has(run.info.run_id, name) for name in (SPARSITY, SAMPLED, POLICY))
        )

    @silenced()
    def log_summary(self) -> None:
        """Write `summary`, if there is one, and a batch of samples."""
        from mlflow.entities import Metric as Logged

        self._log_samples()
        if self.summary is None:
            return
        metrics, files, note = self.summary
        now = _milliseconds(time.time())
        self._store.log_batch(self._run, metrics=[Logged(k, float(v), now, 0) for k, v in metrics.items()])
        self._place.write(self._store, self._run, files)
        self._store.set_tag(self._run, NOTE, _text(note))
        self.summary = None

    def _log_samples(self) -> None:
        """Write the oldest samples, as many as one batch takes; the same ones again change nothing."""
        from mlflow.entities import Metric as Logged

        assert self._first_step is not None, "found before anything is written"
        taken, logged = list[Sample](), list[Logged]()
        with suppress(IndexError):  # none is left
            while len(logged) + len(self.samples[0].values) <= BATCH:
                one = self.samples.popleft()
                taken.append(one)
                at = _milliseconds(one.time), self._first_step + one.number
                logged += [Logged(key, value, *at) for key, value in one.values.items()]
        if not logged:
            return
        try:
            self._store.log_batch(self._run, metrics=logged)
        except BaseException:
            self.samples.extendleft(reversed(taken))
            raise

    def _tags(self, record: TrialRecord) -> dict[str, str]:
        tags = {
            "mlflow.parentRunId": self._run,
            "study": self._study.name,
            "study_id": self._study.study_id,
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
        started, finished = (_milliseconds(self._study.to_time(t)) for t in (record.started, record.finished))
        client = self._store
        run = client.create_run(
            self._experiment,
            start_time=started,
            tags=self._tags(record),
            run_name=self._name(record),
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
            curve |= logged_values(self._study.unit, {"val_": point.accuracy})
            metrics += [Logged(f"epoch_{key}", float(value), finished, number) for key, value in curve.items()]
        entries = [Param(k, _text(v)) for k, v in params.items()]
        first = BATCH - len(entries)  # each batch takes five transactions
        client.log_batch(run, params=entries, metrics=metrics[:first])
        for start in range(first, len(metrics), BATCH):
            client.log_batch(run, metrics=metrics[start : start + BATCH])
        self._place.write(
            client,
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
        cost = record.result.shares
        size = {} if cost is None else {"size": cost.of(self._study.metric)}
        latency = milliseconds(record.latency, self._study.dense_milliseconds)
        return logged_values(self._study.unit, shares) | _summary(record) | size | latency

    def _runs(self, condition: str) -> list[Any]:
        runs: list[Any] = []
        token: str | None = None
        while token is None or token:
            page = self._store.search_runs([self._experiment], condition, max_results=1000, page_token=token)
            runs += page
            token = page.token or ""
        return runs


LATENCY = "latency_ms"
TAKEN = {
    "accuracy", "loss", "macs", "latency", LATENCY, "learning_rate", "size", "size_encoded", "size_nonzero",
    "front_size", "final_accuracy", "test_accuracy",
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


def milliseconds(share: float | None, dense: float | None, prefix: str = "") -> dict[str, float]:
    """A metric of MLflow: predicted milliseconds of one example; none where they are unknown.

    Args:
        share: of the dense network's.
        dense: the dense network's, in milliseconds.
    """
    return {} if share is None or dense is None else {f"{prefix}{LATENCY}": share * dense}


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
