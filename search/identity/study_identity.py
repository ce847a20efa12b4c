"""What must stay the same in a study besides its config: fingerprints, recipe, objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.config import SearchConfig
from search.placement import Placement
from search.store.study_record import ARCHITECTURE, DATA, DENSE, LATENCY_DEVICE, of_split
from search.training.dense_model import DenseModel
from search.training.fingerprint import criterion_fingerprint, data_fingerprint, training_fingerprint
from search.training.former_fingerprints import (
    old_criterion_fingerprint,
    old_model_fingerprints,
    old_training_fingerprints,
)
from search.workloads.base import SPLITS, Workload

TRAINING, CRITERION = "loss, metric and augmentation", "criterion"


def study_identity(config: SearchConfig, workload: Workload, dense: DenseModel) -> dict[str, Any]:
    """The identity of a study of this config, workload and dense model, as plain data."""
    identity = {
        ARCHITECTURE: dense.architecture,
        TRAINING: training_fingerprint(workload),
        **{of_split(split): dense.data[split] for split in SPLITS},
        DENSE: dense.weights,
        "recipe": workload.recipe.to_dict(),
        "objectives": {"accuracy": "maximize", "size": "minimize", config.cost: "minimize"},
    }
    code = criterion_fingerprint(config.criterion)
    return identity | ({CRITERION: code} if code else {})


def latency_device(config: SearchConfig, placement: Placement) -> dict[str, str]:
    """What the identity of a study holds besides, if latency plays a part in it: the device's name."""
    return {LATENCY_DEVICE: placement.name} if config.needs_latency else {}


def in_todays_words(
    stored: Mapping[str, Any], config: SearchConfig, workload: Workload, dense: DenseModel
) -> dict[str, Any]:
    """A recorded identity, with older fingerprints of the same code and data replaced by today's."""
    now, found = study_identity(config, workload, dense), dict(stored)
    older = {
        ARCHITECTURE: old_model_fingerprints(dense.model, dense.architecture),
        TRAINING: old_training_fingerprints(workload),
    }
    for part, known in older.items():
        if found.get(part) in known:
            found[part] = now[part]
    if CRITERION in now and found.get(CRITERION) == old_criterion_fingerprint(config.criterion):
        found[CRITERION] = now[CRITERION]
    if DATA in found:
        before = found.pop(DATA)
        same = before == data_fingerprint(workload)
        found |= {of_split(split): dense.data[split] if same else f"{before} of all splits" for split in SPLITS}
    return found
