"""MLflow's record of studies on a server that others share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from search.errors import EnvironmentProblem, UsageError
from search.masking import masked, masked_address
from search.storage import causes_of
from search.store.mlflow_store import EXPERIMENT

if TYPE_CHECKING:  # importing MLflow takes seconds
    from mlflow import MlflowClient

EXPERIMENT_NAMED = "MLFLOW_EXPERIMENT_NAME"
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Of variables of MLflow's, unless the environment sets them; in seconds, of an answer."""
JITTER = "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"
LONGEST_REASON = 200


def checked_server(address: str) -> str:
    """The address of a server, without a slash at its end.

    Raises:
        UsageError: it has no host, or a port that is none.
    """
    try:
        parts = urlsplit(address)
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(
            f"MLFLOW_TRACKING_URI must be http://HOST:PORT or https://HOST:PORT, got {masked_address(address)!r}: "
            "correct it, or unset it to keep MLflow's record under the root"
        )
    return address.rstrip("/")


class MlflowServer:
    """A tracking server, used by MLflow's own client, which takes credentials from the environment.

    A request that fails is not repeated by the client, which could make a run twice without knowing, unless the
    environment asks for that: the tracker looks what is there, and writes again. Nor does the client draw random pauses
    from the generator that a user's code may draw from at the same time.

    Args:
        uri: http:// or https://.
    """

    attempts = 2  # a connection that the server has closed in the meantime is no failure

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._experiment = os.environ.get(EXPERIMENT_NAMED) or EXPERIMENT

    def open(self) -> tuple[MlflowClient, str]:
        """A client, and the id of the experiment, made if there is none.

        Raises:
            EnvironmentProblem: the experiment was deleted: others' runs would come back with it.
        """
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        os.environ[JITTER] = "0"
        from mlflow import MlflowClient
        from mlflow.entities import LifecycleStage
        from mlflow.exceptions import MlflowException

        client = MlflowClient(tracking_uri=self._uri)
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            try:
                return client, client.create_experiment(self._experiment)
            except MlflowException:
                experiment = client.get_experiment_by_name(self._experiment)
                if experiment is None:  # else another study made it at the same moment
                    raise
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            raise EnvironmentProblem(
                f"experiment {self._experiment!r} of {masked(self._uri)!r} is deleted: restore it ({restore}), or name "
                f"another in {EXPERIMENT_NAMED}"
            )
        return client, experiment.experiment_id

    def write(self, client: MlflowClient, run: str, files: Mapping[str, bytes]) -> None:
        """Log files (name -> content) of a run."""
        with TemporaryDirectory(prefix="prunefront-") as folder:
            for name, content in files.items():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(content)
            client.log_artifacts(run, folder)

    def has(self, run: str, name: str) -> bool:
        """Taken for granted: a run is closed after its files are written, and to ask would be a request for each."""
        return True

    def problem_of(self, error: Exception) -> EnvironmentProblem:
        """Why the server could not be used."""
        if isinstance(error, EnvironmentProblem):
            return error
        status = getattr(error, "get_http_status_code", lambda: None)()
        said = next((cause.strerror for cause in causes_of(error) if isinstance(cause, OSError) and cause.strerror), "")
        reason = masked(said or (str(error).splitlines() or [type(error).__name__])[0])
        remedy = f"set {CREDENTIALS}" if status in (401, 403) else "start it, or correct MLFLOW_TRACKING_URI"
        return EnvironmentProblem(f"cannot use {masked(self._uri)!r} ({reason[:LONGEST_REASON]}): {remedy}")
