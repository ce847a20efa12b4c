"""What a worker is rebuilt from, wherever it runs, and how it proves that it evaluates the same as its study.

Only plain data travels: the workload by its name, options, the dense weights as a file. No object of the user's is
pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pruning.channels.structure import Structure
from search.config import SearchConfig
from search.errors import EnvironmentProblem, UsageError
from search.given_workload import lives_in_python
from search.identity.recorded_recipe import with_study_recipe
from search.identity.study_identity import study_identity
from search.metric import Metric, metric_from_plain, metric_to_plain
from search.placement import placement_of
from search.training.checkpoints import load_model, save_model
from search.training.dense_model import DenseModel, build_model
from search.training.evaluate import PreparedModel
from search.training.fingerprint import SplitFingerprints, model_fingerprint, weights_fingerprint
from search.training.train import in_fast_layout
from search.user_code.loading import criterion_place, named_criterion
from search.workloads import get_workload
from search.workloads.base import placed, with_dense_value


@dataclass(frozen=True)
class Blueprint:
    """A study as its workers need to know it.

    Attributes:
        config: the study's, as it is stored.
        root: its root; workloads keep what they fetch in its cache.
        weights: file of the dense model.
        accuracy: of the dense model on validation data.
        metric: of the workload, where it has a unit; the dense model's value is among it.
        criterion: the file and function of a criterion of the user's own.
        trusted: whether the code of a hub may run.
        identity: what the worker must find too, see `search.identity.study_identity`.
    """

    config: Mapping[str, Any]
    root: str
    weights: str
    accuracy: float
    metric: Mapping[str, Any] | None
    criterion: str | None
    trusted: bool
    identity: Mapping[str, Any]

    def to_plain(self) -> dict[str, Any]:
        """Data for JSON."""
        return asdict(self)


def require_found(workload: str) -> None:
    """Raise `UsageError` if the workload is one that only this program has."""
    if lives_in_python(workload):
        raise UsageError(
            f"workload {workload!r} lives in this program alone, where workers cannot find it: give a function of a "
            "file or module, or its name, such as './file.py:function', or leave workers out"
        )


def require_known(criterion: str) -> None:
    """Raise `UsageError` if the criterion is one that only this program has registered."""
    if criterion_place(criterion) is None and ":" in criterion:
        raise UsageError(
            f"criterion {criterion!r} is registered in this program alone, where workers cannot find it: name "
            "it as ./file.py:function, or leave workers out"
        )


def blueprint(config: SearchConfig, prepared: PreparedModel, dense: DenseModel, weights: Path) -> Blueprint:
    """Write the dense model to `weights`, and say what else workers need."""
    save_model(dense.model, Structure({}), weights)
    metric = prepared.workload.metric
    return Blueprint(
        config.stored(),
        str(Path(config.root).absolute()),
        str(weights.absolute()),
        dense.accuracy,
        metric_to_plain(metric) if isinstance(metric, Metric) else None,
        criterion_place(config.criterion),
        config.trust_remote_code,
        _plain(study_identity(config, prepared.workload, dense)),
    )


def rebuild(plain: Mapping[str, Any]) -> PreparedModel:
    """The network that a study's policies prune, from the plain data of its blueprint.

    Raises:
        EnvironmentProblem: network, data, code or weights are not the study's; the parts that differ are named.
    """
    said = Blueprint(**plain)
    if said.criterion is not None:
        named_criterion(said.criterion)
    config = SearchConfig(**{**said.config, "root": said.root, "trust_remote_code": said.trusted})
    workload = get_workload(config.workload, **config.factory_options, cache=str(Path(said.root) / "cache"))
    workload = with_study_recipe(workload, config, said.identity)
    placement = placement_of(config.device, config.precision, config.deterministic, config.threads)
    workload = placed(workload, placement)
    model = build_model(workload, config.dense_seed)
    architecture = model_fingerprint(model)
    model = in_fast_layout(load_model(model, Path(said.weights))[0], workload.example_input).eval()
    workload = with_dense_value(workload, metric_from_plain(said.metric))
    splits = SplitFingerprints(workload)
    dense = DenseModel(model, architecture, splits, weights_fingerprint(model), said.accuracy, 0.0, workload)
    _require_same(said.identity, _plain(study_identity(config, workload, dense)))
    return PreparedModel.of(workload, model, config.round_to).scored_by(config.criterion)


def _require_same(study: Mapping[str, Any], worker: Mapping[str, Any]) -> None:
    differing = [part for part in sorted({*study, *worker}) if study.get(part) != worker.get(part)]
    if differing:
        raise EnvironmentProblem(
            f"other {', '.join(differing)} than its study has: whatever the workload reads or draws "
            "must be the same in every process"
        )


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain
