"""Training of one network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.calibration import Calibration
from pruning.channels.graph import ChannelGraph
from pruning.channels.structure import Structure, apply_structure
from pruning.copying import copy_model
from pruning.gradual import GradualPruner, pruned_at_once
from pruning.schedule import cycle_at
from pruning.straight_through import StraightThrough, straight_through
from pruning.trees import NetworkInputs, contents, run
from search.records import CurvePoint
from search.training.examples import batches, calibration_of, epoch_steps, step_count
from search.training.losses import StepLosses
from search.training.optimizers import forget_masked_, make_optimizer
from search.training.own_loop import PARTS, trained_by_user
from search.training.own_scores import Metrics, require_finite
from search.training.rate import peak_rate
from search.training.scoring import score
from search.training.stored import Finish, Finished, finish_, finish_dense_
from search.training.trained import UNSEEN, Progress, Trained, subnormals_as_zero
from search.workloads.base import Workload
from search.workloads.recipe import one_cycle
from search.workloads.run import DENSE, TRIAL
from spaces.cost.footprint import dense_footprint, footprint
from spaces.policy import PruningPolicy
from spaces.validation import unknown
from spaces.wording import counted

FINE_TUNE, SCRATCH = "fine-tune", ("scratch-e", "scratch-b")
FRESH_SEED = 2**40
"""Added to the seed of fresh weights, so that they never equal the initial weights of a dense model."""
TRAININGS = (FINE_TUNE, *SCRATCH)
"""How a policy's network gets its weights."""


def train_dense(workload: Workload, seed: int, progress: Progress | None = None) -> Trained:
    """Train the workload's model from fresh weights on fit data; `seed` decides weights, order and augmentation."""
    torch.manual_seed(seed)
    model = _built(workload)
    recipe, finish = workload.recipe, partial(finish_dense_, workload=workload)
    epochs, rate = recipe.dense_epochs, recipe.dense_learning_rate
    return _train(model, None, None, finish, workload, epochs, rate, seed, progress, DENSE, None)


def fine_tune(
    dense: nn.Module,
    policy: PruningPolicy,
    workload: Workload,
    graph: ChannelGraph,
    epochs: float,
    seed: int,
    progress: Progress | None = None,
    stage: str = TRIAL,
) -> Trained:
    """Prune a copy of `dense` along the policy's schedule while fine-tuning it on fit data.

    Args:
        stage: what a training loop of the user's own is told it is for.

    Raises:
        Diverged: the loss became NaN or infinite.
        ValueError: a removal that cannot equal its mask.
    """
    model = copy_model(dense)
    calibration = calibration_of(workload)
    pruner = _pruner(model, policy, epochs, workload, graph, calibration)
    finish = partial(finish_, policy=policy, workload=workload, graph=graph)
    seen, began = straight_through(policy.bits), time.perf_counter()
    rate = peak_rate(dense, policy, workload, graph, calibration)
    looked = time.perf_counter() - began
    trained = _train(model, pruner, seen, finish, workload, epochs, rate, seed, progress, stage, dense)
    return replace(trained, rate=rate, seconds_scoring=trained.seconds_scoring + looked)


def prune_only(dense: nn.Module, policy: PruningPolicy, workload: Workload, graph: ChannelGraph) -> Trained:
    """Apply all of the policy to a copy of `dense` at once, train nothing but running statistics, and score the result.

    The network ends in the form that its file stores, as trained ones do.

    Raises:
        Diverged: the validation loss is NaN or infinite.
        ValueError: a removal that cannot equal its mask.
    """
    calibration = calibration_of(workload)
    pruner = pruned_at_once(copy_model(dense), policy, graph, calibration)
    began = time.perf_counter()
    done = finish_(pruner.model, pruner.structure, policy, workload, graph)
    scores = score(pruner.model, "validation", workload)
    require_finite(scores, workload, "without training")
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
    stage: str = TRIAL,
) -> Trained:
    """Train the network that a policy makes of `dense` from fresh weights, with the recipe of the dense training.

    What is removed is chosen on the trained `dense`, as in one-shot pruning; none of its weights is kept.

    Args:
        training: `scratch-e` trains for as many epochs as the dense model; `scratch-b` for as much compute, so for more
            epochs in proportion as the network has fewer MACs (Liu et al., arXiv 1810.05270). Masks save no MACs.
        stage: as of `fine_tune`.

    Raises:
        Diverged: the loss became NaN or infinite.
        ValueError: a removal that cannot equal its mask.
    """
    recipe, epochs = workload.recipe, scratch_epochs(workload, policy, graph, training)
    calibration = calibration_of(workload)
    pruner = pruned_at_once(copy_model(dense), policy, graph, calibration)
    torch.manual_seed(FRESH_SEED + seed)
    fresh = apply_structure(_built(workload), pruner.structure)
    pruner.model.load_state_dict(fresh.state_dict())
    pruner.hold()
    finish = partial(finish_, policy=policy, workload=workload, graph=graph)
    seen, rate = straight_through(policy.bits), recipe.dense_learning_rate
    return _train(pruner.model, pruner, seen, finish, workload, epochs, rate, seed, progress, stage, dense)


def scratch_epochs(workload: Workload, policy: PruningPolicy, graph: ChannelGraph, training: str) -> float:
    """Epochs of `scratch-e` and `scratch-b`."""
    if training not in SCRATCH:
        raise ValueError(unknown("training", training, SCRATCH))
    if training == "scratch-e":
        return workload.recipe.dense_epochs
    left = footprint(graph.network, policy).macs
    return workload.recipe.dense_epochs * dense_footprint(graph.network).macs / max(left, 1)


