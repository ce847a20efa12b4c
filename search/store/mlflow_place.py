"""Where MLflow's record of a study is kept: in a file under the root, or by the server that the environment names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from search.errors import EnvironmentProblem
from search.masking import masked_address
from search.store.mlflow_page import run_page, runs_page, set_up
from search.store.mlflow_server import MlflowServer, checked_server
from search.store.mlflow_store import RootStore, silenced

if TYPE_CHECKING:  # importing MLflow takes seconds
    from mlflow import MlflowClient

TRACKING = "MLFLOW_TRACKING_URI"
REPORT = "report.html"
"""A file of a study's own run."""


class MlflowPlace(Protocol):
    """A store of MLflow's with the experiment that studies are logged in.

    Attributes:
        attempts: how often something is written before that counts as a failure.
    """

    attempts: int

    def open(self) -> tuple[MlflowClient, str]:
        """A client, and the id of the experiment, made if there is none; raises whatever MLflow raises."""

    def write(self, client: MlflowClient, run: str, files: Mapping[str, bytes]) -> None:
        """Log files (name, which may have folders -> content) of a run."""

    def has(self, run: str, name: str) -> bool:
        """Whether a finished run, to which a file of this name was logged, still has it."""

    def problem_of(self, error: Exception) -> EnvironmentProblem:
        """An error of MLflow, or of what is below it, in our words and without a secret."""


def server_named() -> str | None:
    """The MLflow server that the environment names; None if it names none, or another kind of store.

    Raises:
        UsageError: its address cannot be one.
    """
    named = os.environ.get(TRACKING, "")
    return checked_server(named) if named.startswith(("http:", "https:")) else None


def unused_place() -> str | None:
    """Say that the environment names a store of MLflow's that is no server; None if it names none."""
    named = os.environ.get(TRACKING, "")
    if not named or server_named():
        return None
    return (
        f"{TRACKING} is {masked_address(named)!r}, which is no server (http:// or https://): MLflow's record is kept "
        "under the root"
    )


def study_page(place: MlflowPlace, study_id: str | None, report: bytes | None = None) -> str:
    """The part of an address, from `#` on, of a study's own run, at its report; where none is named, or has no run, of
    the runs of all studies.

    Args:
        report: the study's, as a page, which becomes a file of the run.

    Raises:
        EnvironmentProblem: the store cannot be used.
    """
    try:
        with silenced():
            client, experiment = place.open()
            set_up(client, experiment)
            found: list[Any] = []
            if study_id is not None:
                ours = f"tags.study_id = '{study_id}' and tags.kind = 'study'"
                found = client.search_runs([experiment], ours, max_results=1)
            if found and report is not None:
                place.write(client, found[0].info.run_id, {REPORT: report})
    except Exception as error:
        raise place.problem_of(error) from None
    if not found:
        return runs_page(experiment)
    return run_page(experiment, found[0].info.run_id, "" if report is None else REPORT)


def mlflow_place(root: Path) -> MlflowPlace:
    """The server of the environment, else the file under the root."""
    server = server_named()
    return RootStore(root) if server is None else MlflowServer(server)
