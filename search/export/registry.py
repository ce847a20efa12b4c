"""Exported networks in MLflow's model registry, as models of MLflow's own kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

from torch import Tensor

from search.errors import EnvironmentProblem, GoalMissed, PrunefrontError, UsageError
from search.export.choose import Chosen
from search.export.manifest import ONNX, STRUCTURE, WEIGHTS
from search.export.rebuild import Export
from search.export.write import Written
from search.store.mlflow_place import MlflowPlace
from search.store.mlflow_store import silenced
from search.workloads import Workload

if TYPE_CHECKING:  # importing MLflow takes seconds
    from mlflow import MlflowClient

NETWORK = "network"
"""Tag of a version: a digest of what was registered."""
MLMODEL = "MLmodel"
"""The file of a model of MLflow's that tells its kind."""


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


def require_registrable(workload: Workload, has_onnx: bool) -> None:
    """Refuse a network of which there is no model of MLflow's, before anything is computed.

    Raises:
        UsageError: it takes inputs that a graph for MLflow cannot, and there is to be no ONNX file.
    """
    if not (has_onnx or isinstance(workload.example_input, Tensor)):
        raise UsageError("--register takes networks of one tensor as input: add --onnx for one of several")


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes:
        uri: such as `models:/my-network/1`.
        is_new: whether it was made now; else this very network was a version already.
    """

    uri: str
    is_new: bool


@dataclass(frozen=True)
class Registry:
    """MLflow's registry, with the run of the study that a network belongs to.

    Attributes:
        name: of the registered model, which is made if there is none.
    """

    place: MlflowPlace
    client: MlflowClient
    run: Any
    chosen: Chosen
    name: str

    @classmethod
    def of(cls, place: MlflowPlace, study_id: str, chosen: Chosen, name: str) -> Registry:
        """The registry where a study's record is.

        Raises:
            EnvironmentProblem: MLflow cannot be used, or has no run of the trial.
        """
        try:
            with silenced():
                client, experiment = place.open()
                return cls(place, client, _run_of(client, experiment, study_id, chosen), chosen, name)
        except Exception as error:
            raise place.problem_of(error) from None

    def register(self, export: Export, workload: Workload, out: Path, written: Written) -> Registered:
        """Log an exported network to the run, and make it the newest version, unless it is a version already.

        It is a model of the kind `mlflow.pytorch`, kept as a graph without pickled code, or of the kind `mlflow.onnx`
        where the export has an ONNX file. The same network of the same kind, by the hashes of its weights and
        structure, is registered once.

        Args:
            out: the export's folder, with what was `written` there.

        Raises:
            EnvironmentProblem: MLflow cannot be used.
            GoalMissed: PyTorch cannot make a graph of the network.
        """
        try:
            with silenced(), catch_warnings(), TemporaryDirectory(prefix="prunefront-") as folder:
                simplefilter("ignore")  # MLflow warns of its own code
                network = _network_of(written.manifest["files"])
                if (known := self._version_of(network)) is not None:
                    return Registered(f"models:/{self.name}/{known}", is_new=False)
                saved = Path(folder) / "model"
                if (out / ONNX).is_file():
                    _save_onnx(out / ONNX, saved)
                else:
                    _save_graph(export, workload, saved)
                files = {str(path.relative_to(saved)): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
                source = f"model-{network[:8]}"  # one of each kind beside the others
                placed = {f"{source}/{file}": content for file, content in files.items()}
                self.place.write(self.client, self.run.info.run_id, placed)
                return Registered(f"models:/{self.name}/{self._next_version(source, network)}", is_new=True)
        except PrunefrontError:
            raise
        except Exception as error:
            raise self.place.problem_of(error) from None

    def _version_of(self, network: str) -> str | None:
        """The newest version that is this network, and still has its files."""
        found = self.client.search_model_versions(f"name = '{self.name}' and tags.{NETWORK} = '{network}'")
        for one in sorted(found, key=lambda known: -int(known.version)):
            source = str(one.source).rpartition("/")[2]
            if self.place.has(str(one.run_id), f"{source}/{MLMODEL}"):
                return str(one.version)
        return None

    def _next_version(self, source: str, network: str) -> str:
        client, run = self.client, self.run
        if not client.search_registered_models(f"name = '{self.name}'"):
            client.create_registered_model(self.name)
        tags = {"study": run.data.tags["study"], "origin": self.chosen.name, "digest": self.chosen.policy.digest}
        made = client.create_model_version(
            self.name, f"{run.info.artifact_uri}/{source}", run.info.run_id, tags=tags | {NETWORK: network}
        )
        return str(made.version)


def _network_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """A digest of an exported network, from what its manifest says of files, and of the kind of model it becomes."""
    kind = "onnx" if ONNX in files else "pytorch"
    return sha256(" ".join([kind, *(files[name]["sha256"] for name in (WEIGHTS, STRUCTURE))]).encode()).hexdigest()


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
    assert isinstance(example, Tensor), "required before the export"
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
