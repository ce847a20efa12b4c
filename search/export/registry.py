"""Exported networks in MLflow's model registry, as models of MLflow's own kinds."""

from __future__ import annotations

import re
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

from torch import Tensor

from search.errors import EnvironmentProblem, GoalMissed, PrunefrontError, UsageError
from search.export.choose import Chosen
from search.export.manifest import ONNX
from search.export.rebuild import Export
from search.store.mlflow_place import MlflowPlace
from search.store.mlflow_store import silenced
from search.workloads import Workload

if TYPE_CHECKING:  # importing MLflow takes seconds
    from mlflow import MlflowClient


def check_name(name: str) -> str:
    """Return a name that the registry takes.

    Raises:
        UsageError: it has other characters than letters, digits, spaces, '.', '_' and '-', or more than 100.
    """
    if not re.fullmatch(r"[\w][\w .-]{0,99}", name):
        raise UsageError(
            f"--register must be a name of 1 to 100 letters, digits, spaces, '.', '_' and '-', got {name!r}: "
            "such as my-network"
        )
    return name


def register(
    place: MlflowPlace, study_id: str, chosen: Chosen, export: Export, workload: Workload, out: Path, name: str
) -> str:
    """Log an exported network to the run of its trial, and make it the newest version of a registered model.

    It is a model of the kind `mlflow.pytorch`, kept as a graph without pickled code, or of the kind `mlflow.onnx` where
    the export has an ONNX file.

    Args:
        out: the export.
        name: of the registered model, which is made if there is none.

    Returns:
        Its URI, such as `models:/my-network/1`.

    Raises:
        EnvironmentProblem: MLflow cannot be used, or has no run of the trial.
        GoalMissed: PyTorch cannot make a graph of the network.
        UsageError: the network takes inputs that such a model cannot.
    """
    try:
        with silenced(), catch_warnings(), TemporaryDirectory(prefix="prunefront-") as folder:
            simplefilter("ignore")  # MLflow warns of its own code
            client, experiment = place.open()
            run = _run_of(client, experiment, study_id, chosen)
            saved = Path(folder) / "model"
            if (out / ONNX).is_file():
                _save_onnx(out / ONNX, saved)
            else:
                _save_graph(export, workload, saved)
            files = {str(path.relative_to(saved)): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
            source = f"model-{sha256(b''.join(files.values())).hexdigest()[:8]}"  # one of each kind beside the others
            place.write(client, run.info.run_id, {f"{source}/{file}": content for file, content in files.items()})
            return _next_version(client, name, run, source, chosen)
    except PrunefrontError:
        raise
    except Exception as error:
        raise place.problem_of(error) from None


def _run_of(client: MlflowClient, experiment: str, study_id: str, chosen: Chosen) -> Any:
    """The run of a trial, or of the study for what is none."""
    which = "tags.kind = 'study'" if chosen.trial is None else f"tags.trial = '{chosen.trial.number}'"
    found = client.search_runs([experiment], f"tags.study_id = '{study_id}' and {which}", max_results=1)
    if not found:
        raise EnvironmentProblem(
            f"MLflow has no run of {chosen.name}: the study's own `prunefront search` command writes it again"
        )
    return found[0]


def _save_graph(export: Export, workload: Workload, to: Path) -> None:
    import mlflow.pytorch

    example = workload.example_input
    if not isinstance(example, Tensor):
        raise UsageError("--register takes networks of one tensor as input: add --onnx for one of several")
    try:
        mlflow.pytorch.save_model(
            export.model.eval(), str(to), input_example=example.numpy(), serialization_format="pt2",
            pip_requirements=_needs("torch"),
        )  # fmt: skip
    except Exception as error:  # whatever torch.export makes of a network that is no graph
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GoalMissed(
            f"the export stands, but PyTorch cannot make a graph of its network for the registry ({reason}): add --onnx"
        ) from None


def _save_onnx(file: Path, to: Path) -> None:
    import mlflow.onnx
    import onnx

    mlflow.onnx.save_model(onnx.load(str(file)), str(to), pip_requirements=_needs("onnx", "onnxruntime"))


def _needs(*packages: str) -> list[str]:
    return [f"{package}=={version(package)}" for package in packages]


def _next_version(client: MlflowClient, name: str, run: Any, source: str, chosen: Chosen) -> str:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    tags = {"study": run.data.tags["study"], "origin": chosen.name, "digest": chosen.policy.digest}
    made = client.create_model_version(name, f"{run.info.artifact_uri}/{source}", run.info.run_id, tags=tags)
    return f"models:/{name}/{made.version}"
