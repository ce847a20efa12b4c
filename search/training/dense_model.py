"""The dense model of a workload: the user's weights, or trained once and cached."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, overload

import torch
from torch import Tensor, nn

from pruning.batchnorm import learning_norms
from pruning.channels.structure import Structure
from pruning.masks import achieved_sparsity
from pruning.outputs import on_cpu, tensors_in
from search.errors import Refused, UsageError
from search.metric import SHARE, Metric
from search.process.kept_work import kept_so_far
from search.progress import ProgressReporter
from search.records import FLOAT32
from search.training.as_built import outperforms_shuffled, same_weights
from search.training.checkpoints import load_model, metadata_of, save_model
from search.training.dense_losses import DenseLosses, validation_loss
from search.training.ends import require_ends
from search.training.fingerprint import (
    SplitFingerprints,
    digest,
    model_fingerprint,
    split_fingerprint,
    training_fingerprint,
    weights_fingerprint,
)
from search.training.former_fingerprints import old_dense_key
from search.training.losses import Diverged
from search.training.memory import within_memory
from search.training.own_scores import LOSS, evaluated
from search.training.scoring import passes
from search.training.train import in_fast_layout, train_dense
from search.training.trained import Trained
from search.user_code.loading import call_user
from search.user_code.randomness import seeded
from search.weights.loading import load_user_weights
from search.workloads.base import Workload, with_dense_value
from search.workloads.checks import check_model, check_run
from search.workloads.choices import AS_BUILT
from search.workloads.metric_checks import checked_value, metric_of
from search.workloads.run import Run
from search.workloads.tally import Gathering, computed, share_of, tally
from spaces.printable import printable
from spaces.wording import percent

log = logging.getLogger(__name__)
FINE_TUNING = ("trial_epochs", "final_epochs", "learning_rate", "rate")
"""Parts of a recipe the dense model does not depend on."""


@dataclass(frozen=True)
class DenseModel:
    """A trained dense model and the fingerprints that tell whether it is still the same.

    Attributes:
        data: split -> fingerprint of its examples.
        accuracy: the metric on validation data, as a share, 0 to 1.
        trained_seconds: what training it took in this process; 0.0 if it was loaded.
        workload: the one it belongs to; its metric knows the dense network's value if it has no range.
    """

    model: nn.Module
    architecture: str
    data: Mapping[str, str]
    weights: str
    accuracy: float
    trained_seconds: float
    workload: Workload


@overload
def dense_model(
    workload: Workload,
    seed: int,
    cache: Path,
    weights: str | Path | None = None,
    watcher: ProgressReporter | None = None,
    train: Literal[True] = True,
) -> DenseModel: ...
@overload
def dense_model(
    workload: Workload,
    seed: int,
    cache: Path,
    weights: str | Path | None = None,
    watcher: ProgressReporter | None = None,
    *,
    train: bool,
) -> DenseModel | None: ...
def dense_model(
    workload: Workload,
    seed: int,
    cache: Path,
    weights: str | Path | None = None,
    watcher: ProgressReporter | None = None,
    train: bool = True,
) -> DenseModel | None:
    """Load the user's weights, take the model as built or the cached one, or else train one and cache it.

    The model is taken as built if the workload says so by `weights="as built"`, or if `build_model` returns the same
    weights under every seed and they do the task well, unless the workload says `train_dense=True`.

    Args:
        seed: of the dense training; part of the cache's key, with architecture, initial weights, fit data and recipe.
        cache: folder of cached models.
        weights: a weights file; takes precedence over the workload's own.
        watcher: follows the training, if there is any.
        train: if the model has to be trained, train it; otherwise return None.

    Raises:
        UsageError: the model cannot be built, does not run on its data, diverges in training, or has a metric outside
            its range.
        EnvironmentProblem: no such weights, or too little memory.
        Refused: from reading weights.
    """
    with within_memory(workload, "the dense model"):
        return _dense_model(workload, seed, cache, weights or workload.weights, watcher or ProgressReporter(), train)


def _dense_model(
    workload: Workload, seed: int, cache: Path, source: str | Path | None, watcher: ProgressReporter, train: bool
) -> DenseModel | None:
    model = build_model(workload, seed)
    architecture = model_fingerprint(model)
    seconds = 0.0
    if source == AS_BUILT:
        pass
    elif source:
        if masks := load_user_weights(model, Path(source), watcher.note):
            watcher.note(masks_note(Path(source), masks))
    else:
        start = _start(workload, model, seed, watcher)
        if start is not None:
            found = _cached_or_trained(workload, model, start, seed, cache, watcher, train)
            if found is None:
                return None
            model, seconds = found
    model = in_fast_layout(model, workload.example_input).eval()
    value = _value(workload, model, source)
    if isinstance(workload.metric, Metric) and not workload.metric.has_range:
        workload = with_dense_value(workload, replace(workload.metric, dense=value))
    data, accuracy = SplitFingerprints(workload), share_of(workload.metric, value)
    return DenseModel(model, architecture, data, weights_fingerprint(model), accuracy, seconds, workload)


def _value(workload: Workload, model: nn.Module, source: str | Path | None) -> float:
    """The metric on validation data, in its own unit."""
    counted, of = tally(workload.metric), "of the dense model on validation data"
    name = f"workload {workload.name!r}: the dense model"
    if workload.evaluate is not None:
        return checked_value(workload, _evaluated(workload, model, "validation")[0], of)

    def look() -> bool:
        """Whether there are NaN among the outputs."""
        found = False
        for one in passes(model, workload.examples("validation"), workload):
            outputs = on_cpu(one.outputs)
            found = found or holds_nan(outputs)
            counted.add(outputs, one.targets)
        return found

    if call_user(name, look):
        _refuse_nan(workload, model, source)
    if isinstance(counted, Gathering):
        return metric_of(workload, *counted.joined(), of)
    return checked_value(workload, call_user(f"workload {workload.name!r}: metric {of}", counted.value), of)


def _evaluated(workload: Workload, model: nn.Module, split: str) -> tuple[float, float | None]:
    """The metric in its own unit, and the loss if `evaluate` says one."""
    what = f"workload {workload.name!r}: evaluate on {split!r}"
    return call_user(what, evaluated, model, split, workload)


def _untrained_loss(workload: Workload, model: nn.Module) -> float | None:
    """The loss on validation data before a training; None where an `evaluate` says none.

    An `evaluate` that raises or leaves its range is refused; it may be undefined so far.
    """
    if workload.evaluate is None:
        what = f"workload {workload.name!r}: the untrained network on validation data"
        return call_user(what, validation_loss, replace(workload, metric=_NoMetric()), model)
    losses = {}
    for split in ("validation", "test"):
        value, losses[split] = _evaluated(workload, model, split)
        if math.isfinite(value):
            checked_value(workload, value, f"of the untrained network on {split} data")
    return losses["validation"]


def _losses(workload: Workload, before: float | None, trained: Trained) -> DenseLosses | None:
    """Those before and after a training, if there are any."""
    if before is None:
        return None
    if workload.evaluate is None:
        return DenseLosses(before, trained.scores.loss)
    after = _evaluated(workload, trained.model, "validation")[1]
    return None if after is None else DenseLosses(before, after)


def _start(workload: Workload, model: nn.Module, seed: int, watcher: ProgressReporter) -> str | None:
    """What training starts from, as part of a key; None if the model is already trained."""
    first, other = weights_fingerprint(model), _built(workload, seed + 1)
    if not same_weights(model, other):
        return first if same_weights(model, _built(workload, seed)) else "drawn anew each time"
    if workload.train_dense:
        return first
    said = f"{workload.name}: build_model returns the same weights under every seed"
    if outperforms_shuffled(workload, model, lambda *given: _share(workload.metric, *given)):
        watcher.note(
            f"{said}, and they do the task: they are taken as the dense model; train_dense=True in the workload would "
            "train them further"
        )
        return None
    watcher.note(
        f"{said}, but they do the task no better than shuffled ones: the dense model is trained from them; weights="
        f"{AS_BUILT!r} in the workload would take them as they are"
    )
    return first


def _cached_or_trained(
    workload: Workload, model: nn.Module, start: str, seed: int, cache: Path, watcher: ProgressReporter, train: bool
) -> tuple[nn.Module, float] | None:
    """The dense model and the seconds it took to train; None if it would have to be trained and may not be."""
    recipe = workload.recipe.to_dict()
    of_training = {k: v for k, v in recipe.items() if k not in FINE_TUNING}
    architecture, code, fit = (
        model_fingerprint(model),
        training_fingerprint(workload),
        split_fingerprint(workload, "fit"),
    )
    refreshed = ["refreshed"] if learning_norms(model) else []
    precision = [] if workload.placement.precision == FLOAT32 else [workload.placement.precision]
    key = digest(architecture, code, fit, of_training, seed, start, *refreshed, *precision)
    path = cache / f"dense-{key}.safetensors"
    cached = _cached(model, path)
    if cached is None and not precision and (old := old_dense_key(architecture, workload, of_training, seed)):
        cached = _cached(model, cache / f"dense-{old}.safetensors")
    if cached is not None:
        found, losses = cached
        _tell(losses, workload, watcher)
        return found, 0.0
    if not train:
        return None
    require_ends(workload, ("validation", "test"), watcher)
    before = _untrained_loss(workload, model)
    trained = _trained(workload, copy.deepcopy(model), seed, watcher)
    losses = _losses(workload, before, trained)
    save_model(trained.model, Structure({}), path, losses.to_metadata() if losses else {})
    _tell(losses, workload, watcher)
    return trained.model, trained.seconds_training + trained.seconds_scoring


def _tell(losses: DenseLosses | None, workload: Workload, watcher: ProgressReporter) -> None:
    """Where the dense model's training was of no use."""
    if losses and (note := losses.note(workload.recipe)):
        watcher.note(note)


