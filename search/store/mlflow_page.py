"""What MLflow's pages show of a study: names of runs, columns and order of its table, and links."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search.metric import SHARE, Metric
from search.records import COMPLETE, TrialRecord

if TYPE_CHECKING:  # importing MLflow takes seconds
    from mlflow import MlflowClient

VIEW = "prunefront"
"""Name of the columns and order that links ask for."""
KIND, SHARED_VIEW = "mlflow.experimentKind", f"mlflow.sharedViewState.{VIEW}"
"""Tags of an experiment."""
MOST_NAME = 120
COLUMNS = (
    "metrics.`accuracy`", "metrics.`size`", "metrics.`latency_ms`", "metrics.`macs`", "params.`granularity`",
    "params.`bits`",
)  # fmt: skip
FORMER_COLUMNS = (tuple(column for column in COLUMNS if "latency" not in column),)
"""What earlier versions asked for, which gives way to `COLUMNS`."""


def set_up(client: MlflowClient, experiment: str) -> None:
    """Give an experiment the view that links ask for, unless somebody has chosen one: that for training runs, with
    columns for pruning policies.
    """
    known = client.get_experiment(experiment).tags
    former = map(_view, FORMER_COLUMNS)
    for tag, value, replaced in ((KIND, "custom_model_development", ()), (SHARED_VIEW, _view(COLUMNS), former)):
        if tag not in known or known[tag] in replaced:
            client.set_experiment_tag(experiment, tag, value)


def _view(columns: Sequence[str]) -> str:
    return json.dumps(
        {
            "orderByKey": "metrics.`accuracy`",
            "orderByAsc": False,
            "selectedColumns": columns,
            "runListHidden": False,
            "viewMaximized": True,
        }
    )


def run_name(record: TrialRecord, metric: str, unit: Metric = SHARE) -> str:
    """A trial in short: number, policy, and what came of it.

    `07 channel 12.4 % 4-bit 90.1` is trial 7, whose channels go, at 12.4 % of the dense size by `metric`, each weight
    kept in 4 bits, with an accuracy of 90.1 %; a value of a metric with a unit has its own digits.
    """
    result, policy = record.result, record.policy
    size = result.shares.of(metric) if result.shares else record.target
    bits = "mixed bits" if isinstance(policy.bits, Mapping) else f"{policy.bits}-bit" if policy.is_rounded else ""
    came = unit.told(result.measured[0], 1).removesuffix(" %") if result.state == COMPLETE else result.state
    words = [f"{record.number:02d}", policy.granularity_label, f"{100 * size:.3g} %", bits, came]
    return " ".join(filter(None, words))[:MOST_NAME]


def runs_page(experiment: str) -> str:
    """The part of an address, from `#` on, of an experiment's runs; with a filter MLflow would leave out the view."""
    return f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def run_page(experiment: str, run: str, file: str = "") -> str:
    """The part of an address, from `#` on, of one run, or of a file of its."""
    place = f"{run}/artifacts/{file}" if file else run
    return f"#/experiments/{experiment}/runs/{place}?workflowType=machine_learning"


def inputs(fingerprints: Mapping[str, str]) -> list[Any]:
    """What a study began with, as MLflow's inputs of a run.

    Args:
        fingerprints: name of a split, or of the dense model -> fingerprint of what it holds.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(name=name, digest=found[:36], source_type="prunefront", source=json.dumps({"fingerprint": found})),
            [InputTag("mlflow.data.context", name.partition(" ")[0])],
        )
        for name, found in fingerprints.items()
    ]
