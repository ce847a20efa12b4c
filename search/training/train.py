"""Training and scoring of one network: the only loops over data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.batches import examples_at_once
from pruning.calibration import Calibration
from pruning.channels.graph import ChannelGraph
from pruning.channels.structure import Structure, apply_structure
from pruning.copying import copy_model
from pruning.gradual import GradualPruner, pruned_at_once
from pruning.outputs import join_batches
from pruning.schedule import cycle_at
from pruning.straight_through import StraightThrough, straight_through
from search.records import CurvePoint, WrittenFile
from search.training.optimizers import forget_masked_, make_optimizer
from search.training.rate import peak_rate
from search.training.stored import Finish, Finished, finish_, finish_dense_
from search.workloads.base import Workload
from search.workloads.recipe import one_cycle
from search.workloads.splits import Split
from spaces.cost.footprint import dense_footprint, footprint
from spaces.policy import PruningPolicy
from spaces.validation import unknown

FINE_TUNE, SCRATCH = "fine-tune", ("scratch-e", "scratch-b")
FRESH_SEED = 2**40
"""Added to the seed of fresh weights, so that they never equal the initial weights of a dense model."""
TRAININGS = (FINE_TUNE, *SCRATCH)
"""How a policy's network gets its weights."""
UNSEEN = 0.5
"""Share of a training after which its passes see weights of few bits rounded; seeing them from the first step on costs
heavily pruned networks up to a point.
"""
Progress = Callable[[int, int], None]
"""Called with (steps done, total steps)."""


class Diverged(Exception):
    """The loss became NaN or infinite; the message names the step."""


@dataclass(frozen=True)
class Metrics:
    """Mean loss and metric of a model on a split."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Trained:
    """A trained network: what was removed from the dense one, its loss curve, and its scores on validation data.

    `statistics` says which running statistics it is scored with, see `refresh_statistics_`. A network of a policy that
    rounds weights is in stored form, the one that `file` holds; `file` is None for others. `rate` is the peak learning
    rate of a fine-tune.
    """

    model: nn.Module
    structure: Structure
    curve: tuple[CurvePoint, ...]
    scores: Metrics
    seconds_training: float
    seconds_scoring: float
    statistics: str | None = None
    file: WrittenFile | None = None
    seconds_writing: float = 0.0
    rate: float | None = None


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor) -> Any:
    """Outputs of all examples of a split in eval mode, joined; the model's training flags are unchanged."""
    was_training = model.training
    model.eval()
    try:
        batches = inputs.split(examples_at_once(model, inputs))
        return join_batches([model(batch) for batch in batches], [len(batch) for batch in batches])
    finally:
        model.train(was_training)


@torch.no_grad()
def score(model: nn.Module, split: Split, workload: Workload) -> Metrics:
    """Loss and metric on a split."""
    outputs = predict(model, split[0])
    return Metrics(float(workload.loss(outputs, split[1])), float(workload.metric(outputs, split[1])))


def train_dense(workload: Workload, seed: int, progress: Progress | None = None) -> Trained:
    """Train the workload's model from fresh weights on fit data; `seed` decides weights, order and augmentation."""
    torch.manual_seed(seed)
    model = in_fast_layout(workload.build_model(), workload.example_input)
    recipe, finish = workload.recipe, partial(finish_dense_, workload=workload)
    return _train(model, None, None, finish, workload, recipe.dense_epochs, recipe.dense_learning_rate, seed, progress)


def fine_tune(
    dense: nn.Module,
    policy: PruningPolicy,
    workload: Workload,
    graph: ChannelGraph,
    epochs: float,
    seed: int,
    progress: Progress | None = None,
) -> Trained:
    """Prune a copy of `dense` along the policy's schedule while fine-tuning it on fit data.

    Raises:
        Diverged: the loss became NaN or infinite.
        ValueError: a removal that cannot equal its mask.
    """
    model = copy_model(dense)
    calibration = Calibration(*workload.calibration, workload.loss)
    pruner = GradualPruner(model, policy, step_count(workload, epochs), graph, calibration)
    finish = partial(finish_, policy=policy, workload=workload, graph=graph)
    seen, began = straight_through(policy.bits), time.perf_counter()
    rate = peak_rate(dense, policy, workload, graph, calibration)
    looked = time.perf_counter() - began
    trained = _train(model, pruner, seen, finish, workload, epochs, rate, seed, progress)
    return replace(trained, rate=rate, seconds_scoring=trained.seconds_scoring + looked)