def _trained(workload: Workload, model: nn.Module, seed: int, watcher: ProgressReporter) -> Trained:
    """Train this model on fit data; its metric may be undefined before that."""
    what = f"training the dense model of {workload.name!r}"
    unscored = _unscored if workload.evaluate else None
    tolerant = replace(workload, build_model=lambda: model, metric=_NoMetric(), evaluate=unscored)
    try:
        with (
            kept_so_far(lambda: "no step of the dense model's training is kept"),
            watcher.stage(f"training the dense model of {workload.name}") as progress,
        ):
            return call_user(what, train_dense, tolerant, seed, progress)
    except UsageError as error:
        if isinstance(error.__cause__, Diverged):
            rate = f"give its recipe a dense_learning_rate below {workload.recipe.dense_learning_rate:g}"
            raise UsageError(f"{what} failed: {error.__cause__}: {rate}") from None
        raise


class _NoMetric:
    """In place of a metric that may be undefined for a network that is not trained yet."""

    def reset(self) -> None: ...

    def update(self, outputs: Any, targets: Any) -> None: ...

    def compute(self) -> float:
        return math.nan


def _unscored(model: nn.Module, split: str, run: Run) -> dict[str, float]:
    """In place of an `evaluate`, likewise."""
    return {SHARE.name: 0.0, LOSS: 0.0}


