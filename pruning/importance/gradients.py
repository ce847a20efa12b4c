"""Scores from derivatives of the loss: what it would change by if a parameter became zero.

Notation: w a parameter, g its gradient of the loss, h its second derivative. Every function maps parameter names,
biases and norms included, to float tensors (batches, *shape of the parameter); if there is one estimate for all batches
(all functions but `taylor_products`), the first dimension is 1. Frozen parameters count like others. BatchNorm is in
eval mode throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning.batches import examples_at_once
from pruning.calibration import SCORE_BATCH, Calibration
from pruning.modules import observed
from pruning.trees import NetworkInputs, contents, run_with

HUTCHINSON_PROBES = 2
"""Random vectors a batch; each costs a pass forward and two back."""
GRADIENT_ELEMENTS = 2**26
"""Elements of single examples' gradients held at once: as many examples as fit are differentiated together."""

Parameters = dict[str, Tensor]
Batch = tuple[NetworkInputs, Any]
_Loss = Callable[[Mapping[str, Tensor], NetworkInputs, Any], Tensor]


def taylor_squares(model: nn.Module, calibration: Calibration) -> Parameters:
    """The sum over batches of (g w)^2, Molchanov et al., CVPR 2019, for single parameters."""
    with _differentiable(model, calibration) as (loss, parameters, at_once):
        totals = {name: torch.zeros_like(w)[None] for name, w in parameters.items()}
        for batch in calibration.batches():
            for name, g in _batch_gradients(loss, parameters, batch, at_once).items():
                totals[name] += (g * parameters[name].detach()).square()
        return totals


def taylor_products(model: nn.Module, calibration: Calibration) -> Parameters:
    """g w of every batch: to first order, minus the change of its loss by removing the parameter."""
    with _differentiable(model, calibration) as (loss, parameters, at_once):
        found = [_batch_gradients(loss, parameters, batch, at_once) for batch in calibration.batches()]
        return {name: torch.stack([g[name] * w.detach() for g in found]) for name, w in parameters.items()}


def obd_fisher(model: nn.Module, calibration: Calibration) -> Parameters:
    """0.5 h w^2 of LeCun et al. 1989 with h the mean over single examples of g^2 (the empirical Fisher)."""
    with _differentiable(model, calibration) as (loss, parameters, at_once):
        totals = {name: torch.zeros_like(w) for name, w in parameters.items()}
        count = max(1, GRADIENT_ELEMENTS // max(1, sum(w.numel() for w in parameters.values())))
        count = min(count, at_once)
        for inputs, targets in calibration.batches():
            for part in zip(inputs.split(count), targets.split(count), strict=True):
                for name, squares in _sums_of_squares(loss, parameters, *part).items():
                    totals[name] += squares
        return _obd(parameters, {name: total / len(calibration.inputs) for name, total in totals.items()})


def obd_hutchinson(model: nn.Module, calibration: Calibration, seed: int = 0) -> Parameters:
    """0.5 h w^2 with h the mean of v (H v) over Rademacher vectors v, at least 0.

    The loss is the mean over batches, weighted by their examples; each batch has `HUTCHINSON_PROBES` vectors of its
    own. The estimate is exact where the Hessian H is diagonal, and unbiased elsewhere until it is clamped. Attention is
    computed in single steps, since its fused kernels have no second derivative.
    """
    generator = torch.Generator().manual_seed(seed)
    with sdpa_kernel(SDPBackend.MATH), _differentiable(model, calibration) as (loss, parameters, at_once):
        diagonal = {name: torch.zeros_like(w) for name, w in parameters.items()}
        for batch in calibration.batches():
            probes = [{n: _rademacher(w, generator) for n, w in parameters.items()} for _ in range(HUTCHINSON_PROBES)]
            for inputs, targets in _parts(batch, at_once):
                weight = len(inputs) / len(calibration.inputs) / HUTCHINSON_PROBES
                first = _gradients(loss, parameters, inputs, targets, create_graph=True)
                for signs in probes:
                    along = reduce(add, ((first[name] * signs[name]).sum() for name in parameters))
                    for name, second in _derivatives(along, parameters, retain_graph=True).items():
                        diagonal[name] += weight * signs[name] * second
        return _obd(parameters, {name: h.clamp_min(0) for name, h in diagonal.items()})


def _obd(parameters: Parameters, diagonal: Parameters) -> Parameters:
    return {name: 0.5 * diagonal[name][None] * w.detach().square() for name, w in parameters.items()}


def _rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


@contextmanager
def _differentiable(model: nn.Module, calibration: Calibration) -> Iterator[tuple[_Loss, Parameters, int]]:
    """Yields three values: the loss as a function of the parameters; the parameters of a copy, all of which take
    gradients; and how many examples go through it at once, since a batch of large ones is taken in parts.
    """
    with observed(model) as network, torch.enable_grad():

        def loss(values: Mapping[str, Tensor], inputs: NetworkInputs, targets: Any) -> Tensor:
            return calibration.loss(run_with(network, values, inputs), contents(targets))

        yield (
            loss,
            {
                name: parameter.detach().clone().requires_grad_()
                for name, parameter in network.named_parameters()
                if parameter.is_floating_point()
            },
            examples_at_once(network, calibration.inputs, SCORE_BATCH),
        )


def _parts(batch: Batch, at_once: int) -> Iterator[Batch]:
    return zip(*(part.split(at_once) for part in batch), strict=True)


def _batch_gradients(loss: _Loss, parameters: Parameters, batch: Batch, at_once: int) -> Parameters:
    """Of the mean over a batch, as the mean over its parts."""
    first, *rest = (
        (len(inputs), _gradients(loss, parameters, inputs, targets)) for inputs, targets in _parts(batch, at_once)
    )
    if not rest:
        return first[1]
    count = len(batch[0])
    every = (first, *rest)
    return {name: reduce(add, (n / count * found[name] for n, found in every)) for name in parameters}


def _gradients(loss: _Loss, parameters: Parameters, inputs: NetworkInputs, targets: Any, **options: Any) -> Parameters:
    return _derivatives(loss(parameters, inputs, targets), parameters, **options)


def _derivatives(value: Tensor, parameters: Parameters, **options: Any) -> Parameters:
    """By name; 0 for parameters the value does not depend on."""
    if not value.requires_grad:
        return {name: torch.zeros_like(w) for name, w in parameters.items()}
    found = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True, **options)
    return dict(zip(parameters, found, strict=True))


def _sums_of_squares(loss: _Loss, parameters: Parameters, inputs: NetworkInputs, targets: Any) -> Parameters:
    """Sum over the examples of each one's squared gradient (which is not the square of the batch's mean gradient)."""

    def of_one(values: Mapping[str, Tensor], one_input: NetworkInputs, one_target: Any) -> Tensor:
        return loss(values, one_input[None], one_target[None])

    values = {name: w.detach() for name, w in parameters.items()}
    try:
        gradients = vmap(grad(of_one), in_dims=(None, 0, 0))(values, inputs, targets)
        return {name: g.square().sum(0) for name, g in gradients.items()}
    except Exception:  # a model or loss vmap cannot follow; one that fails itself does so again below
        return _sums_of_squares_one_by_one(loss, parameters, inputs, targets)


def _sums_of_squares_one_by_one(loss: _Loss, parameters: Parameters, inputs: NetworkInputs, targets: Any) -> Parameters:
    totals = {name: torch.zeros_like(w) for name, w in parameters.items()}
    for one in zip(inputs.split(1), targets.split(1), strict=True):
        for name, g in _gradients(loss, parameters, *one).items():
            totals[name] += g.square()
    return totals