def _built(workload: Workload) -> nn.Module:
    """Fresh weights, drawn on the CPU wherever they go."""
    return in_fast_layout(workload.build_model().to(workload.placement.device), workload.example_input)


def in_fast_layout(model: nn.Module, example_input: NetworkInputs) -> nn.Module:
    """The model in channels_last, in which convolutions run faster; moved in place.

    Models that do not run in this layout (a `view` may need the default one) stay as they are. On a CPU, so do models
    with a strided 1x1 convolution: after channels are removed, its backward pass in channels_last writes outside its
    memory for odd channel counts (PyTorch 2.14 with oneDNN 3.12).
    """
    strided = any(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 for m in model.modules())
    if (strided and example_input.device.type == "cpu") or not _runs(copy_model(model), example_input):
        return model
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def _runs(model: nn.Module, example_input: NetworkInputs) -> bool:
    try:
        run(model.eval().to(memory_format=torch.channels_last), example_input)
        return True
    except RuntimeError:
        return False


def _pruner(
    model: nn.Module,
    policy: PruningPolicy,
    epochs: float,
    workload: Workload,
    graph: ChannelGraph,
    calibration: Calibration | None,
) -> GradualPruner:
    steps, theirs = step_count(workload, epochs), workload.train is not None
    return GradualPruner(model, policy, steps or PARTS, graph, calibration, in_place=theirs)


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
    stage: str,
    dense: nn.Module | None,
) -> Trained:
    """Train by our loop, or by the user's own."""
    if workload.train is None:
        return _train_ourselves(model, pruner, seen, finish, workload, epochs, peak, seed, progress)
    return trained_by_user(model, pruner, seen, finish, workload, epochs, peak, seed, progress, stage, dense)


@subnormals_as_zero()
def _train_ourselves(
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
    recipe, per_epoch = workload.recipe, epoch_steps(workload)
    steps = max(1, round(epochs * per_epoch))
    torch.manual_seed(seed)  # dropout and the like
    schedule = pruner.schedule if pruner else None
    regrow = schedule is not None and schedule.regrow
    optimizer = make_optimizer(model, recipe, regrow)
    curve: list[CurvePoint] = []
    losses, scaler = StepLosses(at_once=workload.placement.on_cpu), workload.placement.scaler()
    scores: Metrics | None = None
    scoring, done = 0.0, Finished()
    began = time.perf_counter()
    for step, (inputs, targets) in enumerate(batches(workload, steps, seed)):
        if pruner and _advanced(pruner, step, losses):
            model = pruner.model
            optimizer = make_optimizer(model, recipe, regrow)
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(*cycle_at(step, steps, schedule), peak, recipe.warmup)
        scales = _norm_scales(model) if recipe.bn_l1 and not (pruner and pruner.settled) else []
        view = seen.seen_by(model) if seen and step >= UNSEEN * steps else nullcontext()
        _step(model, optimizer, workload, inputs, targets, losses, scales, view, scaler)
        if pruner:
            pruner.hold()
            if regrow:
                forget_masked_(optimizer, model, pruner.masks)
        if progress:
            progress(step + 1, steps)
        if (step + 1) % per_epoch == 0 or step + 1 == steps:
            mean = losses.mean()
            if pruner and step + 1 == steps and pruner.advance(steps):
                model = pruner.model
            entered = time.perf_counter()
            if step + 1 == steps:
                structure = pruner.structure if pruner else Structure({})
                done = finish(model, structure)
            scores = score(model, "validation", workload)
            scoring += time.perf_counter() - entered
            curve.append(CurvePoint((step + 1) / per_epoch, mean, scores.loss, scores.accuracy))
    assert scores is not None  # of the last step
    require_finite(scores, workload, f"after {counted(steps, 'step')}")
    model.eval()
    training = time.perf_counter() - began - scoring
    scoring -= done.seconds_writing
    return Trained(model, structure, tuple(curve), scores, training, scoring, **vars(done))


def _advanced(pruner: GradualPruner, step: int, losses: StepLosses) -> bool:
    """`pruner.advance(step)`; weights it refuses are told by the step at which the loss was lost, if that was first."""
    try:
        return pruner.advance(step)
    except ValueError:
        losses.look()
        raise


def _norm_scales(model: nn.Module) -> list[nn.Parameter]:
    """The trainable scales of all BatchNorms."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm) and module.affine)
    return [norm.weight for norm in norms if norm.weight.requires_grad]


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    workload: Workload,
    inputs: NetworkInputs,
    targets: Any,
    losses: StepLosses,
    scales: Sequence[nn.Parameter],
    view: AbstractContextManager[None],
    scaler: GradScaler | None,
) -> None:
    """One optimizer step; the gradient includes the recipe's L1 norm of `scales`, the loss that is added does not.

    Loss and gradient are those of the model within `view`. A `scaler` leaves out steps whose gradients overflowed.
    """
    placement = workload.placement
    with view:
        with placement.autocast():
            outputs = run(model, inputs)
        loss = workload.loss(placement.widened(outputs), contents(targets))
        losses.add(loss)
        optimizer.zero_grad()
        (scaler.scale(loss) if scaler else loss).backward()
    if scaler:
        scaler.unscale_(optimizer)
    for scale in scales:
        if scale.grad is not None:
            scale.grad.add_(scale.detach().sign(), alpha=workload.recipe.bn_l1)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