def _share(metric: Any, outputs: Any, targets: Any) -> float:
    """The metric as a share; NaN where it is undefined."""
    try:
        return share_of(metric, computed(metric, outputs, targets))
    except Exception:
        return math.nan


def holds_nan(outputs: Any) -> bool:
    """Whether a network's outputs hold NaN."""
    return any(bool(tensor.isnan().any()) for tensor in tensors_in(outputs) if tensor.is_floating_point())


def _refuse_nan(workload: Workload, model: nn.Module, source: str | Path | None) -> NoReturn:
    """The usual cause of a dense model that returns NaN is a negative variance among its weights."""
    of = f"weights {Path(source).name}: " if source else ""
    causes = [
        f"{name!r} holds {float(buffer.min()):g}, a negative variance"
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] == "running_var" and buffer.numel() and float(buffer.min()) < 0
    ]
    raise UsageError(
        f"{of}workload {workload.name!r}: the dense model gives NaN on validation data: "
        f"{causes[0] if causes else 'its weights overflow, or it divides by zero'}; train it again"
    )


def masks_note(path: Path, masks: Mapping[str, Tensor]) -> str:
    """What the user should know about the masks that `load_user_weights` found in a file."""
    zeros = achieved_sparsity(torch.cat([mask.flatten() for mask in masks.values()]))
    return (
        f"weights {path.name}: tensors pruned by torch.nn.utils.prune: {len(masks)}, taken as original x mask, "
        f"{percent(zeros)} of their elements zero; the masks are not held, so these may train again"
    )


def _cached(model: nn.Module, path: Path) -> tuple[nn.Module, DenseLosses | None] | None:
    """The dense model of a file, and its losses if they are known; None without one that is in order."""
    if not path.is_file():
        return None
    try:
        found = load_model(model, path)[0]
    except Refused as error:
        log.warning("%s; training the dense model again", printable(error))
        return None
    return found, DenseLosses.from_metadata(metadata_of(path))


def build_model(workload: Workload, seed: int) -> nn.Module:
    """An untrained model of the workload, on its device, that runs on all splits and suits loss and metric.

    Raises:
        UsageError: it does not, or the metric is outside its range; the cause is named.
    """
    training_fingerprint(workload)  # before its functions have run
    model = _built(workload, seed)
    check_run(workload, model)
    return model


def _built(workload: Workload, seed: int) -> nn.Module:
    with seeded(seed):
        model = call_user(f"workload {workload.name!r}: build_model", workload.build_model)
    check_model(workload, model)
    model_fingerprint(model)  # as it is before it runs
    return model.to(workload.placement.device)