def prune_only(dense: nn.Module, policy: PruningPolicy, workload: Workload, graph: ChannelGraph) -> Trained:
    """Apply all of the policy to a copy of `dense` at once, train nothing but running statistics, and score the result.

    The network ends in the form that its file stores, as trained ones do.

    Raises:
        Diverged: the validation loss is NaN or infinite.
        ValueError: a removal that cannot equal its mask.
    """
    calibration = Calibration(*workload.calibration, workload.loss)
    pruner = pruned_at_once(copy_model(dense), policy, graph, calibration)
    began = time.perf_counter()
    done = finish_(pruner.model, pruner.structure, policy, workload, graph)
    scores = score(pruner.model, workload.validation, workload)
    if not math.isfinite(scores.loss):
        raise Diverged(f"validation loss is {scores.loss} without training")
    scoring = time.perf_counter() - began - done.seconds_writing
    return Trained(pruner.model.eval(), pruner.structure, (), scores, 0.0, scoring, **vars(done))


def train_fresh(
    dense: nn.Module,
    policy: PruningPolicy,
    workload: Workload,
    graph: ChannelGraph,
    training: str,
    seed: int,
    progress: Progress | None = None,
) -> Trained:
    """Train the network that a policy makes of `dense` from fresh weights, with the recipe of the dense training.

    What is removed is chosen on the trained `dense`, as in one-shot pruning; none of its weights is kept.

    Args:
        training: `scratch-e` trains for as many epochs as the dense model; `scratch-b` for as much compute, so for more
            epochs in proportion as the network has fewer MACs (Liu et al., arXiv 1810.05270). Masks save no MACs.

    Raises:
        Diverged: the loss became NaN or infinite.
        ValueError: a removal that cannot equal its mask.
    """
    recipe, epochs = workload.recipe, scratch_epochs(workload, policy, graph, training)
    calibration = Calibration(*workload.calibration, workload.loss)
    pruner = pruned_at_once(copy_model(dense), policy, graph, calibration)
    torch.manual_seed(FRESH_SEED + seed)
    fresh = apply_structure(in_fast_layout(workload.build_model(), workload.example_input), pruner.structure)
    pruner.model.load_state_dict(fresh.state_dict())
    pruner.hold()
    finish = partial(finish_, policy=policy, workload=workload, graph=graph)
    seen = straight_through(policy.bits)
    return _train(pruner.model, pruner, seen, finish, workload, epochs, recipe.dense_learning_rate, seed, progress)


def scratch_epochs(workload: Workload, policy: PruningPolicy, graph: ChannelGraph, training: str) -> float:
    """Epochs of `scratch-e` and `scratch-b`."""
    if training not in SCRATCH:
        raise ValueError(unknown("training", training, SCRATCH))
    if training == "scratch-e":
        return workload.recipe.dense_epochs
    left = footprint(graph.network, policy).macs
    return workload.recipe.dense_epochs * dense_footprint(graph.network).macs / max(left, 1)


def in_fast_layout(model: nn.Module, example_input: Tensor) -> nn.Module:
    """The model in channels_last, in which convolutions on a CPU run faster; moved in place.

    Models that do not run in this layout (a `view` may need the default one) stay as they are. So do models with a
    strided 1x1 convolution: after channels are removed, its backward pass in channels_last writes outside its memory
    for odd channel counts (PyTorch 2.14 with oneDNN 3.12).
    """
    strided = any(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 for m in model.modules())
    if strided or not _runs(copy_model(model), example_input):
        return model
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def _runs(model: nn.Module, example_input: Tensor) -> bool:
    try:
        model.eval().to(memory_format=torch.channels_last)(example_input)
        return True
    except RuntimeError:
        return False


