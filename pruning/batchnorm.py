"""BatchNorm recalibration: running statistics that fit the weights as they are now."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase  # of BatchNorm, SyncBatchNorm and InstanceNorm
from torch.nn.parameter import is_lazy

from pruning.own_norms import OwnNorm, OwnStatistics, has_own_statistics
from pruning.trees import NetworkInputs, run

LearningNorm = _NormBase | OwnNorm


def learning_norms(model: nn.Module) -> list[LearningNorm]:
    """The norms whose running statistics training moves, or would move with a momentum above 0.

    The user's own norms are included if they have the interface, see `pruning.own_norms`. Norms without statistics are
    left out, and so are frozen ones: by `track_running_stats`, or by a `train` method of the model that leaves them in
    evaluation mode. The training flags are restored.
    """
    if not any(isinstance(module, _NormBase) or has_own_statistics(module) for module in model.modules()):
        return []
    with _flags_restored(model):
        model.train()
        return [
            module
            for module in model.modules()
            if (isinstance(module, _NormBase) or has_own_statistics(module))
            and module.training
            and getattr(module, "track_running_stats", True)
            and all(
                isinstance(kept, Tensor) and not is_lazy(kept) for kept in (module.running_mean, module.running_var)
            )
        ]


def _mean_and_var(norm: _NormBase) -> tuple[Tensor, Tensor]:
    """The statistics that every one of `learning_norms` has."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    return mean, var


@torch.no_grad()
def recalibrate_(model: nn.Module, batches: Iterable[NetworkInputs], see: Callable[[Any], None] | None = None) -> int:
    """Replace the running statistics of all `learning_norms` by their plain average over `batches`, in place.

    Weights do not change, dropout stays off, momentum and training flags are restored. A norm that no pass moves (in a
    head used only in training) keeps its statistics, and all norms do if the model fails; without norms nothing runs.

    Args:
        batches: inputs with at least two values for each channel, from fit or calibration data.
        see: called with the outputs of each pass, in which every norm knows the statistics of that batch alone.

    Returns:
        The number of norms recalibrated.

    Raises:
        ValueError: `batches` is empty.
    """
    found = learning_norms(model)
    if not found:
        return 0
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("recalibration needs at least one batch of inputs, got none")
    before, owned = norm_statistics(found), {norm: dict(norm._buffers) for norm in found}
    norms = [norm for norm in found if isinstance(norm, _NormBase)]
    others: dict[nn.Module, OwnStatistics] = {norm: OwnStatistics(norm) for norm in found if has_own_statistics(norm)}
    momenta, calls = {norm: norm.momentum for norm in norms}, dict.fromkeys(norms, 0)
    averages: dict[_NormBase, list[Tensor]] = {}
    moved: list[nn.Module] = []
    taken: list[nn.Module] = []

    def average(norm: _NormBase, given: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        norm.momentum = share = 1 / calls[norm]  # the average so far; None would do with a counter only
        if given and has_own_forward(norm):
            dims = [dim for dim in range(given[0].dim()) if dim != 1]
            var, mean = torch.var_mean(given[0].float(), dims)
            old = averages.setdefault(norm, [mean, var])
            averages[norm] = [torch.lerp(one, new, share) for one, new in zip(old, (mean, var), strict=True)]

    hooks = [norm.register_forward_pre_hook(average) for norm in norms]
    try:
        with _flags_restored(model):
            model.eval()
            for norm in norms:
                if not has_own_forward(norm):  # which may always use the statistics that it has
                    mean, var = _mean_and_var(norm)
                    mean.zero_()
                    var.fill_(1)
                if isinstance(norm.num_batches_tracked, Tensor):
                    norm.num_batches_tracked.zero_()
                norm.train()
            for other in others:
                other.train()
            reset = norm_statistics(norms)
            for batch in chain([first], batches):
                outputs = run(model, batch)
                if see:
                    see(outputs)
        moved = [norm for norm in norms if calls[norm] and not _equal(norm, reset[norm])]
        for norm, found_here in averages.items():
            if norm in moved:
                for kept, new in zip(_mean_and_var(norm), found_here, strict=True):
                    kept.copy_(new)
        taken = [norm for norm, own in others.items() if own.take_()]
    except BaseException:
        moved, taken = [], []
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for own in others.values():
            own.leave()
        for learning, buffers in owned.items():
            _put_back_(learning, buffers)
        restore_statistics_({norm: kept for norm, kept in before.items() if norm not in {*moved, *taken}})
    return len(moved) + len(taken)


def _put_back_(norm: nn.Module, buffers: dict[str, Tensor | None]) -> None:
    """If a norm replaced its buffers, give it the same tensors again with the new values; others may hold them."""
    for name, tensor in buffers.items():
        now = norm._buffers.get(name)
        if tensor is not None and now is not None and now is not tensor and now.shape == tensor.shape:
            norm._buffers[name] = tensor.copy_(now)


def has_own_forward(norm: nn.Module) -> bool:
    """Whether its forward method is the user's, which may update statistics by a momentum of its own."""
    return isinstance(norm, _BatchNorm) and not type(norm).forward.__module__.startswith("torch.")


Statistics = dict[nn.Module, dict[str, Tensor]]
"""Norm -> its buffers by name."""


def norm_statistics(norms: Iterable[nn.Module]) -> Statistics:
    """Copies of the norms' running statistics."""
    return {norm: {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms}


@torch.no_grad()
def restore_statistics_(statistics: Statistics) -> None:
    """Undo what happened to running statistics since `norm_statistics`."""
    for norm, buffers in statistics.items():
        for name, buffer in norm.named_buffers(recurse=False):
            buffer.copy_(buffers[name])


@torch.no_grad()
def refresh_(model: nn.Module, batches: Iterable[NetworkInputs], loss: Callable[[], float]) -> bool | None:
    """Recalibrate, but keep the former statistics if they give the smaller loss.

    A running average with a small momentum has hardly moved after a short fine-tune; but the average over a few
    examples is worse than statistics gathered in a long training.

    Args:
        model: changed in place, but only in its running statistics.
        batches: as in `recalibrate_`.
        loss: of the model as it is, on data apart from `batches` and from what it will be compared on.

    Returns:
        Whether the new statistics were kept; None if the model has none that move.
    """
    norms = learning_norms(model)
    if not norms:
        return None
    before, loss_before = norm_statistics(norms), loss()
    recalibrate_(model, batches)
    if math.isnan(loss_before) or loss() <= loss_before:
        return True
    restore_statistics_(before)
    return False


def _equal(norm: nn.Module, statistics: dict[str, Tensor]) -> bool:
    return all(torch.equal(getattr(norm, name), statistics[name]) for name in ("running_mean", "running_var"))


@contextmanager
def _flags_restored(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        model.train(training[model])  # modules that do more than set the flag do it
        for module, flag in training.items():
            module.training = flag
