"""What is tried out before anything is trained: model, loss and metric, on examples of each split."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pruning.calibration import evenly_spaced
from pruning.outputs import describe, join_batches, map_tensors, on_cpu, tensors_in
from pruning.trees import NetworkInputs, contents, run
from pruning.unsupported import check_kind
from search.errors import UsageError
from search.user_code.loading import call_user
from search.workloads.base import SPLITS, Workload
from search.workloads.batch_form import Batch
from search.workloads.metric_checks import shape_of, try_metric
from search.workloads.metrics import (
    NotForCrossEntropy,
    check_cross_entropy,
    check_default_metric,
    is_cross_entropy,
    is_default,
)
from search.workloads.splits import may_be_read
from search.workloads.streams import Stream

SCORED = ("validation", "calibration", "test")
"""The splits that the metric is computed on."""
LOOKED_AT = 64
"""How many examples of a split are looked at that is not in memory."""
TRIED = 8
"""How many examples of each split the untrained network is run on."""
MOST_ELEMENTS = 2**25
"""The most output numbers held at once while loss and metric are tried."""
UNBROADCAST = "that is different to the input size"
"""Part of the warning that PyTorch's regression losses give when they broadcast."""


def check_model(workload: Workload, model: object) -> None:
    """Refuse, by a `UsageError`, what is not a network that can be trained and copied."""
    name = workload.name
    if not isinstance(model, nn.Module):
        raise UsageError(f"workload {name!r}: build_model must return a torch.nn.Module, got a {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"workload {name!r}: build_model returns a scripted network, which cannot be taken apart: return the "
            "module that it was made from"
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [tensor for tensor, value in tensors if is_lazy(value)]:
        raise UsageError(
            f"workload {name!r}: {lazy[0]!r} of the network is lazy and has no shape yet: let build_model run the "
            "network once on an example before it returns it"
        )
    if meta := [tensor for tensor, value in tensors if value.is_meta]:
        raise UsageError(f"workload {name!r}: {meta[0]!r} of the network is on the device meta and holds no numbers")
    for tensor, value in tensors:
        workload.placement.refuse_types(f"workload {name!r}: {tensor!r} of the network", [value])
    try:
        check_kind(model)
    except ValueError as error:
        raise UsageError(f"workload {name!r}: {error}") from None
    if not any(True for _ in model.parameters()):
        raise UsageError(f"workload {name!r}: the network has no parameters, so there is nothing to prune")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            f"workload {name!r}: all parameters of the network are frozen, so nothing can be fine-tuned: leave "
            "requires_grad of some of them on"
        )