def step_count(workload: Workload, epochs: float) -> int:
    """The number of optimizer steps in that many epochs, at least 1."""
    return max(1, round(epochs * _epoch_steps(workload)))


def _epoch_steps(workload: Workload) -> int:
    return max(1, len(workload.fit[0]) // workload.recipe.batch)


@contextmanager
def _subnormals_as_zero() -> Iterator[None]:
    """Treat subnormal numbers as zero: decayed weights near zero slow CPU kernels down many times."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_subnormals_as_zero()
def _train(
    model: nn.Module,
    pruner: GradualPruner | None,
    seen: StraightThrough | None,
    finish: Finish,
    workload: Workload,
    epochs: float,
    peak: float,
    seed: int,
    progress: Progress | None,
) -> Trained:
    recipe, per_epoch = workload.recipe, _epoch_steps(workload)
    steps = step_count(workload, epochs)
    torch.manual_seed(seed)  # dropout and the like
    schedule = pruner.schedule if pruner else None
    regrow = schedule is not None and schedule.regrow
    optimizer = make_optimizer(model, recipe, regrow)
    curve: list[CurvePoint] = []
    losses: list[float] = []
    scores: Metrics | None = None
    scoring, done = 0.0, Finished()
    began = time.perf_counter()
    for step, (inputs, targets) in enumerate(batches(workload, steps, seed)):
        if pruner and pruner.advance(step):
            model = pruner.model
            optimizer = make_optimizer(model, recipe, regrow)
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(*cycle_at(step, steps, schedule), peak, recipe.warmup)
        scales = _norm_scales(model) if recipe.bn_l1 and not (pruner and pruner.settled) else []
        view = seen.seen_by(model) if seen and step >= UNSEEN * steps else nullcontext()
        losses.append(_step(model, optimizer, workload, inputs, targets, step, scales, view))
        if pruner:
            pruner.hold()
            if regrow:
                forget_masked_(optimizer, model, pruner.masks)
        if progress:
            progress(step + 1, steps)
        if (step + 1) % per_epoch == 0 or step + 1 == steps:
            if pruner and step + 1 == steps and pruner.advance(steps):
                model = pruner.model
            entered = time.perf_counter()
            if step + 1 == steps:
                structure = pruner.structure if pruner else Structure({})
                done = finish(model, structure)
            scores = score(model, workload.validation, workload)
            scoring += time.perf_counter() - entered
            curve.append(CurvePoint((step + 1) / per_epoch, sum(losses) / len(losses), scores.loss, scores.accuracy))
            losses = []
    assert scores is not None  # of the last step
    if not math.isfinite(scores.loss):
        raise Diverged(f"validation loss is {scores.loss} after {steps} steps")
    model.eval()
    training = time.perf_counter() - began - scoring
    scoring -= done.seconds_writing
    return Trained(model, structure, tuple(curve), scores, training, scoring, **vars(done))


def _norm_scales(model: nn.Module) -> list[nn.Parameter]:
    """The trainable scales of all BatchNorms."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm) and module.affine)
    return [norm.weight for norm in norms if norm.weight.requires_grad]


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    workload: Workload,
    inputs: Tensor,
    targets: Tensor,
    step: int,
    scales: Sequence[nn.Parameter],
    view: AbstractContextManager[None],
) -> float:
    """One optimizer step; the gradient includes the recipe's L1 norm of `scales`, the returned loss does not.

    Loss and gradient are those of the model within `view`.
    """
    with view:
        loss = workload.loss(model(inputs), targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"training loss is {value} at step {step}")
        optimizer.zero_grad()
        loss.backward()
    for scale in scales:
        if scale.grad is not None:
            scale.grad.add_(scale.detach().sign(), alpha=workload.recipe.bn_l1)
    optimizer.step()
    return value


def batches(workload: Workload, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in the same order, with the same augmentation, for the same seed, whatever is trained."""
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = workload.fit
    per_epoch = _epoch_steps(workload)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(inputs), generator=generator)
        place = step % per_epoch * workload.recipe.batch
        picked = order[place : place + workload.recipe.batch]
        batch = inputs[picked]
        if workload.augment is not None:
            batch = workload.augment(batch, generator)
        yield batch, targets[picked]