def check_run(workload: Workload, model: nn.Module) -> None:
    """Run the untrained network and its loss on examples of each split, and its metric on all splits but fit.

    Of a split that is not in memory, and not to be, `LOOKED_AT` examples stand for all. Within `only_the_example`,
    splits that would have to be read are left out.

    Raises:
        UsageError: any of these fails, or the metric is outside its range; the split and the cause are named.
    """
    training = model.training
    model.eval()
    try:
        outputs = _outputs(workload, model, workload.example_input, "the example input")
        first = _outputs(workload, model, workload.example_input[:1], "the first example input")
        looked_at = [split for split in SPLITS if workload.reads(split) and may_be_read(getattr(workload, split))]
        held = {split: _held(workload, split) for split in looked_at}
        for split in looked_at:
            _check_split(workload, model, split, held[split], outputs)
        for split in SCORED:
            if split in held and workload.evaluate is None:
                targets = evenly_spaced(held[split][1], _most_rows(outputs) // len(workload.example_input))
                like = _of_rows(len(targets), outputs, first, len(workload.example_input))
                try_metric(workload, on_cpu(like), contents(targets), split)
    finally:
        model.train(training)


def _held(workload: Workload, split: str) -> Batch:
    examples = workload.examples(split)
    if isinstance(examples, Stream):
        read_split(workload, split, examples.require_new_passes)
    return read_split(workload, split, examples.held, LOOKED_AT)


def read_split(workload: Workload, split: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that reads a split of the user's.

    Raises:
        UsageError: the split is no good, which the message says, or the user's code raises.
    """
    try:
        return call_user(f"workload {workload.name!r}: split {split!r}", function, *arguments)
    except UsageError as error:
        if isinstance(error.__cause__, ValueError) and str(error.__cause__).startswith("split "):
            raise UsageError(f"workload {workload.name!r}: {error.__cause__}") from None
        raise


def _outputs(workload: Workload, model: nn.Module, inputs: NetworkInputs, of: str) -> Any:
    what = f"workload {workload.name!r}: the network on {of} {shape_of(inputs)}"
    with torch.no_grad():
        outputs = call_user(what, run, model, workload.placement.put(inputs))
    if not any(True for _ in tensors_in(outputs)):
        raise UsageError(f"{what} returns {describe(outputs)}, which holds no tensor")
    return outputs


def _check_split(workload: Workload, model: nn.Module, split: str, batch: Batch, outputs: Any) -> None:
    inputs, targets = batch
    where = f"workload {workload.name!r}: split {split!r}"
    wanted = [tensor.dtype for tensor in tensors_in(contents(workload.example_input))]
    for tensor, dtype in zip(tensors_in(contents(inputs)), wanted, strict=False):
        if tensor.dtype != dtype:
            raise UsageError(f"{where} has inputs of type {tensor.dtype}, split 'fit' of {dtype}")
    named = [(name, x) for name, part in (("inputs", inputs), ("targets", targets)) for x in tensors_in(contents(part))]
    for part, tensor in named:
        workload.placement.refuse_types(f"{where}: one of its {part}", [tensor])
        if (tensor.is_floating_point() or tensor.is_complex()) and not torch.isfinite(tensor).all():
            raise UsageError(f"{where} holds NaN or infinite {part}: leave such examples out")
    problems: list[tuple[str, Callable[[], None]]] = []
    if is_cross_entropy(workload.loss):
        problems.append(("loss", lambda: _check_cross_entropy(workload, outputs, contents(targets))))
    if is_default(workload.metric) and workload.evaluate is None:
        problems.append(("metric accuracy", lambda: check_default_metric(workload.metric, outputs, contents(targets))))
    for part, check in problems:
        try:
            check()
        except ValueError as error:
            raise UsageError(f"{where} and its {part}: {error}") from None
    some, their = workload.placement.put((evenly_spaced(inputs, TRIED), evenly_spaced(targets, TRIED)))
    with torch.enable_grad() if split == "fit" else torch.no_grad():
        found = call_user(f"{where}: the network on inputs {shape_of(some)}", run, model, some)
        loss = _loss(workload, found, contents(their), where)
    if split == "fit" and not loss.requires_grad:
        raise UsageError(f"workload {workload.name!r}: its loss has no gradient, so nothing can be trained with it")
    if split == "fit" and workload.placement.deterministic:  # PyTorch refuses what has no such form
        call_user(f"workload {workload.name!r}: the gradient of its loss under --deterministic", loss.backward)
        model.zero_grad()
    if isinstance(found, Tensor) and len(found) == len(their):
        with torch.no_grad():  # every example's target, against outputs that are at hand
            rows = min(workload.recipe.batch, _most_rows(found) // len(found))
            for batch in targets.split(rows):
                wanted = workload.placement.put(contents(batch))
                _loss(workload, found[torch.arange(len(batch)) % len(found)], wanted, where)


def _check_cross_entropy(workload: Workload, outputs: Any, targets: Any) -> None:
    """`check_cross_entropy`, which asks for no metric that is there, and beside `train` and `evaluate` says what looks
    at a loss.
    """
    own = "a loss= and a metric=" if is_default(workload.metric) and workload.evaluate is None else "a loss="
    try:
        check_cross_entropy(outputs, targets, own)
    except NotForCrossEntropy as error:
        if workload.train is None or workload.evaluate is None:
            raise
        raise ValueError(
            f"{error.problem}; beside train= and evaluate=, loss= is what the scan and the learning rate look at on "
            f"calibration data: {error.remedy}, or leave out calibration="
        ) from None


def _most_rows(outputs: Any) -> int:
    """How often the examples behind these outputs may be repeated at once (at least once), times their rows."""
    elements = sum(tensor.numel() for tensor in tensors_in(outputs))
    rows = max((len(tensor) for tensor in tensors_in(outputs) if tensor.ndim), default=1)
    return max(rows, MOST_ELEMENTS // max(elements // max(rows, 1), 1))


def _of_rows(rows: int, outputs: Any, first: Any, given: int) -> Any:
    """Outputs for that many examples: those of the `given` example inputs, repeated, then filled up with the `first`
    one's.
    """
    if isinstance(outputs, Tensor):
        return outputs[torch.arange(rows * len(outputs) // given) % len(outputs)]
    whole = (rows - 1) // given
    left = rows - whole * given
    copies = [map_tensors(part, torch.clone) for part in [outputs] * whole + [first] * left]
    return join_batches(copies, [given] * whole + [1] * left)


def _loss(workload: Workload, outputs: Any, targets: Any, where: str) -> Tensor:
    what = f"{where}: its loss of {describe(outputs)} and targets {shape_of(targets)}"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loss = call_user(what, workload.loss, outputs, targets)
    if any(UNBROADCAST in str(warning.message) for warning in told):
        raise UsageError(f"{what} compares every output with every target: give both the same shape")
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UsageError(f"{what} must be a tensor of one number, got {got}: take the mean over examples")
    return loss
